r"""Ancestral sampling of categorical processes: from time to time, draw every token from p(x_s | x_t).

Tokens of one step are drawn independently given the same answer, which is the only error: it falls as 1 / steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.draw import Precision, sample_categorical, sample_unmasked
from undiffuse.process.times import Time
from undiffuse.sampling.plan import Coefficient, Plan, Renoise, Stage, row_time
from undiffuse.sampling.solver import Memory, Solver


@dataclass(kw_only=True)
class AncestralStage(Stage):
    """A step of a categorical process.

    Args:
        process: The process that is walked.
        open_rate: Probability that a mask opens in this step, for absorbing processes.
    """

    process: CategoricalProcess
    open_rate: Coefficient | None = None


@dataclass(frozen=True, kw_only=True)
class Ancestral(Solver):
    """Draws x_s from p(x_s | x_t) at every time of the grid; one evaluation per step.

    Absorbing processes draw in two stages, whether and then which, so that no precision is lost to the mask's
    probability of 1 - O(1 / steps). Unlike MDLM, the last step draws too, instead of taking the arg-max.

    Args:
        cache: Ask again only when a token has changed, and not at all once no mask is left: the same samples with at
            most min(steps, L) evaluations of a row, N (1 - (1 - 1/N)^L) expected with keep = 1 - t. For denoisers that
            do not depend on the time. Looks at the state on the host before each step.
        precision: "float32-gumbel" draws as the paper's flawed samplers do, to reproduce its experiment.

    Sources: Austin et al. 2021, arXiv:2107.03006; Sahoo et al. 2024, arXiv:2406.07524; Zheng et al. 2024,
        arXiv:2409.02908.
    """

    discrete = True
    needs: ClassVar[str] = "tokens"
    cache: bool = False
    precision: Precision = "exact"

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise: always."""
        return True

    @property
    def reuses(self) -> bool:
        """Whether an unchanged state is answered from memory."""
        return self.cache

    def plan(self, process: CategoricalProcess, grid: Tensor) -> Plan:
        """Write one stage per step.

        Raises:
            PlanError: The grid ends above 0, where tokens would be left noisy.
        """
        if bool((grid[-1] > 0).any()):
            raise PlanError("the grid ends above t = 0, where tokens are still noise; end it at 0.")
        return Plan(tuple(_stage(process, step, grid) for step in range(len(grid) - 1)), grid)

    def idle(self, stage: Any, x: Tensor) -> bool:
        """Return whether no token can change any more: no mask is left of an absorbing process."""
        process: CategoricalProcess = stage.process
        return self.cache and process.kind == "absorbing" and not bool(process.is_mask(x).any())

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor:
        """Draw the uniforms of a step: (2, B, ...) for two stages, (B, ...), or (B, ..., states) for Gumbel draws."""
        assert isinstance(entry, AncestralStage)
        shape = tuple(x.shape[1:])
        if self.precision != "exact":
            return noise.uniform("step", entry.step, (*shape, entry.process.states))
        opens = noise.uniform("step", entry.step, shape)
        if entry.open_rate is None:
            return opens
        return torch.stack((opens, noise.uniform("class", entry.step, shape)))

    def step(
        self, stage: AncestralStage, x: Tensor, post: Any, memory: Memory, z: Tensor | None
    ) -> tuple[Tensor, Memory]:
        """Draw x_s."""
        assert z is not None
        if stage.open_rate is None or self.precision != "exact":
            law = transition_probs(stage.process, x, post, stage.t, stage.s)
            return sample_categorical(law, z, self.precision), memory
        assert stage.process.mask_id is not None
        opens, chooses = z
        return sample_unmasked(x, post.probs, stage.open_rate, opens, chooses, stage.process.mask_id), memory


def transition_probs(process: CategoricalProcess, x: Tensor, post: Any, t: Time, s: Time) -> Tensor:
    """Return the law p(x_s | x_t) of each token that a step of `Ancestral` draws from: (B, ..., states)."""
    return process.reverse(x, post.probs, t, s)


def _stage(process: CategoricalProcess, step: int, grid: Tensor) -> AncestralStage:
    t, s = row_time(grid[step]), row_time(grid[step + 1])
    rate = process.open_rate(t, s) if process.kind == "absorbing" else None
    return AncestralStage(step=step, t=t, s=s, process=process, open_rate=rate)
