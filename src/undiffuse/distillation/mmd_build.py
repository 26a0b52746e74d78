"""From a recipe with `objective=mmd` to its loss, and to what watches over it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.codecs.codec import Codec
from undiffuse.data import Dataset
from undiffuse.denoisers.base import Denoiser
from undiffuse.distillation.mmd import MMDObjective, Sampler, check_tunable
from undiffuse.distillation.mmd_features import check_name, given_features, make_features, require_feature_memory
from undiffuse.distillation.mmd_judge import Judge, all_items, draw, real_conditions
from undiffuse.distillation.mmd_options import MMDOptions
from undiffuse.errors import ConfigError, PlanError
from undiffuse.events import Listener, Message, silent
from undiffuse.guidance.classifier_free import ClassifierFreeGuidance
from undiffuse.models import Model
from undiffuse.models.conditions import Fitted
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.registry import make_solver
from undiffuse.spec import DataSpec
from undiffuse.training.devices import Devices
from undiffuse.training.folder import write_text
from undiffuse.training.objectives import Trained
from undiffuse.training.publish import Publisher
from undiffuse.training.recipe import Recipe

if TYPE_CHECKING:
    from undiffuse.training.run import Prepared

MONITOR = "monitor.json"
"""In a run's folder: the distance at every checkpoint, in features neither tuned on nor, as a rule, reported in."""
TUNING_DEFAULTS: dict[str, Any] = {
    "batch_size": 128,
    "lr": 1e-4,
    "warmup": 0,
    "decay": "constant",
    "betas": [0.9, 0.999],
    "ema": [0.12],  # about an exponential average of .98 over 400 steps
    "log_every": 20,
    "checkpoint_every": 100,
    "preview_every": 0,
}
"""Training options of a tuning, unless told otherwise."""
_NATURAL = (3, 32, 32)
_WATCHED = 512  # samples of that distance
_OWN_CLASSIFIER = 20_000  # items up to which the independent features may be a classifier trained for them


def tuning(
    folder: Path,
    prepared: Prepared,
    denoiser: Trained,
    devices: Devices,
    listener: Listener = silent,
    features: Callable[[Tensor], Tensor] | None = None,
) -> tuple[MMDObjective, Publisher]:
    """Return the loss of a run with `objective=mmd`, and what writes its model.

    Args:
        folder: The run's folder.
        prepared: Its recipe, data and codec.
        denoiser: What is tuned.
        devices: Where.
        listener: Hears what is trained for the features.
        features: Features given by the caller, instead of those of the recipe.

    Raises:
        ConfigError: See `make_mmd`.
    """
    recipe, codec = prepared.recipe, prepared.codec
    heard = listener if devices.is_main else silent
    shared: dict[str, Any] = {"codec": codec, "folder": folder, "device": devices.device, "features": features}
    with devices.agree():
        objective = make_mmd(
            recipe,
            denoiser,
            prepared.training,
            processes=devices.share.size,
            gather=devices.gather if devices.share.size > 1 else None,
            listener=heard,
            **shared,
        )
    if not devices.is_main:
        return objective, Publisher(folder, recipe, codec)
    judge = make_judge(recipe, prepared.training, prepared.held_out, listener=heard, **shared)
    conditions = real_conditions(prepared.training, denoiser.spec, _WATCHED)
    return objective, TunedPublisher(folder, recipe, codec, judge, conditions)


