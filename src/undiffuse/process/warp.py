"""The time warp t' = S t / (1 + (S - 1) t), one object shared by training and sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class TimeWarp:
    """Moves times towards noise (shift above 1) or data (below 1); 0 and 1 stay.

    Args:
        shift: S > 0. On the straight line it divides the signal-to-noise ratio by S^2 everywhere.

    Raises:
        ValueError: `shift` is not positive.

    Source: Esser et al. 2024, "Scaling rectified flow transformers", eq. 23.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift={self.shift} must be positive; 1 leaves times as they are.")

    def __call__(self, t: Number) -> Number:
        """Warp times of any shape."""
        if self.shift == 1.0:
            return t
        return self.shift * t / (1 + (self.shift - 1) * t)

    def inverse(self, t: Number) -> Number:
        """Undo the warp."""
        if self.shift == 1.0:
            return t
        return t / (self.shift - (self.shift - 1) * t)

    def slope(self, t: Number) -> Number:
        """Derivative of the warped time by t."""
        if self.shift == 1.0:
            return torch.ones_like(t) if isinstance(t, Tensor) else 1.0
        return self.shift / (1 + (self.shift - 1) * t) ** 2
