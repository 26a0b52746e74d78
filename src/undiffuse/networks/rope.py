"""Rotary positions on a grid of any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from undiffuse.networks.attention import Rotary

# Slowest turn, as a wavelength in tokens over 2 pi: lines of text and signals are long, sides of images short.
_LONGEST_LINE = 10_000.0
_LONGEST_SIDE = 100.0


def axial_rotary(counts: Sequence[int], head_dim: int, like: Tensor) -> Rotary:
    """Return the turns of the tokens of a grid, row by row, on the device and in the dtype of `like`.

    Pairs of features take turns in belonging to one of the axes, and are turned by the place on that axis. So
    attention sees differences of places only, and any size of grid will do.

    Args:
        counts: Tokens along each of the n axes.
        head_dim: Features of a head, at least 2 n, even.
        like: For device and dtype.

    Source: Heo et al. 2024, "Rotary Position Embedding for Vision Transformer", section 3.2 (axial), arXiv:2403.13298.
    """
    # In half precision the angle of position 1000 would be off by whole radians.
    dtype = torch.promote_types(like.dtype, torch.float32)
    pair = torch.arange(head_dim // 2, device=like.device)
    axis, turn = pair % len(counts), (pair // len(counts)).to(dtype)
    share = turn * len(counts) / (head_dim // 2)  # 0 at the fastest pair of an axis, nearly 1 at the slowest
    longest = _LONGEST_LINE if len(counts) == 1 else _LONGEST_SIDE
    angles = grid_places(counts, like.device).to(dtype)[:, axis] * longest**-share
    return Rotary(angles.cos().to(like.dtype), angles.sin().to(like.dtype))


def grid_places(counts: Sequence[int], device: torch.device) -> Tensor:
    """Return the place of every token on every axis, int64 (L, n), row by row."""
    lines = (torch.arange(count, device=device) for count in counts)
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, -2)