def make_mmd(
    recipe: Recipe,
    denoiser: Trained,
    dataset: Dataset,
    *,
    codec: Codec | None = None,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    processes: int = 1,
    gather: Callable[[Tensor], Tensor] | None = None,
    listener: Listener = silent,
    features: Callable[[Tensor], Tensor] | None = None,
) -> MMDObjective:
    """Return the loss of a recipe, through the sampler of its `sample` group.

    Args:
        recipe: With `objective=mmd`.
        denoiser: What is tuned.
        dataset: What is trained on, in the denoiser's units.
        codec: Decodes states for features of images.
        folder: The run's folder, where a classifier trained for the features is kept.
        device: Where features are computed.
        processes: Data-parallel processes, each of which compares its own rows.
        gather: Returns the rows of all processes, for the queue.
        listener: Hears what is trained for the features.
        features: Features given by the caller, instead of those of the recipe.

    Raises:
        ConfigError: Model, data, sampler or features do not suit MMD tuning; the message says which.
    """
    options = recipe.objective
    assert isinstance(options, MMDOptions)
    if not isinstance(denoiser, Denoiser):
        raise ConfigError("MMD tuning takes denoisers, and this model is a flow map; tune the model it was made from.")
    check_tunable(denoiser)
    samplers, guide = tuned_samplers(recipe, denoiser), _guide(recipe, denoiser, dataset)
    rows = recipe.train.batch_size // processes
    _check_rows(recipe, dataset, rows, processes)
    if features is None:
        kept = folder / "features" if folder is not None else None
        seed = recipe.train.seed
        own = make_features(
            options.features, dataset, codec=codec, folder=kept, seed=seed, device=device, listener=listener
        )
    else:
        own = given_features(features, dataset.spec, device)
    require_feature_memory(own, rows + options.queue)
    classes = _classes(denoiser, dataset)
    _tell_conditions(denoiser, dataset, classes, options, listener)
    return MMDObjective(
        own,
        samplers,
        width=own.width,
        kernel=options.kernel,
        queue=options.queue,
        classes=classes,
        joint=options.joint,
        guide=guide,
        drop=options.drop,
        dropout=options.dropout,
        checkpoint=options.checkpoint,
        gather=gather,
    )


def check_tuning(recipe: Recipe, denoiser: Denoiser, dataset: Dataset) -> None:
    """Refuse what cannot be tuned, as far as that is known before anything is read, trained or written.

    Raises:
        ConfigError: See `make_mmd`.
    """
    assert isinstance(recipe.objective, MMDOptions)
    check_tunable(denoiser)
    check_name(recipe.objective.features)
    tuned_samplers(recipe, denoiser)
    _guide(recipe, denoiser, dataset)


def tuned_samplers(recipe: Recipe, denoiser: Denoiser) -> list[Sampler]:
    """Return the samplers of a recipe: that of `sample`, and the further numbers of steps.

    Raises:
        ConfigError: The solver or grid has no gradient, or does not end at clean data.
    """
    chosen = recipe.sample
    assert isinstance(recipe.objective, MMDOptions)
    if chosen.solver is None or chosen.steps is None or chosen.grid is None:
        raise ConfigError("MMD tuning is for one sampler; set sample.solver, sample.steps and sample.grid.")
    try:
        counts = dict.fromkeys((chosen.steps, *recipe.objective.more_steps))
        process = denoiser.process
        assert isinstance(process, GaussianProcess)
        solver = make_solver(chosen.solver)
        found = [Sampler(solver, solver.named_grid(process.schedule, n, chosen.grid)) for n in counts]
        for sampler in found:
            needs = sampler.solver.needs
            if needs and not getattr(denoiser, "learns_variance", False):
                raise ValueError(f"solver={chosen.solver} needs {needs}, which this model lacks; use another, as ddim.")
            sampler.solver.plan(process, sampler.grid)  # now, not after the data were read
        return found
    except (ValueError, PlanError) as error:
        raise ConfigError(str(error)) from error


def tuned_for(recipe: Recipe) -> dict[str, Any]:
    """Return what the info of a tuned model says about the sampler that it was tuned for."""
    assert isinstance(recipe.objective, MMDOptions)
    chosen = recipe.sample
    return {
        "solver": chosen.solver,
        "steps": list(dict.fromkeys((chosen.steps, *recipe.objective.more_steps))),
        "grid": chosen.grid,
        "guidance": chosen.guidance,
    }


