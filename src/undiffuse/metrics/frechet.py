"""Frechet distance between two sets of features, each summarised by its mean and covariance.

Sets of finite size have a positive distance even when drawn from one law, about (trace of the
covariance) * D / N, so a distance says nothing alone: see `floor.ratio_to_floor`.
"""

from __future__ import annotations

import warnings

import numpy as np

from undiffuse.metrics.distances import Array, Matrix, as_pair
from undiffuse.metrics.features import FeatureExtractor
from undiffuse.metrics.floor import FloorRatio, ratio_to_floor


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
    return frechet_from_moments(*_moments(first), *_moments(second))


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
