"""`Around`: a solver that takes another solver's steps, and does something beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from undiffuse.noise import NoiseSource
from undiffuse.process.schedules import Schedule
from undiffuse.sampling.plan import Plan, Renoise, Stage
from undiffuse.sampling.solver import Memory, Solver


@dataclass(frozen=True, kw_only=True)
class Around(Solver):
    """Base: what it does not override, it passes on.

    Args:
        solver: Takes the steps.
    """

    solver: Solver

    @property
    def order(self) -> int:
        """That of the solver."""
        return self.solver.order

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise."""
        return self.solver.stochastic

    @property
    def grid(self) -> str:
        """That of the solver."""
        return self.solver.grid

    def published_grid(self, schedule: Schedule, steps: int) -> Tensor:
        """Return that of the solver."""
        return self.solver.published_grid(schedule, steps)

    @property
    def reuses(self) -> bool:
        """Whether the solver does."""
        return self.solver.reuses

    def plan(self, process: Any, grid: Tensor) -> Plan:
        """Return the solver's plan."""
        return self.solver.plan(process, grid)

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw what the solver draws."""
        return self.solver.draw(entry, x, noise)

    def idle(self, stage: Any, x: Tensor) -> bool:
        """Return whether the solver is."""
        return self.solver.idle(stage, x)

    def step(self, stage: Any, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Apply the solver's step."""
        return self.solver.step(stage, x, post, memory, z)
