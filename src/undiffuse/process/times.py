"""Times in [0, 1] and how they meet a batch: a time is shared, per item, or per leading element of an item."""

from __future__ import annotations

import torch
from torch import Tensor

Time = float | Tensor


def check_time(t: Time, x: Tensor) -> None:
    """Refuse times that do not fit `x` (B, ...).

    Allowed are a Python number, `()`, `(B,)`, `(B, F)` and `(1, F)`, broadcast from the left over `x`.

    Raises:
        ValueError: A number outside [0, 1]; `(F,)`, which would be read as `(B,)`; or sizes that differ from `x`.
    """
    if not isinstance(t, Tensor):
        if not 0.0 <= t <= 1.0:
            raise ValueError(f"t={t} is outside [0, 1]; 0 is clean data and 1 is noise.")
        return
    if t.ndim == 0:
        return
    if t.ndim == 1:
        if t.shape[0] != x.shape[0]:
            raise ValueError(
                f"t has shape {tuple(t.shape)} but the batch has {x.shape[0]} items; give one time per item (B,), or "
                f"one per frame or element as (1, F) or (B, F)."
            )
        return
    fits = t.ndim <= x.ndim and t.shape[0] in (1, x.shape[0]) and t.shape[1:] == x.shape[1 : t.ndim]
    if not fits:
        raise ValueError(
            f"t has shape {tuple(t.shape)} but x has shape {tuple(x.shape)}; times broadcast from the left, so their "
            f"sizes must be (1 or {x.shape[0]}, {', '.join(str(size) for size in x.shape[1 : t.ndim])})."
        )


def align(t: Tensor, x: Tensor) -> Tensor:
    """Append axes of size 1 until `t` broadcasts from the left over `x`."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def expand_time(t: Time, x: Tensor) -> Tensor:
    """Return `t` as a tensor (B,) or (B, F) on the device of `x`, float64 unless it was a tensor already."""
    if not isinstance(t, Tensor):
        return x.new_full((x.shape[0],), t, dtype=torch.float64)
    if t.ndim == 0:
        return t.expand(x.shape[0])
    return t.expand(x.shape[0], *t.shape[1:])
