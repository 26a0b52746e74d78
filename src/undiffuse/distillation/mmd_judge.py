"""What tuned samples are judged by: features that were tuned on, features that were not, pixels, spread, copies."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.data import Dataset
from undiffuse.distillation.mmd_features import Features
from undiffuse.errors import PlanError
from undiffuse.metrics.energy import energy_distance
from undiffuse.metrics.frechet import frechet_distance
from undiffuse.metrics.neighbours import memorisation
from undiffuse.models import Model
from undiffuse.models.conditions import class_turns
from undiffuse.noise import permutation
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.sampling.registry import SOLVERS, make_solver

GRIDS = ("t", "logsnr", "karras")
"""Grids among which the best untuned sampler is looked for."""
USUAL = ("ddim", "heun", "dpm++2m", "unipc2", "unipc-2", "unipc")
"""Solvers among which it is looked for, as far as there are such."""
_CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a set of samples is worth.

    Args:
        independent: Frechet distance to all real items in features that were not tuned on.
        held_out: The same to the held-out ones alone.
        tuned_on: Frechet distance to all real items in the features of the tuning.
        energy: Energy distance of the values themselves to all real items, unbiased.
        spread: Variance of the independent features, summed, as a share of that of real items; below 1 is less variety.
        copies: Share of samples that lie nearer to training items than to as many held-out ones; 0.5 is none. NaN, as
            `held_out`, where nothing is held out.
    """

    independent: float
    held_out: float
    tuned_on: float
    energy: float
    spread: float
    copies: float


@dataclass(frozen=True)
class SamplerChoice:
    """A sampler by names: solver, number of steps, grid."""

    solver: str
    steps: int
    grid: str

    def arguments(self) -> dict[str, Any]:
        """Return it as keyword arguments of `Model.sample`."""
        return {"solver": self.solver, "steps": self.steps, "grid": self.grid}

    def __str__(self) -> str:
        return f"{self.solver}, {self.steps} step(s), grid {self.grid}"


class Judge:
    """Compares samples with real items.

    Args:
        train: Real items that were trained on, (N, *shape) in the denoiser's units.
        held_out: Real items that were not, (M, *shape); None where there are none.
        tuned_on: The features of the tuning.
        independent: Other features.
        bounded: Clip values to [-1, 1] first, as they are when shown.
        device: Where features are computed.
    """

    def __init__(
        self,
        train: Tensor,
        held_out: Tensor | None,
        tuned_on: Features,
        independent: Features,
        *,
        bounded: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.train, self.unseen = train.cpu(), None if held_out is None else held_out.cpu()
        self.tuned_on, self.independent, self.bounded = tuned_on, independent, bounded
        self.real = self.train if self.unseen is None else torch.cat([self.train, self.unseen])
        self.device = torch.device(device)
        self.real_tuned_on = self._features(tuned_on, self.real)
        self.real_independent = self._features(independent, self.real)

    def __call__(self, samples: Tensor) -> Figures:
        """Return the figures of samples (n, *shape) in the denoiser's units."""
        x = samples.detach().cpu()
        x = x.clamp(-1.0, 1.0) if self.bounded else x
        found = self._features(self.independent, x)
        unseen = self.unseen
        return Figures(
            independent=frechet_distance(found, self.real_independent),
            held_out=math.nan if unseen is None else self._held_out(found),
            tuned_on=frechet_distance(self._features(self.tuned_on, x), self.real_tuned_on),
            energy=energy_distance(x, self.real),
            spread=float(found.var(axis=0).sum() / self.real_independent.var(axis=0).sum()),
            copies=math.nan if unseen is None else memorisation(x, self.train, unseen).closer_to_train,
        )

    def _held_out(self, found: np.ndarray) -> float:
        """Return the Frechet distance to held-out items, quietly where they are few: it is one figure of several."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return frechet_distance(found, self.real_independent[len(self.train) :])

    def distance(self, samples: Tensor) -> float:
        """Return the Frechet distance in independent features alone."""
        x = samples.detach().cpu()
        x = x.clamp(-1.0, 1.0) if self.bounded else x
        return frechet_distance(self._features(self.independent, x), self.real_independent)

    @torch.no_grad()
    def _features(self, features: Features, x: Tensor) -> np.ndarray:
        parts = [features(part.to(self.device)).double().cpu() for part in x.split(_CHUNK)]
        return torch.cat(parts).numpy()


def all_items(dataset: Dataset, most: int = 10_000) -> Tensor:
    """Return up to `most` items (N, *shape) of a data set, in its model units, at even distances."""
    count = len(dataset)
    rows = torch.arange(count) if count <= most else torch.arange(most) * count // most
    return torch.cat([dataset.batch(part)["x"] for part in rows.split(_CHUNK)])


def all_labels(dataset: Dataset) -> Tensor | None:
    """Return the label of each item, int64 (N,), in a mixed order; None where there are none or too many to read."""
    if "label" not in dataset.spec.conditions or getattr(dataset, "endless", False):
        return None
    found = getattr(dataset, "class_labels", lambda: None)()
    return None if found is None else found.cpu()[permutation(0, 0, len(found))]


def draw(model: Model, n: int, seed: int, labels: Tensor | None = None, **sampler: Any) -> Tensor:
    """Return samples (n, *shape) in the denoiser's units, of the labels of real items, or of all classes in turn."""
    cond: dict[str, Any] = dict(class_turns(model.spec, n))
    if labels is not None and "label" in cond:
        cond["label"] = labels[torch.arange(n) % len(labels)]
    return model.sample_result(n, seed=seed, cond=cond or None, **sampler).x


def samplers_of(model: Model, calls: int, names: tuple[str, ...] | None = None) -> Iterator[SamplerChoice]:
    """Yield the deterministic samplers that make exactly `calls` evaluations of the network: solvers x `GRIDS`.

    Args:
        model: A continuous model.
        calls: Evaluations per sample.
        names: Solvers to look at, as far as there are such; None takes all.
    """
    process = model.denoiser.process
    assert isinstance(process, GaussianProcess)
    for name in SOLVERS:
        if names is not None and name not in names:
            continue
        solver = make_solver(name)
        if solver.discrete or solver.draws_times or solver.stochastic:
            continue
        for grid in GRIDS:
            for steps in range(1, calls + 1):
                try:
                    plan = solver.plan(process, make_grid(process.schedule, steps, grid))  # type: ignore[arg-type]
                except (PlanError, ValueError, NotImplementedError):
                    break  # it needs more than a grid, such as a variance head, and is no candidate
                if plan.evaluations == calls:
                    yield SamplerChoice(name, steps, grid)


def best_untuned(
    model: Model,
    calls: int,
    judge: Judge,
    *,
    n: int = 512,
    seed: int = 0,
    labels: Tensor | None = None,
    names: tuple[str, ...] | None = USUAL,
) -> SamplerChoice:
    """Return the sampler whose samples, at `calls` evaluations each, are nearest to real items in independent features.

    Args:
        model: The untuned model.
        calls: Evaluations per sample.
        judge: Has the real items.
        n: Samples per candidate.
        seed: Their seed.
        labels: Labels of real items, for conditional models.
        names: Solvers to look at; None takes all.
    """
    found: dict[SamplerChoice, float] = {}
    for choice in samplers_of(model, calls, names):
        found[choice] = judge.distance(draw(model, n, seed, labels, guidance=1.0, **choice.arguments()))
    return min(found, key=lambda choice: found[choice])