def make_judge(
    recipe: Recipe,
    training: Dataset,
    held_out: Dataset | None,
    *,
    codec: Codec | None = None,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    listener: Listener = silent,
    features: Callable[[Tensor], Tensor] | None = None,
) -> Judge:
    """Return what judges a tuning: the features of its loss, and others that it never sees.

    The others are those of a classifier (the shipped one, or one trained on the labels with another seed), or of a
    random convolutional network where there are no labels, or the values themselves where the data are no images. Of
    images the checkpoint is chosen by features of a third kind or seed, so that the figures do not judge themselves.
    """
    options, seed = recipe.objective, recipe.train.seed
    assert isinstance(options, MMDOptions)
    given: dict[str, Any] = {"codec": codec, "device": device, "listener": listener}
    if features is None:
        own_place = folder / "features" if folder is not None else None
        own = make_features(options.features, training, folder=own_place, seed=seed, **given)
    else:
        own = given_features(features, training.spec, device)
    place = folder / "features-independent" if folder is not None else None
    name = _independent(options.features if features is None else "", training, codec)
    other = make_features(name, training, folder=place, seed=seed + 1, **given)
    unseen = None if held_out is None else all_items(held_out)
    choosing = None
    if name != "pixels":
        shipped = name == "classifier" and (training.spec if codec is None else codec.data).shape == _NATURAL
        place = folder / "features-choosing" if folder is not None else None
        choosing = make_features("random" if shipped else name, training, folder=place, seed=seed + 2, **given)
    bounded = codec is None and training.spec.range is not None
    return Judge(all_items(training), unseen, own, other, choosing=choosing, bounded=bounded, device=device)


def _independent(tuned_on: str, dataset: Dataset, codec: Codec | None) -> str:
    """Return the name of features that say something else than those tuned on."""
    spec: DataSpec = dataset.spec if codec is None else codec.data
    if spec.kind != "image":
        return "pixels"
    natural = spec.shape == _NATURAL
    if natural and tuned_on.partition(":")[0] != "classifier":
        return "classifier"
    small = len(dataset.spec.classes) > 1 and len(dataset) <= _OWN_CLASSIFIER
    return "classifier" if small and not natural else "random"


class TunedPublisher(Publisher):
    """Writes the model of a tuning where it is the best so far, by the judge's features for choosing.

    The first is the model before, at step 0.

    Args:
        folder: The run's folder.
        recipe: Its recipe.
        codec: What made the latents that it trains on.
        judge: Measures the distance.
        conditions: Of real items, which the samples are given.
    """

    def __init__(
        self, folder: Path, recipe: Recipe, codec: Codec | None, judge: Judge, conditions: Fitted | None = None
    ) -> None:
        super().__init__(folder, recipe, codec)
        self.judge, self.conditions = judge, conditions

    def model(self, denoiser: Trained, step: int) -> None:
        """Measure the model, and write it where it is better than all before it."""
        model = self._wrap(denoiser, step)
        guidance = guidance_arguments(self.recipe)
        value = self.judge.choosing_distance(draw(model, _WATCHED, 0, self.conditions, **guidance).x)
        rows = [row for row in read_monitor(self.folder) if row["step"] < step]
        if not rows or value < min(row["distance"] for row in rows):
            model.info["choosing_distance"] = value
            model.save(self.folder)
        text = json.dumps([*rows, {"step": step, "distance": value}], indent=1) + "\n"
        write_text(self.folder / MONITOR, text)

    def published(self) -> int | None:
        """Return the step that was measured last; None where there is no model."""
        rows = read_monitor(self.folder)
        return rows[-1]["step"] if rows and super().published() is not None else None

    def _wrap(self, denoiser: Trained, step: int) -> Model:
        model = super()._wrap(denoiser, step)
        model.info["tuned_for"] = tuned_for(self.recipe)
        return model


