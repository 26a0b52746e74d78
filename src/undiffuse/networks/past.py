"""What the blocks of a causal transformer remember of the tokens read so far, so that each is read once."""

from __future__ import annotations

import torch
from torch import Tensor


class Past:
    """Memory of one block during one reading of a batch: keys and values, and the last inputs of its convolution.

    Args:
        capacity: Most tokens that will be read; memory for all of them is taken with the first.

    Attributes:
        length: Tokens read.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._held: tuple[Tensor, Tensor] | None = None
        self._inputs: Tensor | None = None

    def add(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Remember keys and values (B, heads, M, d) of the next M tokens; return those of all so far."""
        if self._held is None:
            shape = (*key.shape[:2], self.capacity, key.shape[-1])
            self._held = key.new_empty(shape), value.new_empty(shape)
        first, self.length = self.length, self.length + key.shape[2]
        for held, new in zip(self._held, (key, value), strict=True):
            held[:, :, first : self.length] = new
        keys, values = (held[:, :, : self.length] for held in self._held)
        return keys, values

    def before(self, x: Tensor, count: int) -> Tensor:
        """Return `x` (B, M, D) with the `count` inputs before it, zeros before the first, (B, count + M, D)."""
        earlier = x.new_zeros(len(x), count, x.shape[-1]) if self._inputs is None else self._inputs
        joined = torch.cat((earlier, x), dim=1)
        self._inputs = joined[:, joined.shape[1] - count :]
        return joined
