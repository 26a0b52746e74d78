"""Shares of items, such as accuracies, with intervals that hold at 0 and at 1, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share of items with its 95 % interval.

    Args:
        hits: Items that count.
        n: All items.
        low: Lower end of the interval.
        high: Upper end.
    """

    hits: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share."""
        return self.hits / self.n

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % (95 %: {100 * self.low:.1f} to {100 * self.high:.1f})"

    @property
    def error(self) -> float:
        """Its standard error, sqrt(p (1 - p) / n)."""
        return math.sqrt(self.value * (1.0 - self.value) / self.n)


def share(hits: Tensor | Sequence[bool], interval: str = "wilson") -> Share:
    """Return the share of true items.

    Args:
        hits: Bool (n,).
        interval: Of 95 %: "wilson", which never leaves [0, 1] and holds at 0 and 1; or "normal", p +- 1.96 s.e., which
            papers print.

    Raises:
        ValueError: No items, or an unknown interval.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    flags = torch.as_tensor(hits, dtype=torch.bool)
    n, k = len(flags), int(flags.sum())
    if n == 0:
        raise ValueError("a share of no items has no value; give at least one.")
    p = k / n
    if interval == "wilson":
        return Share(k, n, *wilson(p, n))
    if interval == "normal":
        half = _NORMAL_95 * math.sqrt(p * (1 - p) / n)
        return Share(k, n, p - half, p + half)
    raise ValueError(f"interval={interval!r} is unknown; use wilson or normal.")


def wilson(p: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share `p` of `n` items."""
    z2 = _NORMAL_95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _NORMAL_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)
