"""Frechet distance between two sets of features, each summarised by its mean and covariance.

Sets of finite size have a positive distance even when drawn from one law, about (trace of the
covariance) * D / N, so a distance says nothing alone: see `floor.ratio_to_floor`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from undiffuse.metrics.distances import Array, Matrix, as_pair
from undiffuse.metrics.features import FeatureExtractor
from undiffuse.metrics.floor import FloorRatio, ratio_to_floor
from undiffuse.noise import permutation

_GROUPS = 10
_NORMAL_95 = 1.96
FEWEST = 4  # rows, for an interval


def frechet_distance(a: Array, b: Array) -> float:
    """Return the squared Frechet distance of the Gaussians fitted to two sets of features.

    Args:
        a: Features (N, D).
        b: Features (M, D).

    Raises:
        ValueError: A set has fewer than 2 rows, or the widths differ.

    Warns:
        UserWarning: A set has at most D rows: its covariance is singular and the distance mostly bias.

    Source: Dowson and Landau 1982, "The Frechet distance between multivariate normal distributions";
        Heusel et al. 2017, arXiv:1706.08500.
    """
    first, second = as_pair(a, b, ("a", "b"))
    _check_sizes(len(first), len(second), first.shape[1])
    return _distance(first, second)


def _distance(a: Matrix, b: Matrix) -> float:
    """Return the distance of two sets of rows, by the smaller of the two matrices that have the same trace.

    With centred rows X and Y, A = X'X / (n - 1) and B = Y'Y / (m - 1), and the trace of the root is also the sum of the
    singular values of X Y' / sqrt((n - 1) (m - 1)), which is (n, m) instead of (D, D).
    """
    if min(len(a), len(b)) >= a.shape[1]:
        return frechet_from_moments(*_moments(a), *_moments(b))
    means = [rows.mean(axis=0) for rows in (a, b)]
    x, y = ((rows - mean) / np.sqrt(len(rows) - 1) for rows, mean in zip((a, b), means, strict=True))
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    squared = ((means[0] - means[1]) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2.0 * overlap
    return max(float(squared), 0.0)


@dataclass(frozen=True, kw_only=True)
class FrechetInterval:
    """A Frechet distance, and what is known about the distance of the laws behind the sets.

    Args:
        distance: The distance of the sets, which is too large by about c / N.
        corrected: The distance without that bias, as the jackknife estimates it; below 0 where noise exceeds it.
        error: Standard error of `corrected`.
        low: Lower end of its 95% interval.
        high: Upper end.
    """

    distance: float
    corrected: float
    error: float
    low: float
    high: float


def frechet_interval(a: Array, b: Array, *, groups: int = _GROUPS) -> FrechetInterval:
    """Return the Frechet distance of two sets of features with a 95% interval for that of their laws.

    The distance is taken again without each tenth of both sets. How it changes with their size gives the bias, which
    is removed to first order; how it varies gives the error. Rows of one class should not lie in the same tenth, so a
    tenth is every tenth row.

    Args:
        a: Features (N, D).
        b: Features (M, D).
        groups: Number of parts, at least 2; fewer where a set has fewer than twice as many rows.

    Raises:
        ValueError: A set has fewer than 4 rows, or the widths differ.

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 11, with groups left out.
    """
    first, second = as_pair(a, b, ("a", "b"))
    count = min(groups, len(first) // 2, len(second) // 2)
    if count < 2:
        raise ValueError(
            f"a Frechet distance of {len(first)} and {len(second)} rows has no interval; give at least {FEWEST} each, "
            "and thousands to mean something."
        )
    distance = _distance(first, second)
    without = np.array([_distance(_leave(first, g, count), _leave(second, g, count)) for g in range(count)])
    corrected = count * distance - (count - 1) * without.mean()
    error = float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))
    half = _NORMAL_95 * error
    return FrechetInterval(
        distance=distance,
        corrected=float(corrected),
        error=error,
        low=float(corrected - half),
        high=float(corrected + half),
    )


def frechet_infinity(samples: Array, real: Array, *, points: int = 15, seed: int = 0) -> float:
    """Return the Frechet distance that infinitely many samples would have: a line through 1 / N, read at 0.

    The number of real items is not extrapolated.

    Args:
        samples: Features (N, D), rows in any order.
        real: Features (M, D).
        points: Sizes from N / 2 to N at which the distance is taken, at least 2, evenly spaced.
        seed: Key of the subsets.

    Raises:
        ValueError: Fewer than 2 points, or so few samples that two sizes coincide.

    Source: Chong and Forsyth 2020, "Effectively unbiased FID and Inception Score and where to find them",
        arXiv:1911.07023, section 4. There the subsets are of 5000 or more.
    """
    first, second = as_pair(samples, real, ("samples", "real"))
    sizes = np.linspace(len(first) / 2, len(first), max(points, 0)).astype(np.int64)
    if points < 2 or len(np.unique(sizes)) < points or sizes[0] < 2:
        raise ValueError(f"points={points} with {len(first)} samples; give 2 or more points, and many more samples.")
    order = [permutation(seed, k, len(first)).numpy()[:size] for k, size in enumerate(sizes)]
    values = [_distance(first[rows], second) for rows in order]
    return float(np.polyfit(1.0 / sizes, values, 1)[1])


def _leave(rows: Matrix, group: int, count: int) -> Matrix:
    return np.delete(rows, np.s_[group::count], axis=0)


def frechet_from_moments(mean_a: Matrix, cov_a: Matrix, mean_b: Matrix, cov_b: Matrix) -> float:
    r"""Return |m_a - m_b|^2 + tr(A) + tr(B) - 2 tr((A^(1/2) B A^(1/2))^(1/2)) for means (D,), covariances (D, D).

    The last trace is the sum of the singular values of A^(1/2) B^(1/2). Taken so, rounding enters at
    1e-16 of the largest variance; square roots of the eigenvalues of A B would keep only 1e-8 of it.
    """
    overlap = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    squared = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2.0 * overlap
    return max(float(squared), 0.0)


def frechet_ratio(
    extractor: FeatureExtractor,
    samples: Array,
    train: Array,
    held_out: Array,
    *,
    n: int | None = None,
    repeats: int = 20,
    seed: int = 0,
) -> FloorRatio:
    """Return the distance of samples to real training data relative to that of real held-out data, at equal n.

    Args:
        extractor: A fitted extractor; it turns items (N, *) into features (N, D).
        samples: Generated items, in data units.
        train: Real items the extractor or model may have seen.
        held_out: Real items that neither has seen.
        n: Size of every subset; None takes the largest that all three sets allow.
        repeats: Number of seeded subsets averaged over.
        seed: Seed of the subsets.

    Raises:
        ValueError: See `ratio_to_floor` and `frechet_distance`.
    """
    features = [extractor.features(items) for items in (samples, train, held_out)]
    return ratio_to_floor(frechet_distance, *features, n=n, repeats=repeats, seed=seed)


def _check_sizes(n: int, m: int, width: int) -> None:
    if min(n, m) < 2:
        raise ValueError(f"the sets have {n} and {m} rows; a covariance needs at least 2 each.")
    if min(n, m) <= width:
        warnings.warn(
            f"Frechet distance of {n} and {m} rows in {width} dimensions: a covariance is singular and the value "
            f"mostly bias; give more than {width} rows or fewer features.",
            stacklevel=3,
        )


def _moments(x: Matrix) -> tuple[Matrix, Matrix]:
    mean = x.mean(axis=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def _root(cov: Matrix) -> Matrix:
    """Return the symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2.0)
    return (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
