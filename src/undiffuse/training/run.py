"""`train`: from a data set's name to a folder with a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.codecs.codec import Codec
from undiffuse.config import resolve, to_dict
from undiffuse.data import DataOptions, open_data, split
from undiffuse.data.dataset import Dataset, some_problems
from undiffuse.data.holdout import usual_holdout
from undiffuse.distillation.mmd_options import MMDOptions
from undiffuse.errors import ConfigError
from undiffuse.events import Finished, Listener, Message, Started, silent
from undiffuse.pretrained.tuning import TunedDenoiser
from undiffuse.training.build import build_denoiser, check_sampler, make_objective
from undiffuse.training.checkpoints import CHECKPOINTS, checkpoints_in
from undiffuse.training.degrade import make_transforms
from undiffuse.training.devices import Devices
from undiffuse.training.fine_tuning import start_from
from undiffuse.training.folder import bind_recipe, check_same_pipeline, check_same_tokens, make_folder, write_facts
from undiffuse.training.given import GIVEN, is_name, open_given, refuse_given
from undiffuse.training.latents import encode_data, finish_codec, start_codec
from undiffuse.training.lock import locked
from undiffuse.training.log import read_log
from undiffuse.training.memory import place_data, require_training_memory
from undiffuse.training.objectives import Objective, Trained
from undiffuse.training.options import TrainOptions
from undiffuse.training.planning import Plan, plan
from undiffuse.training.publish import Publisher, shown_conditions
from undiffuse.training.recipe import RECIPES, Recipe, choose_recipe, override_layers, recipe_layer
from undiffuse.training.starting import recipe_of
from undiffuse.training.trackers import require_trackers
from undiffuse.training.trainer import Outcome, Trainer
from undiffuse.training.versions import versions

if TYPE_CHECKING:
    from undiffuse.models import Model

Source = str | Path | np.ndarray | Tensor | Dataset
_TASK = "train"


@dataclass(frozen=True)
class Run:
    """A training run as it ended.

    Args:
        folder: Where everything was written.
        step: Steps done.
        finished: Whether those are all; else the same call goes on.
        losses: Loss of each log line.
    """

    folder: Path
    step: int
    finished: bool
    losses: tuple[float, ...]

    @property
    def model(self) -> Model:
        """The averaged model, loaded from the folder."""
        from undiffuse.models import load

        return load(self.folder)


@dataclass(frozen=True)
class Prepared:
    """A run before its first step: recipe, data, plan; and a codec that may still want training."""

    recipe: Recipe
    training: Dataset
    held_out: Dataset | None
    plan: Plan
    codec: Codec | None = None


def train(
    source: Source | None = None,
    recipe: str | Path | Recipe | None = None,
    *,
    out: str | Path | None = None,
    listener: Listener = silent,
    overrides: Sequence[str] = (),
    **options: Any,
) -> Run:
    """Train a model, or go on with a run that was interrupted.

    Args:
        source: Data: a built-in name, a folder, a file; None where the recipe names it. A recipe's YAML file will do.
            Or the data themselves: an array or tensor (N, ...), read as a .npy file is, or a `Dataset`.
        recipe: Name of a shipped recipe, a YAML file, a `Recipe`, or None to look at the data and choose.
        out: The run's folder; default runs/<name of the data>.
        listener: Hears about progress.
        overrides: "group.key=value" texts.
        options: Groups (`model="unet"`), or names of training options (`steps=20_000`).

    Returns:
        The run; `finished` is False where SIGINT or SIGTERM stopped it, after writing a checkpoint.

    Raises:
        UndiffuseError: Data, recipe, folder or training trouble, each with what to do.
    """
    layers = override_layers(overrides, **options)
    source, recipe = _sort_out(source, recipe)
    options_known = _known_options(recipe, layers)
    require_trackers(options_known.trackers)
    devices = Devices(options_known)
    with ExitStack() as held:
        folder = None if out is None else claim_folder(Path(out), devices, held)  # first: reading data can take minutes
        with devices.agree():
            chosen, dataset = choose(source, recipe, layers)
            check_sampler(chosen)
            devices.check_batch(chosen.train)
        if folder is None:
            folder = claim_folder(Path("runs") / folder_name(chosen.data.source), devices, held)
        return _carry_out(folder, chosen, dataset, devices, listener)


def train_from(
    denoiser: Trained,
    dataset: Dataset,
    recipe: Recipe,
    *,
    out: str | Path,
    codec: Codec | None = None,
    listener: Listener = silent,
    fill: Callable[[Path], None] | None = None,
    **given: Any,
) -> Run:
    """Train a denoiser that exists already, on data that are open already, or go on with such a run.

    Args:
        denoiser: What to train, on the CPU; changed in place.
        dataset: All items, in the units of the denoiser, or where there is a codec in those of the codec.
        recipe: Says how; its model, process and codec are not read to build anything.
        out: The run's folder.
        codec: The codec of the denoiser, trained.
        listener: Hears about progress.
        fill: Puts into the folder what the run needs there; called by the main process, once the folder is ours and
            the recipe fits what is in it.
        given: What the objective is given beside the recipe; see `undiffuse.distillation.mmd_build.make_mmd`.

    Raises:
        UndiffuseError: Data, recipe, folder or training trouble, each with what to do.
    """
    require_trackers(recipe.train.trackers)
    devices = Devices(recipe.train)
    with ExitStack() as held:
        folder = claim_folder(Path(out), devices, held)
        with devices.agree():
            check_sampler(recipe)
            devices.check_batch(recipe.train)
        return _carry_out(folder, recipe, dataset, devices, listener, codec, denoiser, fill, **given)


def _carry_out(
    folder: Path,
    recipe: Recipe,
    dataset: Dataset,
    devices: Devices,
    listener: Listener,
    codec: Codec | None = None,
    denoiser: Trained | None = None,
    fill: Callable[[Path], None] | None = None,
    **given: Any,
) -> Run:
    """Prepare and make a run in a folder that is ours, with a codec and a denoiser that exist or are built here."""
    with devices.agree():
        prepared = prepare(recipe, dataset, devices.share.size, codec)
        check_same_pipeline(folder)
        changed_length = bind_recipe(folder, recipe) if devices.is_main else None
        if fill is not None and devices.is_main:
            fill(folder)
        if changed_length:
            listener(Message(_TASK, changed_length))
        _announce(folder, prepared, devices, listener)
        require_training_memory(prepared.plan.footprint, devices.device)
    shown = shown_conditions(recipe, prepared.held_out or prepared.training)  # before latents take their place
    ready = _on_latents(folder, prepared, devices, listener)
    if ready is None:
        return Run(folder, 0, False, ())
    with devices.agree():
        check_same_tokens(folder, ready.training.spec)
    return _train_into(folder, ready, devices, listener, denoiser, shown, **given)


def choose(source: Source | None, recipe: str | Path | Recipe | None, layers: Sequence[Any]) -> tuple[Recipe, Dataset]:
    """Resolve the recipe and open its data; without a recipe the data choose one.

    Raises:
        ConfigError, DataError: Unknown names or options; missing or unreadable data.
    """
    source, recipe = _sort_out(source, recipe)
    named: dict[str, Any] = {} if source is None else {"data.source": str(source) if is_name(source) else GIVEN}
    begun = recipe_of(_known_options(recipe, layers).init)
    if begun and not _may_be_pictures(source, recipe):
        begun.pop("data", None)  # nothing else has a size to be brought to
    if recipe is not None:
        base = (_base(recipe), begun) if recipe in RECIPES else (begun, _base(recipe))  # a file of one's own goes first
        resolved = resolve(Recipe, *base, named, *layers)
        return resolved, _open(source, resolved.data)
    data = resolve(Recipe, named, {"data": begun.pop("data", {})}, *(_only("data", layer) for layer in layers)).data
    dataset = _open(source, data)
    name = choose_recipe(dataset.spec, data.source)
    return resolve(Recipe, recipe_layer(name), begun, {"data": to_dict(data)}, *layers), dataset


def prepare(recipe: Recipe, dataset: Dataset, processes: int = 1, codec: Codec | None = None) -> Prepared:
    """Split the data and plan the run; `codec` is one that exists already."""
    training, held_out = hold_out(recipe, dataset)
    codec = codec or start_codec(recipe, training)
    latent = codec.latent if codec else None
    lines = plan(recipe, training, len(held_out) if held_out else 0, processes, latent)
    return Prepared(recipe, training, held_out, lines, codec)


def hold_out(recipe: Recipe, dataset: Dataset) -> tuple[Dataset, Dataset | None]:
    """Return the data to train on and those held out, None where a recipe holds out none."""
    holdout = usual_holdout(dataset) if recipe.data.holdout is None else recipe.data.holdout
    return split(dataset, holdout) if holdout else (dataset, None)


def folder_name(source: str) -> str:
    """Return the name of data without what stands for shards or parts of a data set."""
    return re.sub(r"[-{}:@,]+|\.{2,}", "-", Path(source).resolve().stem).strip("-")


def claim_folder(path: Path, devices: Devices, held: ExitStack) -> Path:
    """Make the folder and lock it until `held` is closed."""
    with devices.agree():
        if devices.is_main:
            held.enter_context(locked(make_folder(path)))
    return path


def _announce(folder: Path, prepared: Prepared, devices: Devices, listener: Listener) -> None:
    if not devices.is_main:
        return
    for line in prepared.plan.lines:
        listener(Message(_TASK, line, "warning" if "warning:" in line else "info"))
    write_facts(folder, _facts(prepared, devices))


def _on_latents(folder: Path, prepared: Prepared, devices: Devices, listener: Listener) -> Prepared | None:
    """Return the run with its data encoded, where it has a codec; None where the codec's training was stopped."""
    if prepared.codec is None:
        return prepared
    heard = listener if devices.is_main else silent
    keeps = False
    try:
        codec = finish_codec(
            prepared.codec, prepared.recipe, prepared.training, folder, devices, heard, prepared.held_out
        )
        if codec is None:
            return None
        keeps = bool(prepared.recipe.data.degrade)  # spoilt anew at each visit, so they are encoded while training
        if keeps:
            return replace(prepared, codec=codec.to(devices.device))
        with devices.agree():
            training = encode_data(codec, prepared.training, devices.device, heard)
            held_out = prepared.held_out and encode_data(codec, prepared.held_out, devices.device, heard)
        return replace(prepared, training=training, held_out=held_out, codec=codec)
    finally:
        if not keeps:
            _let_go(prepared.training, heard)


