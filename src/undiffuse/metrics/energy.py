"""Energy distance and sliced Wasserstein distance between two point sets."""

from __future__ import annotations

from typing import Literal

import numpy as np

from undiffuse.metrics.distances import Array, Matrix, as_pair, mean_distance


def energy_distance(x: Array, y: Array, *, estimator: Literal["u", "v"] = "u") -> float:
    r"""Return the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (no square root).

    Args:
        x: Points (N, *).
        y: Points (M, *).
        estimator: "u" leaves a point's distance to itself out: unbiased, about 0 for equal laws, may be negative.
            "v" keeps it: never negative, exactly 0 for equal sets, biased by E|X - X'| (1/N + 1/M) for equal laws.

    Raises:
        ValueError: The widths differ, "u" has fewer than 2 points in a set, or the estimator is unknown.

    Source: Szekely and Rizzo 2013, "Energy statistics: a class of statistics based on distances", section 6.
    """
    if estimator not in ("u", "v"):
        raise ValueError(f"estimator={estimator!r} is unknown; choose 'u' (unbiased) or 'v' (never negative).")
    first, second = as_pair(x, y)
    if estimator == "u" and min(len(first), len(second)) < 2:
        raise ValueError(
            f"sets of {len(first)} and {len(second)} points; the unbiased estimator needs at least 2 each."
        )
    within = [mean_distance(points, points) * _correction(len(points), estimator) for points in (first, second)]
    return 2.0 * mean_distance(first, second) - sum(within)


def _correction(n: int, estimator: str) -> float:
    return n / (n - 1) if estimator == "u" else 1.0


def sliced_wasserstein(x: Array, y: Array, *, projections: int = 128, seed: int = 0, p: int = 1) -> float:
    r"""Return the sliced p-Wasserstein distance, (mean over directions of W_p^p)^(1/p).

    One-dimensional distances are exact, for sets of different size too: the quantile functions are
    constant between the multiples of 1/N and 1/M.

    Args:
        x: Points (N, *).
        y: Points (M, *).
        projections: Number of random directions, uniform on the sphere.
        seed: Seed of the directions.
        p: Order of the distance, at least 1.

    Raises:
        ValueError: The widths differ, or `projections` or `p` is below 1.

    Source: Rabin et al. 2012, "Wasserstein barycenter and its application to texture mixing".
    """
    if projections < 1 or p < 1:
        raise ValueError(f"projections={projections}, p={p}; both must be at least 1.")
    first, second = as_pair(x, y)
    directions = _directions(first.shape[1], projections, seed)
    sorted_x, sorted_y = np.sort(first @ directions, axis=0), np.sort(second @ directions, axis=0)
    n, m = len(first), len(second)
    levels = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # quantile levels in units of 1 / (n m)
    gaps = np.abs(sorted_x[(levels - 1) // m] - sorted_y[(levels - 1) // n]) ** p
    weights = np.diff(levels, prepend=0) / (n * m)
    return float((weights @ gaps).mean() ** (1.0 / p))


def _directions(width: int, count: int, seed: int) -> Matrix:
    """Return unit vectors as columns, (width, count)."""
    normal = np.random.default_rng(seed).standard_normal((width, count))
    return normal / np.linalg.norm(normal, axis=0)
