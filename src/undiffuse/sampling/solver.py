"""`Solver`: the rule of a step. It holds options, never a denoiser and never state.

`plan` writes the coefficients, `step` applies them. Every Gaussian solver is affine in the state and in the
posterior means, so `AffineSolver.step` serves them all and a new solver is a rule for coefficients: give
`coefficients` (one evaluation per step) or `plan` (several).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import count, pairwise, repeat
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess, combined, plus, scaled
from undiffuse.process.grid_names import PUBLISHED
from undiffuse.process.grids import check_grid, make_grid
from undiffuse.process.schedules import Schedule
from undiffuse.sampling.brownian import on_path, path_normal
from undiffuse.sampling.plan import AffineStage, Plan, Renoise, Stage, row_time
from undiffuse.sampling.steps import Steps


@dataclass(slots=True)
class Memory:
    """What a run remembers between stages. Never changed, like the entries of a plan.

    Args:
        start: State at the beginning of the current step; None between steps.
        means: Posterior means met in the current step, newest first.
        past: Posterior means of earlier steps, newest first.
    """

    start: Tensor | None = None
    means: tuple[Tensor, ...] = ()
    past: tuple[Tensor, ...] = ()


NOTHING = Memory()


class Solver(ABC):
    """Base of all solvers, continuous and discrete.

    Attributes:
        discrete: Whether it walks a categorical process.
        stochastic: Whether steps draw noise.
        draws_times: Whether it makes its own times, so that no grid is given.
        reads_start: Whether its plan depends on the state at the start, which is then made before it.
        order: Order of convergence on a smooth problem; an option where a solver has several.
        evaluations: Evaluations per step, for people: "1", "2 (1 in the last)", "adaptive".
        needs: What it needs beyond a denoiser and a grid, for people: "a variance head"; empty for nothing.
        grid: The grid that it was published with, for people, and for `make_grid` where `published_grid` is not
            overridden; empty for none.
    """

    discrete: ClassVar[bool] = False
    draws_times: ClassVar[bool] = False
    reads_start: ClassVar[bool] = False
    evaluations: ClassVar[str] = "1"
    needs: ClassVar[str] = ""

    @property
    def order(self) -> int:
        """Order of convergence; a class attribute, or an option where a solver has several."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return False

    @property
    def grid(self) -> str:
        """The grid that it was published with; a class attribute, or a choice by an option."""
        return ""

    def published_grid(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the grid of `steps` steps that the method was published with, float64 (steps + 1,).

        Raises:
            ValueError: There is none, or `steps` is below 1.
        """
        if not self.grid:
            raise ValueError(f"{type(self).__name__} was published without a grid of its own; take grid='logsnr'.")
        return make_grid(schedule, steps, self.grid)

    def named_grid(self, schedule: Schedule, steps: int, name: str) -> Tensor:
        """Return the grid of a name: "published", or a shape of `make_grid`.

        Raises:
            ValueError: See `published_grid` and `make_grid`.
        """
        return self.published_grid(schedule, steps) if name == PUBLISHED else make_grid(schedule, steps, name)

    def prepare(
        self, process: GaussianProcess | CategoricalProcess, grid: Tensor | None, x: Tensor, noise: NoiseSource
    ) -> Plan:
        """Check that process, grid and state fit this solver and return the plan.

        Raises:
            PlanError: They do not, or no grid was given.
        """
        if isinstance(process, CategoricalProcess) != self.discrete:
            world = "categorical" if self.discrete else "Gaussian"
            raise PlanError(
                f"{type(self).__name__} walks {world} processes; this denoiser has a {type(process).__name__}."
            )
        if grid is None:
            raise PlanError(f"{type(self).__name__} needs a grid; make one with make_grid(schedule, steps).")
        return self.plan(process, check_grid(grid, tuple(x.shape)))

    @abstractmethod
    def plan(self, process: Any, grid: Tensor) -> Plan:
        """Write all coefficients for a checked grid, in float64."""

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw the random numbers that `entry` needs."""
        return None

    @property
    def reuses(self) -> bool:
        """Whether the answer to an unchanged state serves again; for denoisers that do not depend on the time."""
        return False

    def idle(self, stage: Any, x: Tensor) -> bool:
        """Return whether `stage` leaves `x` as it is whatever the denoiser says, so that it is not asked."""
        return False

    @abstractmethod
    def step(self, stage: Any, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Apply a stage; multiplies and adds only."""


@dataclass(frozen=True)
class Columns:
    """Coefficients of all steps of a one-evaluation solver, float64 (K,) or (K, B, F):

        x = state * x + mean * D_now + sum_j past[m - 1][j] (Q_past_j - Q_now) + noise * z

    with the m newest remembered answers Q, newest first. Memory enters as a difference, so where nothing is remembered
    the rest is a first-order step by itself. Q is the mean D, or with `remembered` = (a, b) what a x + b D was then
    (the noise, for rules that extrapolate it).
    """

    state: Tensor
    mean: Tensor
    past: tuple[tuple[Tensor, ...], ...] = ()
    noise: Tensor | None = None
    remembered: tuple[Tensor, Tensor] | None = None


class AffineSolver(Solver):
    """A Gaussian solver with one evaluation per step, given by its coefficients.

    Attributes:
        path: Whether the noise of the steps is that of one Brownian path; an option of stochastic solvers.
    """

    path: bool = False

    @property
    def temperature(self) -> float:
        """Temperature tau of the SDE whose noise the steps have, for the clock of the path."""
        return 1.0

    def coefficients(self, steps: Steps) -> Columns:
        """Return the coefficients of all steps at once.

        Columns of elements with s = t are ignored, and steps to s = 0 become x = mean whatever is returned.
        """
        raise NotImplementedError

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Write the coefficients of every step."""
        return Plan(self.stages(process, grid, self.coefficients(Steps(process, grid))), grid)

    def stages(self, process: GaussianProcess, grid: Tensor, columns: Columns) -> tuple[Stage, ...]:
        """Turn columns into stages, whose noise is that of a Brownian path where `path` says so."""
        stages = affine_stages(columns, grid)
        return on_path(stages, process.schedule, grid, self.temperature) if self.path else stages

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw normals of the state's shape where the entry uses them."""
        if isinstance(entry, AffineStage) and entry.path is not None:
            return path_normal(entry.path, noise, tuple(x.shape[1:]), x.dtype)
        used = isinstance(entry, Renoise) or (isinstance(entry, AffineStage) and entry.noise is not None)
        return noise.normal("step", entry.step, tuple(x.shape[1:]), x.dtype) if used else None

    def step(self, stage: AffineStage, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Apply the shared affine rule and update the memory."""
        rows, past = stage.means, memory.past
        if stage.remembered is None:
            kept = met = (post.mean, *memory.means)
        else:
            kept = (plus(scaled(stage.remembered[0], x), stage.remembered[1], post.mean),)
            met = (post.mean, *kept)
        moved = combined(stage.state, x, rows[len(past)] if len(past) < len(rows) else rows[-1], (*met, *past))
        if stage.start is not None:
            assert memory.start is not None
            moved = plus(moved, stage.start, memory.start)
        if z is not None:
            assert stage.noise is not None
            moved = plus(moved, stage.noise, z)
        if stage.frozen is not None:
            moved = torch.where(stage.frozen, x, moved)
        return moved, _remember(stage, x, kept, memory)


def _remember(stage: AffineStage, x: Tensor, met: tuple[Tensor, ...], memory: Memory) -> Memory:
    """Keep the means met within the step, or, where it closes, the first of them for the elements that moved."""
    if not stage.closes:
        return Memory(memory.start if memory.start is not None else x, met, memory.past)
    if len(stage.means) == 1:
        return NOTHING
    past = (met[-1], *memory.past)[: len(stage.means) - 1]
    if stage.frozen is not None:
        older = (*memory.past, *past[len(memory.past) :])
        past = tuple(torch.where(stage.frozen, old, new) for old, new in zip(older, past, strict=False))
    return Memory(None, (), past)


def affine_stages(columns: Columns, grid: Tensor) -> tuple[Stage, ...]:
    """Turn columns into stages: exact ends, frozen elements, Python floats where the grid is shared."""
    if grid.ndim == 1:
        return _shared_stages(columns, grid.tolist())
    t, s = grid[:-1], grid[1:]
    ends, frozen = s == 0, s == t
    state = torch.where(frozen | ends, 0.0, columns.state)
    rows = [[torch.where(frozen, 0.0, torch.where(ends, at_end, c)) for c, at_end in row] for row in _rules(columns)]
    noise = None if columns.noise is None else torch.where(frozen | ends, 0.0, columns.noise)
    kept = columns.remembered and [torch.where(frozen, 0.0, c) for c in columns.remembered]
    return tuple(
        AffineStage(
            step=k,
            t=row_time(t[k]),
            s=row_time(s[k]),
            frozen=frozen[k] if bool(frozen[k].any()) else None,
            state=state[k],
            means=tuple(tuple(c[k] for c in row) for row in rows),
            noise=None if noise is None else noise[k],
            remembered=(kept[0][k], kept[1][k]) if kept else None,
        )
        for k in range(len(t))
    )


def _rules(columns: Columns) -> list[list[tuple[Tensor, float]]]:
    """Factors of the current mean and of m = 0, 1, ... remembered ones, with the values they take in a step to 0."""
    rows: list[tuple[Tensor, ...]] = [(columns.mean,)]
    for row in columns.past:
        total = sum(row[1:], start=row[0])
        rows.append((columns.mean - total, *row) if columns.remembered is None else (columns.mean, -total, *row))
    return [[(c, 0.0 if age else 1.0) for age, c in enumerate(row)] for row in rows]


def _shared_stages(columns: Columns, times: list[float]) -> tuple[Stage, ...]:
    """The stages of a shared grid: Python floats, and only the last step can end at 0."""

    def numbers(column: Tensor, at_end: float = 0.0) -> list[float]:
        values = column.tolist()
        return [*values[:-1], at_end] if times[-1] == 0 else values

    rows = [zip(*(numbers(c, at_end) for c, at_end in row), strict=True) for row in _rules(columns)]
    stds = repeat(None) if columns.noise is None else numbers(columns.noise)
    kept = repeat(None) if columns.remembered is None else zip(*(c.tolist() for c in columns.remembered), strict=True)
    return tuple(
        AffineStage(k, t, s, state, means, noise=std or None, remembered=pair)
        for k, (t, s), state, means, std, pair in zip(
            count(), pairwise(times), numbers(columns.state), zip(*rows, strict=True), stds, kept, strict=False
        )
    )
