"""A push beside the step: the state moves, after each step, along a direction that the answer carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.sampling.around import Around
from undiffuse.sampling.plan import Stage
from undiffuse.sampling.solver import Memory

PUSH = "push"
"""Name in a posterior's `extras` of what is added to the state after the step, (B, *)."""


@dataclass(frozen=True, kw_only=True)
class Pushed(Around):
    """Another solver's steps, each followed by x + push, with the push of the answer that it used.

    The solver has one evaluation each.
    """

    def step(self, stage: Stage, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Step and push; frozen elements stay."""
        moved, memory = self.solver.step(stage, x, post, memory, z)
        push = post.extras[PUSH].to(moved.dtype)
        if stage.frozen is not None:
            push = torch.where(stage.frozen, 0.0, push)
        return moved + push, memory
