"""Two losses in one batch: the first rows get one of them, the rest the other.

Stratified uniforms are even over a batch, (u_0 + i / B) mod 1, so the first rows alone hold a stretch of them.
Multiplied by a whole number near 0.618 B they are uniform still, and even over every run of rows.
"""

from __future__ import annotations

from torch import Tensor

_GOLDEN = 0.6180339887498949


def first_rows(share: float, rows: int) -> int:
    """Return how many of `rows` rows a share is."""
    return round(share * rows)


def spread(u: Tensor) -> Tensor:
    """Return uniforms that are even over every run of rows, from stratified ones; float64 (B,)."""
    return (u * (int(_GOLDEN * len(u)) | 1)) % 1.0  # odd: coprime to the usual sizes of a batch