def _train_into(
    folder: Path,
    prepared: Prepared,
    devices: Devices,
    listener: Listener,
    denoiser: Trained | None = None,
    shown: dict[str, Tensor] | None = None,
    **given: Any,
) -> Run:
    recipe, codec = prepared.recipe, prepared.codec
    if denoiser is None:
        spec = codec.latent if codec else prepared.training.spec
        denoiser = build_denoiser(recipe, spec, told=codec is not None)
        if recipe.train.init and not isinstance(denoiser, TunedDenoiser) and not checkpoints_in(folder / CHECKPOINTS):
            start_from(denoiser, recipe.train.init)
    objective: Objective
    transforms = make_transforms(recipe.data, prepared.training.spec, codec)
    if isinstance(recipe.objective, MMDOptions):
        from undiffuse.distillation.mmd_build import tuning

        objective, publisher = tuning(folder, prepared, denoiser, devices, listener, **given)
    else:
        objective = make_objective(recipe.objective, denoiser, recipe.train.steps)
        publisher = Publisher(folder, recipe, codec, shown)
    trainer = Trainer(
        denoiser,
        objective,
        place_data(prepared.training, prepared.plan.footprint, devices.device),
        recipe.train,
        folder,
        publish=publisher.model,
        publish_start=isinstance(recipe.objective, MMDOptions),  # a tuning that only harms ends as it began
        published=publisher.published,
        preview=publisher.preview,
        listener=listener,
        devices=devices,
        transforms=transforms,
        held_out=prepared.held_out,
    )
    trainer.resume()
    if devices.is_main:
        listener(Started(_TASK, recipe.train.steps, "step", trainer.state.step))
    outcome = _run(trainer, prepared.training, listener if devices.is_main else silent)
    if devices.is_main and outcome.finished:
        listener(Finished(_TASK, str(folder)))
    losses = tuple(row["loss"] for row in read_log(folder / "log.jsonl") if row.get("loss") is not None)
    with devices.together():
        devices.wait()  # nobody leaves early: gloo aborts a process that ends while a peer still talks to it
    return Run(folder, outcome.step, outcome.finished, losses)


