"""Writing token after token with a causal network: the exact sampler of autoregressive models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.causal import reading
from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.draw import sample_categorical
from undiffuse.sampling.plan import Plan
from undiffuse.sampling.solver import Memory, Solver


@dataclass(frozen=True, kw_only=True)
class LeftToRight(Solver):
    """Draws each token from its law given those before it: one evaluation per token that is not given, exact.

    The network remembers keys and values, so each token is read once. Given tokens must come first: a text can be
    continued, and gaps in it need a masked model.
    """

    discrete = True
    draws_times = True
    needs: ClassVar[str] = "a causal network; no grid"

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise: always."""
        return True

    def plan(self, process: Any, grid: Tensor) -> Plan:
        """Refuse: a causal network is not walked on a grid; the loop calls `write`.

        Raises:
            PlanError: Always.
        """
        raise PlanError("LeftToRight has no plan: it writes token after token.")

    def step(self, stage: Any, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Refuse, as `plan` does."""
        raise PlanError("LeftToRight has no steps of a plan: it writes token after token.")

    def write(
        self, denoiser: Denoiser, x: Tensor, cond: dict[str, Tensor] | None, noise: NoiseSource
    ) -> tuple[Tensor, int]:
        """Fill the masks of `x` (B, L) and return it with the evaluations of each row.

        Raises:
            PlanError: A mask stands before a given token, or the tokens lie on axes of their own.
        """
        if x.ndim != 2:
            raise PlanError(f"tokens of shape {tuple(x.shape)} have no order from left to right; expected (B, L).")
        process = denoiser.process
        assert isinstance(process, CategoricalProcess)  # as of all causal denoisers
        masked = process.is_mask(x)
        if bool((masked[:, :-1] & ~masked[:, 1:]).any()):
            raise PlanError(
                "a given token stands behind one that is not: a network that reads from left to right continues texts "
                "and does not fill gaps; use a masked model."
            )
        length = x.shape[1]
        first = int((~masked).sum(1).min()) if len(x) else length
        x, uniform, nfe = x.clone(), noise.uniform("class", 0, (length,)), 0
        before = torch.full_like(x[:, :1], process.classes)
        shown = torch.cat((before, x[:, :first]), dim=1)  # what was not read yet
        with torch.no_grad(), reading(denoiser, length) as memories:
            embedded = denoiser.embed(cond, len(x))
            for place in range(first, length):
                t = 1.0 - place / length
                for memory in memories:
                    memory.begin(place + 1 - shown.shape[1])
                nfe += denoiser.calls(t)
                law = denoiser(shown, t, embedded).logits[:, -1].double().softmax(-1)
                drawn = sample_categorical(law, uniform[:, place])
                shown = torch.where(masked[:, place], drawn, x[:, place])[:, None]
                x[:, place : place + 1] = shown
        return x, nfe
