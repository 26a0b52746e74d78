"""`accelerate`: from a trained model to one that needs few steps, with figures from before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.config import resolve, to_dict
from undiffuse.data import DataOptions, Dataset, TensorDataset, open_data
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.distillation.build import keep_model
from undiffuse.distillation.methods import METHODS
from undiffuse.distillation.mmd import check_tunable
from undiffuse.distillation.mmd_build import (
    TUNING_DEFAULTS,
    check_tuning,
    guidance_arguments,
    make_judge,
    read_monitor,
    tuned_for,
)
from undiffuse.distillation.mmd_judge import Figures, Judge, SamplerChoice, best_untuned, draw, real_conditions
from undiffuse.errors import ConfigError, DataError
from undiffuse.events import Listener, Message, silent
from undiffuse.models import Model, load
from undiffuse.models.conditions import Fitted, class_turns
from undiffuse.models.world import speaks
from undiffuse.networks.backbone import Backbone
from undiffuse.process.options import GaussianOptions
from undiffuse.training.devices import choose_device
from undiffuse.training.fine_tuning import tunable
from undiffuse.training.given import GIVEN, is_name
from undiffuse.training.latents import encode_data
from undiffuse.training.recipe import Recipe, override_layers
from undiffuse.training.run import Run, hold_out, train_from
from undiffuse.words import did_you_mean

_TUNINGS = ("mmd",)
UNTUNED = "untuned"
"""In a run's folder: the model that was tuned, where it came as an object and not by name."""
_TRIED = 512  # samples of an untuned sampler that is tried
_SHOWN = 64  # samples in the pictures


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One line of the comparison: which model, by which sampler, in how many network calls, and its figures."""

    name: str
    sampler: str
    calls: int
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class Accelerated:
    """A model tuned for few steps.

    Args:
        run: The training run; `run.finished` is False where it was interrupted.
        recipe: What it was made by.
        rows: Figures before and after, empty where no comparison was asked for.
        samples: Samples in data units from the same noise, by what made them, (n, *shape).
        monitor: Distance at each checkpoint, in the features that choose; the model kept is the best of them.
        notes: What the features are.
    """

    run: Run
    recipe: Recipe
    rows: tuple[Compared, ...] = ()
    samples: dict[str, Tensor] = field(default_factory=dict)
    monitor: tuple[dict[str, Any], ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where everything was written."""
        return self.run.folder

    @property
    def model(self) -> Model:
        """The tuned model, loaded from the folder. Its default sampler is the one it was tuned for."""
        return self.run.model

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        rows = [{**asdict(row), "figures": asdict(row.figures)} for row in self.rows]
        return {"rows": rows, "monitor": list(self.monitor), "notes": self.notes, "tuned_for": tuned_for(self.recipe)}


