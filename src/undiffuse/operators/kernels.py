"""Kernels of blurs, drawn: paths of a shaken camera and Gaussian blurs of any width, a function of their numbers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise
from undiffuse.operators.blur import gaussian_line, motion_kernel


def draw_kernels(count: int, height: int, width: int, numbers: Iterable[int] | None = None) -> Tensor:
    """Return `count` kernels that sum to 1, float64 (count, height, width): paths first, half of them, then Gaussians.

    Each lies in the middle of an odd square, from which the size asked for is cut with its centre at (h // 2, w // 2).
    With `numbers`, those of them alone.
    """
    size, half = max(height, width) // 2 * 2 + 1, count // 2
    shares = KeyedNoise(0, range(count)).uniform("operator", 2, ())
    drawn = []
    for i in range(count) if numbers is None else numbers:
        if i < half:
            drawn.append(motion_kernel(size, float(shares[i].clamp(min=0.05)), i))
        else:
            line = gaussian_line(0.3 + float(shares[i]) * size / 4, size)
            drawn.append(line[:, None] * line)
    top, left = size // 2 - height // 2, size // 2 - width // 2
    kernels = torch.stack(drawn)[:, top : top + height, left : left + width]
    return kernels / kernels.sum((1, 2), keepdim=True)
