"""Learned positions of tokens on a grid: a vector for each row, one for each column, added up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LearnedPlaces(nn.Module):
    """A vector (D,) for every token of a grid: the sum of those of its places on the n axes.

    So a grid of 32 x 32 tokens has 64 vectors to learn instead of 1024, and each of them is seen 32 times in an item.

    Args:
        sizes: Tokens along each axis; a line has one.
        width: Features D.

    Source: Gu et al. 2021 (VQ-Diffusion), section 4.1, arXiv:2111.14822.
    """

    def __init__(self, sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.axes = nn.ParameterList(nn.Parameter(0.02 * torch.randn(size, width)) for size in sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens along each axis."""
        return tuple(len(axis) for axis in self.axes)

    def forward(self) -> Tensor:
        """Return the vectors of all tokens, row by row, (L, D)."""
        axes = list(self.axes)
        total = axes[0]
        for axis in axes[1:]:
            total = total[..., None, :] + axis
        return total.flatten(0, -2)
