"""The light that a picture was taken in, y = f A(x) + m: a factor, and an offset for all of it or for each pixel.

Both are those that fit y best, in the sense of least squares; the offset of pixels is a smooth one.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from undiffuse.operators.jpeg import dct_matrix

_LEAST = 1e-6  # mean square of what is seen of a picture beyond what an offset explains


class Light:
    """y = f A(x) + m with one number m for all of a measurement."""

    def offset(self, rest: Tensor) -> Tensor:
        """Return m for y - f A(x) = `rest` (R, *): its mean, (R, 1, ...)."""
        return rest.mean(tuple(range(1, rest.ndim)), keepdim=True)

    def factor(self, seen: Tensor, y: Tensor) -> Tensor:
        """Return f (R, 1, ...) for A(x) = `seen` and y, (R, *) each, with the offset that goes with it."""
        axes = tuple(range(1, y.ndim))
        apart = seen - self.offset(seen)
        return (apart * y).mean(axes, keepdim=True) / (apart * seen).mean(axes, keepdim=True).clamp(min=_LEAST)


class UnevenLight(Light):
    """The same with m for each pixel, alike in all channels: m makes |rest - m|^2 + l^4 |Laplace m|^2 least.

    The square is the mean over channels, the Laplacian that of neighbouring pixels, which ends at the edge. Waves of
    2 pi l pixels are halved, longer ones pass. Towards infinite l this is `Light`.

    Args:
        reach: l, in units of the picture's longer side.
    """

    def __init__(self, reach: float) -> None:
        self.reach = reach

    def offset(self, rest: Tensor) -> Tensor:
        """Return m (R, 1, H, W): the cosines of the mean over channels, each divided by how much it bends."""
        height, width = rest.shape[-2:]
        rows, columns = (dct_matrix(n).to(rest) for n in (height, width))
        bent = (self.reach * max(height, width)) ** 2 * (_bend(height)[:, None] + _bend(width))
        waves = rows @ rest.mean(1, keepdim=True) @ columns.mT
        return rows.mT @ (waves / (1 + bent.square()).to(rest)) @ columns


@lru_cache(maxsize=16)
def _bend(n: int) -> Tensor:
    """Return minus the Laplacian's eigenvalue for each cosine of n pixels, float64 (n,)."""
    return 2 - 2 * torch.cos(math.pi * torch.arange(n, dtype=torch.float64) / n)