def _run(trainer: Trainer, dataset: Dataset, listener: Listener) -> Outcome:
    """Train, then let go of the data."""
    try:
        return trainer.run()
    finally:
        _let_go(dataset, listener)


def _let_go(dataset: Dataset, listener: Listener) -> None:
    """Stop the threads of data that are read from disk, and say what of them could not be read."""
    if hasattr(dataset, "close"):
        dataset.close()
    late = dataset.found_late() if hasattr(dataset, "found_late") else []
    if late:
        line = f"{len(late)} item(s) could not be read and were replaced by others: {some_problems(late)}"
        listener(Message(_TASK, line, "warning"))


def _facts(prepared: Prepared, devices: Devices) -> dict[str, Any]:
    return {
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "device": str(devices.device),
        "processes": devices.share.size,
        "seed": prepared.recipe.train.seed,
        "items": len(prepared.training),
        "held_out": len(prepared.held_out) if prepared.held_out else 0,
        "parameters": prepared.plan.footprint.parameters,
        "data": prepared.training.summary(),
    }


def _sort_out(source: Any, recipe: Any) -> tuple[Any, Any]:
    """Take a source that is a YAML file for the recipe."""
    if recipe is None and is_name(source) and str(source).endswith((".yaml", ".yml")):
        return None, source
    return source, recipe


