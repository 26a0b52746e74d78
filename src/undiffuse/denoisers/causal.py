"""A network that reads from left to right, as a denoiser: the autoregressive baseline of masked diffusion.

An absorbing process whose masks open in one fixed order, the first to the last, is an autoregressive model. So the same
objects serve both: the same network with a causal mask, the same trainer, the same wrappers of posteriors; the mask of
the process stands before the first token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.errors import PlanError
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.past import Past
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.times import Time
from undiffuse.spec import DataSpec


class CausalDenoiser(CategoricalDenoiser):
    """Law of each token given those before it, p(x_i | x_1 .. x_{i-1}), whatever stands at i and behind.

    Args:
        backbone: A causal network from ids (B, L) to logits (B, L, K), such as `Transformer(causal=True)`.
        process: Absorbing; its mask is what the network reads before the first token.
        spec: What one item is.

    Raises:
        ValueError: The process is of another kind.
    """

    def __init__(self, backbone: nn.Module, process: CategoricalProcess, *, spec: DataSpec | None = None) -> None:
        if process.kind != "absorbing":
            raise ValueError(f"a causal network goes with process.corruption=absorbing, not {process.kind}.")
        super().__init__(backbone, process, spec=spec, time_dependent=False)
        self._reading: _Reading | None = None

    @property
    def causal(self) -> bool:
        """True: a token's answer depends on those before it only."""
        return True

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> CategoricalPosterior:
        """Return log p(x_i | x_1 .. x_{i-1}) of all places of `x` (B, L), in one pass; times mean nothing.

        Inside `reading` it is (B, M, L) of the places behind each of the M tokens that were read last, `x`.
        """
        self.process.check_tokens(x)
        if self._reading is not None:
            past = self._reading.turn(self.backbone, x)
            return self._posterior(self.backbone(x, None, cond, past), self._reading.read, self._reading.capacity)
        before = torch.full_like(x[:, :1], self.process.classes)
        return self._posterior(self.backbone(torch.cat((before, x[:, :-1]), dim=1), None, cond), 0, x.shape[1])

    def _posterior(self, heads: dict[str, Tensor], first: int, length: int) -> CategoricalPosterior:
        """Return the posterior of the places from `first` of items with `length` places."""
        logits = heads["out"]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.process.blocks:  # the ids that each place has
            allowed = self.process.within_blocks(logits.new_zeros(length, logits.shape[-1]))
            logits = logits + allowed[first : first + logits.shape[1]]
        return CategoricalPosterior(logits)


class _Reading:
    """What a causal denoiser remembers while one batch is written: one memory for each question asked per token.

    Guidance asks several questions per token, in one batch or in turn; each is answered from its own memory.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.read = 0
        self._asked = 0
        self._memories: list[tuple[int, list[Past]]] = []

    def begin(self, read: int) -> None:
        """Hear that `read` tokens were read before the next question."""
        self.read, self._asked = read, 0

    def turn(self, backbone: Any, x: Tensor) -> list[Past]:
        """Return the memory of this question.

        Raises:
            PlanError: It was not asked at every token, or with other rows, so its memory has gaps.
        """
        if self._asked == len(self._memories):
            self._memories.append((len(x), backbone.new_past(self.capacity)))
        rows, past = self._memories[self._asked]
        self._asked += 1
        if past[0].length != self.read or rows != len(x):
            raise PlanError(
                "guidance that changes on the way cannot be remembered by a network that reads from left to right; "
                "leave guidance_interval out."
            )
        return past


@contextmanager
def reading(denoiser: Denoiser, capacity: int) -> Iterator[list[_Reading]]:
    """Let the causal denoisers inside `denoiser` remember what they read, up to `capacity` tokens, until the end.

    Yields what is told before each token how many were read: `begin`.
    """
    inside = [part for part in denoiser.modules() if isinstance(part, CausalDenoiser)]
    try:
        for part in inside:
            part._reading = _Reading(capacity)
        yield [part._reading for part in inside if part._reading is not None]
    finally:
        for part in inside:
            part._reading = None


def token_denoiser(
    backbone: Any, process: CategoricalProcess, *, spec: DataSpec | None = None, **options: Any
) -> CategoricalDenoiser:
    """Return the denoiser of a token network: a causal one where the network is causal."""
    if getattr(backbone, "causal", False):
        return CausalDenoiser(backbone, process, spec=spec)
    return CategoricalDenoiser(backbone, process, spec=spec, **options)
