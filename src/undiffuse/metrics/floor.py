"""The real-v-real floor: how far apart two sets of real data of the same size already are.

Most distances between finite sets are positive for two draws of one law. Reporting a distance as a
multiple of that floor, at equal set size, makes it comparable and tells when a model is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Distance = Callable[[Any, Any], float]


@dataclass(frozen=True, kw_only=True)
class FloorRatio:
    """A distance, its floor, and their ratio.

    Args:
        distance: Mean distance of samples to real training data.
        floor: Mean distance of real held-out to the same real training data.
        ratio: `distance / floor`; about 1 when samples are as good as real data.
        distance_spread: Standard deviation over the subsets; likewise `floor_spread` and `ratio_spread`.
            Subsets of one set overlap, so it is a measure of stability, not a standard error.
        n: Size of every subset.
        repeats: Number of subsets.
    """

    distance: float
    floor: float
    ratio: float
    distance_spread: float
    floor_spread: float
    ratio_spread: float
    n: int
    repeats: int


def ratio_to_floor(
    distance: Distance,
    samples: NDArray[Any],
    train: NDArray[Any],
    held_out: NDArray[Any],
    *,
    n: int | None = None,
    repeats: int = 20,
    seed: int = 0,
) -> FloorRatio:
    """Average `distance(samples, train)` and `distance(held_out, train)` over seeded subsets of equal size n.

    Args:
        distance: Maps two sets of rows to a number, 0 for equal laws in the limit.
        samples: Rows (N, *) to judge.
        train: Real rows; both distances of one repeat use the same subset of them.
        held_out: Real rows that are not among `train`.
        n: Size of every subset; None takes the largest that all three sets allow.
        repeats: Number of subsets, at least 1.
        seed: Seed of the subsets.

    Raises:
        ValueError: A set has fewer than n rows, or `repeats` is below 1.
    """
    sizes = {"samples": len(samples), "train": len(train), "held_out": len(held_out)}
    n = min(sizes.values()) if n is None else n
    if not 1 <= n <= min(sizes.values()) or repeats < 1:
        raise ValueError(f"n={n}, repeats={repeats} with sets of {sizes}; n may be at most the smallest set.")
    rng = np.random.default_rng(seed)
    values = np.empty((repeats, 2))
    for row in values:
        real, *others = (rows[rng.choice(len(rows), n, replace=False)] for rows in (train, samples, held_out))
        row[:] = [distance(other, real) for other in others]
    return _summary(values, n)


def _summary(values: NDArray[np.float64], n: int) -> FloorRatio:
    mean, spread = values.mean(axis=0), values.std(axis=0)
    ratios = _divide(values[:, 0], values[:, 1])
    return FloorRatio(
        distance=float(mean[0]),
        floor=float(mean[1]),
        ratio=float(_divide(mean[0], mean[1])),
        distance_spread=float(spread[0]),
        floor_spread=float(spread[1]),
        ratio_spread=float(ratios.std()) if np.isfinite(ratios).all() else float("inf"),
        n=n,
        repeats=len(values),
    )


def _divide(a: Any, b: Any) -> Any:
    """Return a / b, with 0 / 0 = 1 (both at the floor) and a / 0 = inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((a == 0) & (b == 0), 1.0, np.divide(a, b))
