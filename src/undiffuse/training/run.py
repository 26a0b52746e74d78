"""`train`: from a data set's name to a folder with a model."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.config import resolve, to_dict
from undiffuse.data import DataOptions, Dataset, open_data, split
from undiffuse.errors import ConfigError
from undiffuse.events import Finished, Listener, Message, Started, silent
from undiffuse.training.build import build_denoiser, make_objective
from undiffuse.training.devices import Devices
from undiffuse.training.folder import bind_recipe, make_folder, write_facts
from undiffuse.training.lock import locked
from undiffuse.training.log import read_log
from undiffuse.training.memory import require_training_memory
from undiffuse.training.planning import Plan, plan
from undiffuse.training.publish import Publisher
from undiffuse.training.recipe import Recipe, choose_recipe, override_layers, recipe_layer
from undiffuse.training.trainer import Trainer

if TYPE_CHECKING:
    from undiffuse.models import Model

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
    """A run before its first step: recipe, data, plan."""

    recipe: Recipe
    training: Dataset
    held_out: Dataset | None
    plan: Plan


def train(
    source: str | Path | None = None,
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
    chosen, dataset = choose(source, recipe, layers)
    folder = make_folder(Path(out) if out is not None else Path("runs") / Path(chosen.data.source).resolve().stem)
    devices = Devices(chosen.train)
    prepared = prepare(chosen, dataset, devices.share.size)
    if not devices.is_main:
        return _train_into(folder, prepared, devices, listener)
    with locked(folder):
        bind_recipe(folder, chosen)
        return _train_into(folder, prepared, devices, listener)


def choose(
    source: str | Path | None, recipe: str | Path | Recipe | None, layers: Sequence[Any]
) -> tuple[Recipe, Dataset]:
    """Resolve the recipe and open its data; without a recipe the data choose one.

    Raises:
        ConfigError, DataError: Unknown names or options; missing or unreadable data.
    """
    if recipe is None and str(source).endswith((".yaml", ".yml")):
        source, recipe = None, source
    named: dict[str, Any] = {} if source is None else {"data.source": str(source)}
    if recipe is not None:
        base = to_dict(recipe) if isinstance(recipe, Recipe) else recipe_layer(recipe)
        resolved = resolve(Recipe, base, named, *layers)
        return resolved, open_data(_source(resolved.data), resolved.data)
    data = resolve(Recipe, named, *(_data_only(layer) for layer in layers)).data
    dataset = open_data(_source(data), data)
    name = "digits" if data.source == "digits" else choose_recipe(dataset.spec)
    return resolve(Recipe, recipe_layer(name), {"data": to_dict(data)}, *layers), dataset


def prepare(recipe: Recipe, dataset: Dataset, processes: int = 1) -> Prepared:
    """Split the data and plan the run."""
    holdout = dataset.default_holdout if recipe.data.holdout is None else recipe.data.holdout
    training, held_out = split(dataset, holdout) if holdout else (dataset, None)
    return Prepared(recipe, training, held_out, plan(recipe, training, len(held_out) if held_out else 0, processes))


def _train_into(folder: Path, prepared: Prepared, devices: Devices, listener: Listener) -> Run:
    recipe = prepared.recipe
    if devices.is_main:
        for line in prepared.plan.lines:
            listener(Message(_TASK, line, "warning" if "warning:" in line else "info"))
        write_facts(folder, _facts(prepared, devices))
    require_training_memory(prepared.plan.footprint, devices.device)
    denoiser = build_denoiser(recipe, prepared.training.spec)
    objective = make_objective(recipe.objective, denoiser)
    publisher = Publisher(folder, recipe)
    trainer = Trainer(
        denoiser,
        objective,
        prepared.training,
        recipe.train,
        folder,
        publish=publisher.model,
        preview=publisher.preview,
        listener=listener,
        devices=devices,
    )
    trainer.resume()
    if devices.is_main:
        listener(Started(_TASK, recipe.train.steps, "step", trainer.state.step))
    outcome = trainer.run()
    if devices.is_main and outcome.finished:
        listener(Finished(_TASK, str(folder)))
    losses = tuple(row["loss"] for row in read_log(folder / "log.jsonl") if row.get("loss") is not None)
    return Run(folder, outcome.step, outcome.finished, losses)


def _facts(prepared: Prepared, devices: Devices) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("undiffuse")
    except PackageNotFoundError:
        own = "source tree"
    return {
        "versions": {"undiffuse": own, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "device": str(devices.device),
        "processes": devices.share.size,
        "seed": prepared.recipe.train.seed,
        "items": len(prepared.training),
        "held_out": len(prepared.held_out) if prepared.held_out else 0,
        "parameters": prepared.plan.footprint.parameters,
        "data": prepared.training.summary(),
    }


def _source(data: DataOptions) -> str:
    if not data.source:
        raise ConfigError("no data were named; give a source, such as digits or a folder (data.source).")
    return data.source


def _data_only(layer: dict[str, Any] | list[str]) -> dict[str, Any] | list[str]:
    if isinstance(layer, list):
        return [text for text in layer if text.startswith("data.")]
    return {key: value for key, value in layer.items() if key == "data" or key.startswith("data.")}
