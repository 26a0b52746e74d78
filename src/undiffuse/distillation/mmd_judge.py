"""What tuned samples are judged by, features that were not tuned on foremost; and the best sampler without tuning."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.data import Dataset
from undiffuse.denoisers.base import Denoiser
from undiffuse.distillation.mmd_features import Features
from undiffuse.errors import ConfigError, NotFiniteError, PlanError
from undiffuse.metrics.energy import energy_distance
from undiffuse.metrics.frechet import frechet_distance
from undiffuse.metrics.neighbours import memorisation
from undiffuse.models import Model
from undiffuse.models.conditions import Fitted, class_turns, fit_conditions
from undiffuse.models.guided import read_guidance
from undiffuse.noise import permutation
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.sampling.catalogue import CATALOGUE
from undiffuse.sampling.loop import SampleResult
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.solver import Solver
from undiffuse.spec import DataSpec

GRIDS = ("t", "logsnr", "karras")
"""Grids among which the best untuned sampler is looked for."""
SEARCHED = tuple(name for name, facts in CATALOGUE.items() if facts.is_ode and not facts.makes_times)
"""Solvers among which it is looked for: all that are deterministic and take a grid."""
_CHUNK = 256
_FEWEST, _SHORT_LIST = 64, 6  # samples of the first round of the search, and candidates of the second


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
        choosing: Features that checkpoints are chosen by; None: the independent ones, whose figures then say a little
            too much good of the checkpoint chosen.
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
        choosing: Features | None = None,
        bounded: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        self.train, self.unseen = train.cpu(), None if held_out is None else held_out.cpu()
        self.tuned_on, self.independent, self.bounded = tuned_on, independent, bounded
        self.real = self.train if self.unseen is None else torch.cat([self.train, self.unseen])
        self.device = torch.device(device)
        self.real_tuned_on = self._features(tuned_on, self.real)
        self.real_independent = self._features(independent, self.real)
        self.choosing = independent if choosing is None else choosing
        self.real_choosing = self.real_independent if choosing is None else self._features(choosing, self.real)

    def __call__(self, samples: Tensor) -> Figures:
        """Return the figures of samples (n, *shape) in the denoiser's units."""
        x = self._shown(samples)
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
        return frechet_distance(self._features(self.independent, self._shown(samples)), self.real_independent)

    def choosing_distance(self, samples: Tensor) -> float:
        """Return the Frechet distance in the features that checkpoints are chosen by."""
        return frechet_distance(self._features(self.choosing, self._shown(samples)), self.real_choosing)

    def _shown(self, samples: Tensor) -> Tensor:
        x = samples.detach().cpu()
        return x.clamp(-1.0, 1.0) if self.bounded else x

    @torch.no_grad()
    def _features(self, features: Features, x: Tensor) -> np.ndarray:
        parts = [features(part.to(self.device)).double().cpu() for part in x.split(_CHUNK)]
        return torch.cat(parts).numpy()


def all_items(dataset: Dataset, most: int = 10_000) -> Tensor:
    """Return up to `most` items (N, *shape) of a data set, in its model units, at even distances."""
    count = len(dataset)
    rows = torch.arange(count) if count <= most else torch.arange(most) * count // most
    return torch.cat([dataset.batch(part)["x"] for part in rows.split(_CHUNK)])


def real_conditions(dataset: Dataset, spec: DataSpec | None, most: int) -> Fitted:
    """Return the conditions of up to `most` items in a mixed order, as the denoiser of `spec` takes them; none without.

    Conditions that only the data or only the denoiser have are left out.
    """
    shared = [] if spec is None else [name for name in dataset.spec.conditions if name in spec.conditions]
    if not shared:
        return Fitted()
    count = len(dataset)
    endless = getattr(dataset, "endless", False)
    rows = torch.arange(min(count, most)) if endless else permutation(0, 0, count)[:most]
    parts = [dataset.batch(part)["cond"] for part in rows.split(_CHUNK)]
    return Fitted((name, torch.cat([part[name] for part in parts]).cpu()) for name in shared)