def read_monitor(folder: Path) -> list[dict[str, Any]]:
    """Return the rows {"step", "distance"} of a tuning so far."""
    path = folder / MONITOR
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _check_rows(recipe: Recipe, dataset: Dataset, rows: int, processes: int) -> None:
    size = recipe.train.batch_size
    if rows < 2:
        raise ConfigError(
            f"train.batch_size={size} over {processes} process(es) leaves {rows} row(s) each, but MMD compares pairs; "
            f"use at least {2 * processes}, better 128."
        )
    if not getattr(dataset, "endless", False) and len(dataset) < size:
        raise ConfigError(
            f"there are {len(dataset)} items to train on, fewer than train.batch_size={size}; lower it to "
            f"{len(dataset)} or less, or give more data."
        )
    if recipe.train.validate_items < 2:
        raise ConfigError(f"train.validate_items={recipe.train.validate_items}, but MMD compares pairs; use 512.")
    if recipe.data.augment:
        raise ConfigError(
            f"data.augment={recipe.data.augment:g} changes what the samples are compared with; set data.augment=0."
        )


def _classes(denoiser: Denoiser, dataset: Dataset) -> dict[str, int]:
    """Return the label conditions that the model and the data have in common, with their numbers of values."""
    known = {} if denoiser.spec is None else denoiser.spec.conditions
    return {
        name: len(part.classes)
        for name, part in dataset.spec.conditions.items()
        if part.kind == "label" and name in known
    }


def _tell_conditions(
    denoiser: Denoiser, dataset: Dataset, classes: dict[str, int], options: MMDOptions, listener: Listener
) -> None:
    """Say where a conditional model may forget its conditions."""
    known = set() if denoiser.spec is None else set(denoiser.spec.conditions)
    missing = sorted(known - set(dataset.spec.conditions))
    if missing:
        text = f"the data lack the model's {', '.join(missing)}; it is tuned without, and may forget what that means."
        listener(Message("train", text, "warning"))
    others = sorted((known & set(dataset.spec.conditions)) - set(classes))
    if others or (classes and not options.joint):
        named = ", ".join(others or sorted(classes))
        text = f"samples are given the data's {named} but compared without; the model may heed them less."
        listener(Message("train", text, "warning"))


def guidance_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return the guidance of a recipe as arguments of `Model.sample_result`, which then takes no defaults."""
    chosen = recipe.sample
    if chosen.guidance == 1:
        return {"guidance": 1.0}
    interval = chosen.guidance_interval or (0.0, math.inf)
    return {
        "guidance": chosen.guidance,
        "guidance_interval": (interval[0], interval[1]),
        "guidance_rescale": chosen.guidance_rescale,
    }


def _guide(recipe: Recipe, denoiser: Denoiser, dataset: Dataset) -> Callable[[Denoiser], Denoiser] | None:
    """Return what puts the recipe's guidance around the denoiser; None for none."""
    chosen = recipe.sample
    if getattr(chosen, "threshold", None):
        raise ConfigError("sample.threshold clips answers, which then have no gradient; leave it out of MMD tuning.")
    if chosen.guidance == 1:
        return None
    if denoiser.spec is None or not denoiser.spec.conditions.keys() - denoiser.spec.kept_conditions:
        raise ConfigError(f"sample.guidance={chosen.guidance:g} needs a model with conditions, such as labels; use 1.")
    shared = denoiser.spec.conditions.keys() & dataset.spec.conditions.keys()
    if not shared - denoiser.spec.kept_conditions:
        raise ConfigError(
            f"sample.guidance={chosen.guidance:g} needs the model's conditions, and the data lack "
            f"{', '.join(sorted(denoiser.spec.conditions))}; give data that have them, or use 1."
        )
    return lambda asked: ClassifierFreeGuidance(
        asked, chosen.guidance, interval=chosen.guidance_interval, rescale=chosen.guidance_rescale
    )