def accelerate(
    model: Model | str | Path,
    data: str | Path | np.ndarray | Tensor | Dataset | None = None,
    *,
    method: str = "mmd",
    steps: int | Sequence[int] = 5,
    solver: str = "ddim",
    grid: str = "t",
    train_steps: int = 400,
    features: str | Callable[[Tensor], Tensor] = "pixels",
    kernel: str = "rbf-mix",
    guidance: float = 1.0,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    samples: int = 2000,
    overrides: Sequence[str] = (),
    listener: Listener = silent,
    **options: Any,
) -> Accelerated:
    """Tune a model through a sampler of few steps, or go on with such a run; see `undiffuse.distillation.mmd`.

    Args:
        model: A trained continuous model, its folder, or a built-in name.
        data: Real data; None: what the model was trained on. An array or tensor (N, *shape) is in data units.
        method: "mmd". For flow maps and other distillation see `undiffuse distill`.
        steps: Sampling steps to tune for; several are tuned in turn, and the first is the model's default.
        solver: Rule of a step.
        grid: Spacing of the steps.
        train_steps: Optimizer steps.
        features: What samples and data are compared in; a name (see `MMDOptions.features`), or a differentiable module
            or function of states (B, *shape) in the denoiser's units.
        kernel: Kernel of the comparison.
        guidance: Guidance scale that sampling has, in the tuning and afterwards.
        out: The run's folder; default runs/<name of the model>-<steps>-steps.
        seed: Of order and noise.
        device: auto, cpu, cuda, cuda:1.
        samples: Samples that figures before and after are computed from; 0 leaves the comparison out.
        overrides: "group.key=value" texts of the recipe.
        listener: Hears about progress.
        options: Further recipe options: groups (`objective={"queue": 512}`), or names of training options (`lr=1e-5`).

    Raises:
        UndiffuseError, ValueError: Model, data or options do not fit; the message says what to do.
    """
    _check_method(method)
    if samples < 0 or samples == 1:
        raise ConfigError(f"samples={samples} cannot be compared; give at least 2, or 0 to leave the comparison out.")
    if train_steps < 1:
        raise ConfigError(f"train_steps={train_steps} tunes nothing; give at least 1, such as 400.")
    counts = (steps,) if isinstance(steps, int) else tuple(steps)
    if not counts:
        raise ConfigError("steps is empty; give a number of sampling steps, such as 5.")
    name = str(model) if isinstance(model, (str, Path)) else ""
    untuned = tunable(load(model), name) if isinstance(model, (str, Path)) else model
    _check_model(untuned)
    folder = Path(out) if out is not None else Path("runs") / f"{_short(name)}-{counts[0]}-steps"
    chosen = {
        "objective": {"kind": "mmd", "kernel": kernel, "more_steps": list(counts[1:])}
        | ({"features": features} if isinstance(features, str) else {}),
        "train": {**TUNING_DEFAULTS, "steps": train_steps, "seed": seed, "device": device},
        "sample": {"solver": solver, "steps": counts[0], "grid": grid, "guidance": guidance},
    }
    recipe = _recipe(untuned, data, name or str(folder / UNTUNED), chosen, overrides, options)
    dataset = _open(untuned, data, recipe.data)
    own = copy.deepcopy(untuned.denoiser).cpu().requires_grad_(True)
    check_tuning(recipe, own, dataset)
    fill = None if name else partial(keep_model, untuned, UNTUNED)
    given: dict[str, Any] = {} if isinstance(features, str) else {"features": features}
    run = train_from(own, dataset, recipe, out=folder, codec=untuned.codec, listener=listener, fill=fill, **given)
    monitor = tuple(read_monitor(folder))
    if run.finished and speaks() and min(monitor, key=lambda row: row["distance"])["step"] == 0:
        text = "no checkpoint was better than the model before, which is kept; lower train.lr, or tune for longer."
        listener(Message("train", text, "warning"))
    if not run.finished or samples == 0 or not speaks():
        return Accelerated(run=run, recipe=recipe, monitor=monitor)
    listener(Message("train", "comparing before and after"))
    return _compare(untuned, run, recipe, dataset, samples, given)


def _compare(
    untuned: Model, run: Run, recipe: Recipe, dataset: Dataset, samples: int, given: dict[str, Any]
) -> Accelerated:
    device = choose_device(recipe.train.device)
    training, held_out = hold_out(recipe, dataset)
    codec = untuned.codec
    if codec is not None:
        training = encode_data(codec, training, device, silent)
        held_out = held_out and encode_data(codec, held_out, device, silent)
    judge = make_judge(recipe, training, held_out, codec=codec, folder=run.folder, device=device, **given)
    conditions = real_conditions(training, untuned.denoiser.spec, samples)
    before, after = untuned.to(device), run.model.to(device)
    rows, shown = _table(before, after, recipe, judge, conditions, samples)
    return Accelerated(
        run=run,
        recipe=recipe,
        rows=tuple(rows),
        samples=shown,
        monitor=tuple(read_monitor(run.folder)),
        notes=_notes(judge),
    )


def _table(
    before: Model, after: Model, recipe: Recipe, judge: Judge, conditions: Fitted, samples: int
) -> tuple[list[Compared], dict[str, Tensor]]:
    """Return the figures of the untuned and the tuned model, and pictures of both from the same noise."""
    chosen = recipe.sample
    assert chosen.solver and chosen.steps and chosen.grid
    sampler = SamplerChoice(chosen.solver, chosen.steps, chosen.grid)
    guidance = guidance_arguments(recipe)
    rows, shown = [], {}

    def add(name: str, model: Model, choice: SamplerChoice | None) -> int:
        arguments = {} if choice is None else choice.arguments()
        found = draw(model, samples, 1, conditions, **arguments, **guidance)
        told = str(choice) if choice else "its own"
        rows.append(Compared(name=name, sampler=told, calls=found.nfe, figures=judge(found.x)))
        shown[f"{name}: {told}, {found.nfe} calls"] = draw_shown(model, **arguments)
        return found.nfe

    def draw_shown(model: Model, **arguments: Any) -> Tensor:
        turns = Fitted((key, part) for key, part in conditions.items() if key not in class_turns(model.spec, 1))
        with torch.no_grad():
            return model.decode(draw(model, min(samples, _SHOWN), 0, turns, **arguments, **guidance).x).cpu()

    calls = add("before", before, sampler)
    plain = best_untuned(before, calls, judge, n=min(samples, _TRIED), conditions=conditions, **guidance)
    add("before, best sampler found", before, plain)
    add("before, many steps", before, None)
    add("after", after, sampler)
    for steps in recipe.objective.more_steps:  # type: ignore[union-attr]
        add("after", after, SamplerChoice(chosen.solver, steps, chosen.grid))
    return rows, shown


