"""`Solver`: the rule of a step. It holds options, never a denoiser and never state.

`plan` writes the coefficients, `step` applies them. Every Gaussian solver is affine in the state and in the
posterior means, so `AffineSolver.step` serves them all and a new solver is a rule for coefficients: give
`coefficients` (one evaluation per step) or `plan` (several).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import check_grid
from undiffuse.sampling.plan import AffineStage, Plan, Renoise, Stage, row_time
from undiffuse.sampling.steps import Steps


class Memory(NamedTuple):
    """What a run remembers between stages.

    Args:
        start: State at the beginning of the current step; None between steps.
        means: Posterior means met in the current step, oldest first.
        past: Posterior means of earlier steps, newest first.
    """

    start: Tensor | None = None
    means: tuple[Tensor, ...] = ()
    past: tuple[Tensor, ...] = ()


class Solver(ABC):
    """Base of all solvers, continuous and discrete.

    Attributes:
        discrete: Whether it walks a categorical process.
        stochastic: Whether steps draw noise.
        draws_times: Whether it makes its own times, so that no grid is given.
        order: Order of convergence on a smooth problem.
    """

    discrete: ClassVar[bool] = False
    draws_times: ClassVar[bool] = False
    order: ClassVar[int] = 1

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return False

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
    """Coefficients of all steps of a one-evaluation solver, float64 (K,) or (K, B, F); see `AffineStage`."""

    state: Tensor
    mean: Tensor
    past: tuple[tuple[Tensor, ...], ...] = ()
    noise: Tensor | None = None


class AffineSolver(Solver):
    """A Gaussian solver with one evaluation per step, given by its coefficients."""

    def coefficients(self, steps: Steps) -> Columns:
        """Return the coefficients of all steps at once.

        Columns of elements with s = t are ignored, and steps to s = 0 become x = mean whatever is returned.
        """
        raise NotImplementedError

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Write the coefficients of every step."""
        return Plan(affine_stages(self.coefficients(Steps(process, grid)), grid), grid)

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw normals of the state's shape where the entry uses them."""
        used = isinstance(entry, Renoise) or (isinstance(entry, AffineStage) and entry.noise is not None)
        return noise.normal("step", entry.step, tuple(x.shape[1:]), x.dtype) if used else None

    def step(self, stage: AffineStage, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Apply the shared affine rule and update the memory."""
        now, weight = post.mean, stage.means[-1]
        known = min(len(memory.past), len(stage.past))
        past = stage.past[known - 1] if known else ()
        for factor in past:  # c (D_past - D_now), with the second part taken into the weight of D_now
            weight = weight - factor
        moved = _add(x * stage.state, weight, now)
        for factor, mean in zip(past, memory.past, strict=False):
            moved = _add(moved, factor, mean)
        for factor, mean in zip(stage.means[:-1], memory.means, strict=True):
            moved = _add(moved, factor, mean)
        if stage.start is not None:
            moved = _add(moved, stage.start, memory.start)
        if z is not None:
            moved = _add(moved, stage.noise, z)
        if stage.frozen is not None:
            moved = torch.where(stage.frozen, x, moved)
        return moved, _remember(stage, x, now, memory)


def _add(total: Tensor, factor: Any, x: Any) -> Tensor:
    """total + factor * x, in one kernel where the factor is a float."""
    return total + factor * x if isinstance(factor, Tensor) else torch.add(total, x, alpha=factor)


def _remember(stage: AffineStage, x: Tensor, now: Tensor, memory: Memory) -> Memory:
    """Add the current mean: within the step, or, where the step closes, to the past of the elements that moved."""
    if not stage.closes:
        return Memory(memory.start if memory.start is not None else x, (*memory.means, now), memory.past)
    if not stage.past:
        return Memory()
    first = memory.means[0] if memory.means else now
    past = (first, *memory.past)[: len(stage.past)]
    if stage.frozen is not None:
        older = (*memory.past, *past[len(memory.past) :])
        past = tuple(torch.where(stage.frozen, old, new) for old, new in zip(older, past, strict=False))
    return Memory(past=past)


def affine_stages(columns: Columns, grid: Tensor) -> tuple[Stage, ...]:
    """Turn columns into stages: exact ends, frozen elements, Python floats where the grid is shared."""
    t, s = grid[:-1], grid[1:]
    ends = s == 0
    state = torch.where(ends, 0.0, columns.state)
    mean = torch.where(ends, 1.0, columns.mean)
    past = tuple(tuple(torch.where(ends, 0.0, c) for c in row) for row in columns.past)
    noise = None if columns.noise is None else torch.where(ends, 0.0, columns.noise)
    if grid.ndim == 1:
        return _shared_stages(grid, state, mean, past, noise)
    frozen = s == t
    keep = [torch.where(frozen, 0.0, c) for c in (state, mean)]
    return tuple(
        AffineStage(
            step=k,
            t=row_time(t[k]),
            s=row_time(s[k]),
            frozen=frozen[k] if bool(frozen[k].any()) else None,
            state=keep[0][k],
            means=(keep[1][k],),
            past=tuple(tuple(torch.where(frozen[k], 0.0, c[k]) for c in row) for row in past),
            noise=None if noise is None else torch.where(frozen[k], 0.0, noise[k]),
        )
        for k in range(len(t))
    )


def _shared_stages(
    grid: Tensor, state: Tensor, mean: Tensor, past: tuple[tuple[Tensor, ...], ...], noise: Tensor | None
) -> tuple[Stage, ...]:
    times, states, means = grid.tolist(), state.tolist(), mean.tolist()
    pasts = [[c.tolist() for c in row] for row in past]
    stds = [0.0] * len(states) if noise is None else noise.tolist()
    return tuple(
        AffineStage(
            step=k,
            t=times[k],
            s=times[k + 1],
            state=states[k],
            means=(means[k],),
            past=tuple(tuple(c[k] for c in row) for row in pasts),
            noise=stds[k] or None,
        )
        for k in range(len(states))
    )
