"""A push beside the step: the state moves, after each step, along a direction that the answer carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.plan import Plan, Renoise, Stage
from undiffuse.sampling.solver import Memory, Solver

PUSH = "push"
"""Name in a posterior's `extras` of what is added to the state after the step, (B, *)."""


@dataclass(frozen=True, kw_only=True)
class Pushed(Solver):
    """Another solver's steps, each followed by x + push, with the push of the answer that it used.

    Args:
        solver: Takes the steps; with one evaluation each.
    """

    solver: Solver

    @property
    def order(self) -> int:
        """That of the solver, where nothing is pushed."""
        return self.solver.order

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise."""
        return self.solver.stochastic

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Return the solver's plan."""
        return self.solver.plan(process, grid)

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw what the solver draws."""
        return self.solver.draw(entry, x, noise)

    def step(self, stage: Stage, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Step and push; frozen elements stay."""
        moved, memory = self.solver.step(stage, x, post, memory, z)
        push = post.extras[PUSH].to(moved.dtype)
        if stage.frozen is not None:
            push = torch.where(stage.frozen, 0.0, push)
        return moved + push, memory
