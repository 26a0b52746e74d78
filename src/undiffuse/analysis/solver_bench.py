"""The bench on which `choose_solver` tries solvers: a model, the noise, and where the fine runs from it end."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.solver_results import Trial
from undiffuse.denoisers.base import Denoiser
from undiffuse.errors import UndiffuseError
from undiffuse.events import Advanced, Finished, Listener, Started
from undiffuse.metrics.energy import energy_distance
from undiffuse.models.conditions import class_turns, fit_conditions
from undiffuse.models.guided import GUIDANCE_ARGUMENTS, apply_wraps, read_guidance
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.process.grids import make_grid
from undiffuse.process.schedules import Schedule
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.solver import Solver

_SET_STEPS = 100  # of the reference of sets: its error is far below what a set can show
_NOT_FINITE = "the samples are not finite"


@dataclass
class Progress:
    """Counts trials for a listener."""

    listener: Listener
    total: int
    done: int = 0

    def start(self) -> None:
        """Say that work begins."""
        self.listener(Started("solvers", self.total, "trial"))

    def step(self) -> None:
        """Say that a trial is done."""
        self.done = min(self.done + 1, self.total)
        self.listener(Advanced("solvers", self.done))

    def finish(self) -> None:
        """Say that all are done."""
        self.listener(Finished("solvers"))


@dataclass
class Bench:
    """A model under trial. Samples 0 to n - 1 are measured, n to 2 n - 1 tune the grid, sets begin after them.

    Args:
        model: A model of continuous data.
        seed: Of the noise.
        n: Samples behind each error.
        set_size: Samples behind each energy distance; 0 for none.
        cond: Conditions; None: classes take turns.
        sampling: What all runs share.
        reference_steps: Steps of the fine runs.
        progress: Hears of each trial.
    """

    model: Model
    seed: int
    n: int
    set_size: int
    cond: dict[str, Any] | None
    sampling: dict[str, Any]
    reference_steps: int
    progress: Progress
    reference_error: float = math.nan
    floor: float | None = None
    ends: Tensor = field(default_factory=lambda: torch.empty(0))
    real: Tensor = field(default_factory=lambda: torch.empty(0))

    def __post_init__(self) -> None:
        spec, device, codec = self.model.state_spec, self.model.device, self.model.codec
        both = class_turns(self.model.spec, self.n) if self.cond is None else self.cond
        many = class_turns(self.model.spec, self.set_size) if self.cond is None else self.cond
        self.rows = fit_conditions(both or None, self.n, spec, device, codec)
        self.set_rows = self.rows
        if self.set_size:
            self.set_rows = fit_conditions(many or None, self.set_size, spec, device, codec)
        self.guided = self._guided()

    @property
    def schedule(self) -> Schedule:
        """The schedule of the model."""
        return self.model.denoiser.process.schedule  # type: ignore[union-attr]

    def prepare(self) -> None:
        """Make the references."""
        fine = {"solver": "dpm++2m", "grid": "logsnr"}
        both = [self.draw(i * self.n, steps=self.reference_steps, **fine) for i in (0, 1)]
        self.ends = torch.cat(both)
        half = self.draw(0, steps=self.reference_steps // 2, **fine)
        self.reference_error = float((half - both[0]).square().mean().sqrt())
        self.progress.step()
        if self.set_size:
            steps = min(self.reference_steps, _SET_STEPS)
            self.real, other = (self.draw_set(i, steps=steps, **fine) for i in (1, 2))
            self.floor = energy_distance(_points(self.real), _points(other))
        self.progress.step()

    def draw(self, first: int, **options: Any) -> Tensor:
        """Return n samples from number `first`, model units, float64 (n, *)."""
        return self._sample(self.n, first, self.rows, options).x.double()

    def draw_set(self, number: int, **options: Any) -> Tensor:
        """Return set `number` of samples, model units, float64 (set_size, *)."""
        return self._sample(self.set_size, 2 * self.n + number * self.set_size, self.set_rows, options).x.double()

    def steps(self, solver: str, shape: str, budget: int) -> int:
        """Return the most steps that cost at most `budget` evaluations; 0 where one step costs more."""
        rule, low, high = make_solver(solver), 0, budget
        while low < high:  # the cost rises with the steps; most solvers take all of the budget
            steps = high if high == budget and low == 0 else (low + high + 1) // 2
            low, high = (steps, high) if self.cost(rule, shape, steps) <= budget else (low, steps - 1)
        return low

    def cost(self, rule: Solver, shape: str, steps: int) -> float:
        """Return the evaluations of a run; infinite where a table has fewer noise levels than steps.

        Raises:
            ValueError: There is no grid of this name.
        """
        grid = make_grid(self.schedule, 1, shape)
        with suppress(ValueError):
            grid = make_grid(self.schedule, steps, shape)
        if len(grid) != steps + 1:
            return math.inf
        x = torch.zeros(1, *self.model.state_spec.shape)
        plan = rule.prepare(self.model.denoiser.process, grid, x, KeyedNoise(0, range(1)))
        return sum(self.guided.calls(stage.t) for stage in plan.stages)

    def error(self, first: int = 0, **options: Any) -> tuple[float, float, int]:
        """Return the RMS error per element of samples from number `first`, its standard error, and the evaluations.

        The error is infinite where the run fails.
        """
        try:
            run = self._sample(self.n, first, self.rows, options)
        except UndiffuseError:
            return math.inf, 0.0, 0
        squares = (run.x.double() - self.ends[first : first + self.n]).square().flatten(1).mean(1)
        mean = float(squares.mean())
        return mean**0.5, float(squares.std()) / self.n**0.5 / (2 * mean**0.5) if mean else 0.0, run.nfe

    def trial(self, solver: str, shape: str, budget: int) -> Trial:
        """Measure a deterministic solver on a grid."""
        steps = self.steps(solver, shape, budget)
        trial = Trial(solver=solver, grid=shape, steps=steps, budget=budget)
        if steps:
            error, uncertainty, nfe = self.error(solver=solver, steps=steps, grid=shape)
            trial = replace(trial, nfe=nfe, error=error, uncertainty=uncertainty)
            if not math.isfinite(error):
                trial = replace(trial, error=None, uncertainty=None, failure=_NOT_FINITE)
        self.progress.step()
        return trial

    def adaptive_trials(self, solver: str, tolerances: tuple[float, ...]) -> list[Trial]:
        """Measure a solver that chooses its own steps at several tolerances, relative ones; the absolute is a sixth."""
        trials = []
        for rtol in tolerances:
            options = (("rtol", rtol), ("atol", float(f"{rtol / 6:.2g}")))
            error, uncertainty, nfe = self.error(solver=solver, solver_options=dict(options))
            trial = Trial(solver=solver, grid="", steps=0, budget=nfe, nfe=nfe, options=options)
            if math.isfinite(error):
                trials.append(replace(trial, error=error, uncertainty=uncertainty))
        self.progress.step()
        return trials

    def distance(self, trial: Trial) -> float:
        """Return the energy distance of a trial's samples to those of the fine run."""
        found = self.draw_set(0, solver=trial.solver, steps=trial.steps, grid=trial.grid)
        return energy_distance(_points(found), _points(self.real))

    def random_trial(self, solver: str, shape: str, budget: int) -> Trial:
        """Measure a solver with random steps."""
        steps = self.steps(solver, shape, budget)
        trial = Trial(solver=solver, grid=shape, steps=steps, budget=budget)
        if steps:
            trial = replace(trial, nfe=int(self.cost(make_solver(solver), shape, steps)))
            try:
                trial = replace(trial, distance=self.distance(trial))
            except UndiffuseError:
                trial = replace(trial, failure=_NOT_FINITE)
        self.progress.step()
        return trial

    def _sample(self, n: int, first: int, rows: Any, options: dict[str, Any]) -> Any:
        shared = {"seed": self.seed, "first": first, "cond": rows, **self.sampling}
        return self.model.sample_result(n, **shared, **options)

    def _guided(self) -> Denoiser:
        """The denoiser as the trials ask it, to count its evaluations."""
        asked: Any = {key: value for key, value in self.sampling.items() if key in GUIDANCE_ARGUMENTS}
        wanted = read_guidance(self.model, self.n, self.rows, **asked)
        return wanted.wrap(apply_wraps(self.model.denoiser, self.sampling.get("wrap")))


def _points(x: Tensor) -> Any:
    return x.flatten(1).cpu().numpy()
