"""Time travel: go back up and come down again, so that what was put in place meets what grows around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.plan import Plan, Renoise, Stage, row_time
from undiffuse.sampling.solver import Memory, Solver


@dataclass(frozen=True, kw_only=True)
class Travelling(Solver):
    """Another solver's steps in groups of `jump`; each group is gone through `repeats` times, with noise added between.

    From the end of a group the state goes up to its start by the forward process q(x_t | x_s). The last group counts
    too, unless `last` is off.

    Args:
        solver: Takes the steps.
        jump: Steps per group.
        repeats: How often each group is gone through; 1 is without travel.
        last: Whether the group that ends with clean data is repeated as well.

    Raises:
        ValueError: A number below 1.

    Source: Lugmayr et al. 2022, "RePaint", arXiv:2201.09865, section 4.2; Wang et al. 2022, "DDNM", arXiv:2212.00490,
        section 3.3.
    """

    solver: Solver
    jump: int = 1
    repeats: int = 10
    last: bool = True

    def __post_init__(self) -> None:
        if self.jump < 1 or self.repeats < 1:
            raise ValueError(f"jump={self.jump} and repeats={self.repeats} must be at least 1; 1 and 1 is no travel.")

    @property
    def order(self) -> int:
        """That of the solver."""
        return self.solver.order

    @property
    def stochastic(self) -> bool:
        """Whether noise is drawn."""
        return self.repeats > 1 or self.solver.stochastic

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Write the solver's plan group by group, each entry with a step number, and so noise, of its own.

        Raises:
            PlanError: The grid has times per element, or the solver is no walk down one grid.
        """
        if grid.ndim != 1:
            raise PlanError("time travel needs times shared by the batch; this grid has times per element.")
        stages = self.solver.plan(process, grid).entries
        if any(isinstance(entry, Renoise) for entry in stages):
            raise PlanError(f"{type(self.solver).__name__} adds noise between its steps already; it cannot travel.")
        entries: list[Stage | Renoise] = []
        steps = len(grid) - 1
        number = 0
        for low in range(0, steps, self.jump):
            high = min(low + self.jump, steps)
            group: list[Any] = [entry for entry in stages if low <= entry.step < high]
            times = self.repeats if self.last or high < steps else 1
            for again in range(times):
                for entry in group:
                    entries.append(replace(entry, step=number + entry.step - low))
                number += high - low
                if again < times - 1:
                    t, s = row_time(grid[high]), row_time(grid[low])
                    scale, std = process.forward_kernel(t, s)
                    entries.append(Renoise(step=number, t=t, s=s, scale=scale, std=std))
                    number += 1
        return Plan(tuple(entries), grid)

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw what the solver draws."""
        return self.solver.draw(entry, x, noise)

    def step(self, stage: Stage, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Take the solver's step."""
        return self.solver.step(stage, x, post, memory, z)
