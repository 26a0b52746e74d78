"""Data as a row of patches, and back, in any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def to_patches(x: Tensor, patch: int) -> Tensor:
    """Cut (B, C, *sizes) into (B, L, C * patch^n), row by row; every size is a multiple of `patch`."""
    dims = x.ndim - 2
    cut = x.reshape(*x.shape[:2], *(part for size in x.shape[2:] for part in (size // patch, patch)))
    counts, insides = [2 + 2 * axis for axis in range(dims)], [3 + 2 * axis for axis in range(dims)]
    return cut.permute(0, *counts, 1, *insides).flatten(dims + 1).flatten(1, dims)


def from_patches(tokens: Tensor, patch: int, sizes: Sequence[int]) -> Tensor:
    """Put (B, L, C * patch^n) together as (B, C, *sizes): the inverse of `to_patches`."""
    dims = len(sizes)
    counts = [size // patch for size in sizes]
    cut = tokens.reshape(tokens.shape[0], *counts, -1, *[patch] * dims)
    order = [place for axis in range(dims) for place in (1 + axis, dims + 2 + axis)]
    return cut.permute(0, dims + 1, *order).reshape(tokens.shape[0], -1, *sizes)