def _base(recipe: str | Path | Recipe) -> dict[str, Any]:
    return to_dict(recipe) if isinstance(recipe, Recipe) else recipe_layer(recipe)


def _known_options(recipe: str | Path | Recipe | None, layers: Sequence[Any]) -> TrainOptions:
    """Return the options of training as far as they are known before the data are read; device and precision are."""
    base = {} if recipe is None else _base(recipe)
    return resolve(Recipe, *(_only("train", layer) for layer in (base, *layers))).train


def _only(group: str, layer: dict[str, Any] | list[str]) -> dict[str, Any] | list[str]:
    """Return the part of a layer that belongs to a group."""
    if isinstance(layer, list):
        return [text for text in layer if text.startswith(f"{group}.")]
    return {key: value for key, value in layer.items() if key == group or key.startswith(f"{group}.")}


def _may_be_pictures(source: Source | None, recipe: str | Path | Recipe | None) -> bool:
    from undiffuse.data.embedded import EMBEDDED

    if source is None and recipe is not None:
        source = resolve(Recipe, _base(recipe)).data.source
    return is_name(source) and source not in EMBEDDED and Path(str(source)).suffix not in (".npy", ".npz", ".csv")


def _open(source: Source | None, data: DataOptions) -> Dataset:
    if not is_name(source):
        return open_given(source, data)
    if not data.source:
        raise ConfigError("no data were named; give a source, such as digits or a folder (data.source).")
    refuse_given(data.source)
    return open_data(data.source, data)
