"""The fast sampler of the released VQ-Diffusion code as it is: the baseline of strides with the right kernel.

It skips levels of the table but draws from the law of one step: at level i, with `skip` levels left out, from the step
that ends at level i - skip - 1 and begins one above. So masks open as if one level had passed, and most of them are
left to the last call, which draws them all at once.

Source: `sample_fast` of the code of Gu et al. 2022, arXiv:2111.14822.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.papers.token_chains import all_sequences, sequence_law
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.draw import sample_categorical
from undiffuse.process.grids import uniform_grid
from undiffuse.sampling.ancestral import Ancestral, AncestralStage
from undiffuse.sampling.plan import Plan
from undiffuse.sampling.solver import Memory


@dataclass(kw_only=True)
class PublishedStage(AncestralStage):
    """A call whose law is that of another step: from `law_t` to `law_s`."""

    law_t: float
    law_s: float


@dataclass(frozen=True, kw_only=True)
class PublishedStrides(Ancestral):
    """Walks levels T - 1, T - 2 - skip, ..., 0 of a table; a grid is needed by form and not read.

    Args:
        levels: T.
        skip: Levels left out between two calls.
    """

    levels: int = 100
    skip: int = 9

    def plan(self, process: CategoricalProcess, grid: Tensor) -> Plan:
        """Write one stage per call."""
        index = called_levels(self.levels, self.skip)
        times = [(i + 1) / self.levels for i in index]
        stages = [
            PublishedStage(step=step, t=t, s=s, process=process, law_t=law / self.levels, law_s=(law - 1) / self.levels)
            for step, (t, s, law) in enumerate(zip(times, [*times[1:], 0.0], self.laws(), strict=True))
        ]
        return Plan(tuple(stages), torch.tensor([*times, 0.0], dtype=torch.float64))

    def laws(self) -> list[int]:
        """Return in levels, counted from 1, where the step begins whose law each call draws from."""
        index = called_levels(self.levels, self.skip)
        return [1 + (i - self.skip if i > self.skip else i) for i in index]

    def step(
        self, stage: AncestralStage, x: Tensor, post: Any, memory: Memory, z: Tensor | None
    ) -> tuple[Tensor, Memory]:
        """Draw from the law of the other step."""
        assert isinstance(stage, PublishedStage) and z is not None
        return sample_categorical(stage.process.reverse(x, post.probs, stage.law_t, stage.law_s), z), memory

    def left(self, process: CategoricalProcess) -> float:
        """Return the share of the masks that is left to the last call."""
        share = 1.0
        for law in self.laws()[:-1]:
            share *= float(process.masked((law - 1) / self.levels)) / float(process.masked(law / self.levels))
        return share


def strided_law(denoiser: JointDenoiser, solver: PublishedStrides) -> Tensor:
    """Return the law of sequences that the solver samples, propagated exactly: float64 (K,) * L."""
    process, length = denoiser.process, denoiser.length
    x = all_sequences(process.states, length)
    noise = process.marginal(torch.full((1, length, process.classes), 1 / process.classes, dtype=torch.float64), 1.0)
    law = sequence_law(noise)[0]
    for stage in solver.plan(process, uniform_grid(1)).stages:
        assert isinstance(stage, PublishedStage)
        reached = law > 0
        probs = denoiser(x[reached], stage.t).probs
        law = law[reached] @ sequence_law(process.reverse(x[reached], probs, stage.law_t, stage.law_s))
    return law.view((process.states,) * length)[(slice(process.classes),) * length]


def called_levels(levels: int, skip: int) -> list[int]:
    """Return the levels that are called, from above; 0 is the last."""
    index = list(range(levels - 1, -1, -1 - skip))
    return index if index[-1] == 0 else [*index, 0]