def draw(model: Model, n: int, seed: int, conditions: Fitted | None = None, **sampling: Any) -> SampleResult:
    """Return samples (n, *shape) in the denoiser's units, of conditions of real items.

    Labels that are not given take turns.

    Args:
        model: Any model.
        n: How many.
        seed: Of the noise.
        conditions: Of real items, any number; repeated where they are fewer than `n`.
        sampling: Sampler and guidance, as `Model.sample_result` takes them.
    """
    cond = fit_conditions(class_turns(model.spec, n), n, model.state_spec, model.device)
    for name, rows in (conditions or {}).items():
        cond[name] = rows[torch.arange(n) % len(rows)].to(model.device)
    return model.sample_result(n, seed=seed, cond=cond or None, **sampling)


def samplers_of(
    model: Model, calls: int, names: Sequence[str] | None = None, **guidance: Any
) -> Iterator[SamplerChoice]:
    """Yield solvers x `GRIDS`, each with the most steps that make at most `calls` evaluations of the network.

    Args:
        model: A continuous model.
        calls: Evaluations per sample, those for guidance included.
        names: Solvers; None takes `SEARCHED`.
        guidance: Guidance of the sampling, as `Model.sample_result` takes it.

    Raises:
        ValueError: There is no solver of a name.
    """
    process = model.denoiser.process
    assert isinstance(process, GaussianProcess)
    asked = read_guidance(model, 1, Fitted(), **({"guidance": 1.0} | guidance)).wrap(model.denoiser)
    one_step = True  # to clean data every solver makes the same single step, so it is tried once for all
    for name in SEARCHED if names is None else names:
        solver = make_solver(name)
        for grid in GRIDS:
            steps = _most_steps(solver, process, grid, calls, asked)
            if steps > 1 or (steps and one_step):
                one_step = one_step and steps > 1
                yield SamplerChoice(name, steps, grid)


def _most_steps(solver: Solver, process: GaussianProcess, grid: Any, calls: int, asked: Denoiser) -> int:
    """Return the most steps of at most `calls` evaluations; 0 where one step takes more."""
    for steps in range(calls, 0, -1):
        try:
            plan = solver.plan(process, make_grid(process.schedule, steps, grid))
        except (PlanError, ValueError):  # a table of noise levels has too few of them for so many steps
            continue
        if sum(asked.calls(stage.t) for stage in plan.stages) <= calls:
            return steps
    return 0


def best_untuned(
    model: Model,
    calls: int,
    judge: Judge,
    *,
    n: int = 512,
    seed: int = 0,
    conditions: Fitted | None = None,
    names: Sequence[str] | None = None,
    **guidance: Any,
) -> SamplerChoice:
    """Return the sampler of at most `calls` evaluations whose samples are nearest to real items, independent features.

    All are tried with a quarter of the samples, and the best of them again with all, from the same noise. The features
    are those that are reported, which favours the untuned model.

    Args:
        model: The untuned model.
        calls: Evaluations per sample, those for guidance included.
        judge: Has the real items.
        n: Samples per candidate.
        seed: Their seed.
        conditions: Of real items, for conditional models.
        names: Solvers to look at; None takes `SEARCHED`.
        guidance: Guidance of the sampling, as `Model.sample_result` takes it.

    Raises:
        ConfigError: No solver makes so few evaluations.
        ValueError: There is no solver of a name.
    """

    def distance(choice: SamplerChoice, count: int) -> float:
        try:
            found = draw(model, count, seed, conditions, **choice.arguments(), **guidance)
        except NotFiniteError:
            return math.inf
        return judge.distance(found.x)

    choices = list(samplers_of(model, calls, names, **guidance))
    if not choices:
        raise ConfigError(f"no solver makes a sample in {calls} evaluation(s); give more, or less guidance.")
    few = max(n // 4, min(n, _FEWEST))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Frechet distance")  # few samples rank candidates, and report nothing
        first = {choice: distance(choice, few) for choice in choices}
        short_list = sorted(first, key=lambda choice: first[choice])[:_SHORT_LIST]
        return min(short_list, key=lambda choice: distance(choice, n))