def _notes(judge: Judge) -> dict[str, str]:
    """Return what the features are, and whether the figures were also what chose the model."""
    notes = {"tuned on": judge.tuned_on.note, "independent": judge.independent.note}
    if judge.choosing is judge.independent:
        notes["choosing the checkpoint"] = (
            f"{judge.choosing.note}, as for “independent”, so that figure is a little too good for the tuned model"
        )
    else:
        notes["choosing the checkpoint"] = f"{judge.choosing.note}, of another kind or seed than “independent”"
    return notes


def _check_method(method: str) -> None:
    if method in METHODS:
        raise ConfigError(f"method={method!r} makes a flow map; use undiffuse distill MODEL --method {method}.")
    if method not in _TUNINGS:
        near = did_you_mean(method, (*_TUNINGS, *METHODS))
        raise ConfigError(f"method={method!r} is unknown; use mmd, or see undiffuse distill for flow maps.{near}")


def _check_model(model: Model) -> None:
    denoiser = model.denoiser
    check_tunable(denoiser)
    backbone = getattr(denoiser, "backbone", None)
    if not isinstance(denoiser, NetworkDenoiser) or not isinstance(backbone, Backbone) or backbone.options is None:
        raise ConfigError(
            f"accelerate tunes networks built from options, which it can save; this model is a "
            f"{type(denoiser).__name__}. Train one with undiffuse.train, or use MMDObjective with Trainer."
        )


def _recipe(
    model: Model, data: Any, init: str, chosen: dict[str, Any], overrides: Sequence[str], options: dict[str, Any]
) -> Recipe:
    """Return the recipe of the tuning: network and process as they are, data as they were, the rest by `chosen`."""
    known = model.info.get("recipe") or {}
    kept = dict(known.get("data") or {})
    source = kept.get("source", "") if data is None else (str(data) if is_name(data) else GIVEN)
    if not source or (data is None and source == GIVEN):
        raise DataError("the model does not say which data it was trained on; give real data (--data).")
    data_options = {**kept, "augment": 0.0} if source == kept.get("source") and is_name(data) else {}
    data_options["source"] = source
    base = {
        "data": data_options,
        "model": to_dict(model.denoiser.backbone.options),  # type: ignore[union-attr]
        "process": _process(model, known),
        **chosen,
    }
    base["train"]["init"] = init
    return resolve(Recipe, base, *override_layers(overrides, **options))


def _process(model: Model, known: dict[str, Any]) -> dict[str, Any]:
    """Return the process as a recipe has it; it is not read to build anything, but shown to people."""
    if known.get("process"):
        return dict(known["process"])
    denoiser = model.denoiser
    assert isinstance(denoiser, NetworkDenoiser)
    names = GaussianOptions.__dataclass_fields__["schedule"].type
    schedule = denoiser.process.schedule.name
    plain = {"kind": "gaussian", "prediction": denoiser.prediction, "data_std": denoiser.data_std}
    return {**plain, "schedule": schedule} if f'"{schedule}"' in str(names) else plain


def _open(model: Model, data: Any, options: DataOptions) -> Dataset:
    """Open data in the model's units."""
    if is_name(data):
        return open_data(options.source, options, spec=model.spec)
    if isinstance(data, (np.ndarray, Tensor)):
        x = torch.as_tensor(data)
        if tuple(x.shape[1:]) != tuple(model.spec.shape):
            raise DataError(f"data has shape {tuple(x.shape)}; the model's items need (N, {model.spec.shape}).")
        x = x.float() if x.is_floating_point() else x
        return TensorDataset(data=x, spec=replace(model.spec, classes=(), cond={}))  # an array has no labels
    if not hasattr(data, "batch") or not hasattr(data, "spec"):
        raise DataError(f"cannot tune on a {type(data).__name__}; give a name, a path, an array or a data set.")
    if tuple(data.spec.shape) != tuple(model.spec.shape):
        raise DataError(f"the data's items are {tuple(data.spec.shape)}, the model's {tuple(model.spec.shape)}.")
    return data


def _short(name: str) -> str:
    """Return the last part of a model's name; "model" where it has none."""
    return Path(name).name or "model"
