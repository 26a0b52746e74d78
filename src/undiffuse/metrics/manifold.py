"""Fidelity and variety apart: precision and recall, density and coverage.

The support of a law is drawn as balls around its items, each as large as the distance to the k-th nearest item of the
same set. A sample inside a ball of the real data looks real; a real item inside a ball of the samples could have been
made. Both need features in which distance means something.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from undiffuse.metrics.distances import Array, Matrix, as_pair, distance_chunks
from undiffuse.metrics.neighbours import binomial_error


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall:
    """Shares in [0, 1] with binomial errors, which take the balls as given.

    Args:
        precision: Samples inside a ball of the real data: fidelity.
        recall: Real items inside a ball of the samples: variety.
    """

    precision: float
    recall: float
    precision_error: float
    recall_error: float


@dataclass(frozen=True, kw_only=True)
class DensityCoverage:
    """Fidelity and variety that one outlier cannot spoil; errors take the balls as given.

    Args:
        density: Mean number of balls of the real data around a sample, divided by k: about 1 for real samples, and
            above 1 where samples crowd in the middle.
        coverage: Share of the balls of the real data that hold a sample.
        expected: Coverage of as many samples of the real law itself.
    """

    density: float
    coverage: float
    density_error: float
    coverage_error: float
    expected: float


def precision_recall(real: Array, samples: Array, *, k: int = 3) -> PrecisionRecall:
    """Return improved precision and recall.

    Both depend on the sizes of the sets: compare at equal sizes only.

    Args:
        real: Features (N, D).
        samples: Features (M, D).
        k: Which neighbour sets the radius.

    Raises:
        ValueError: The widths differ, or a set has k items or fewer.

    Source: Kynkaanniemi et al. 2019, "Improved precision and recall metric for assessing generative models",
        arXiv:1904.06991, equations 1 and 2.
    """
    first, second = _check(real, samples, k)
    radii, others = radii_of(first, k), radii_of(second, k)
    inside, recalled = [], torch.zeros(len(first), dtype=torch.bool)
    for rows, distances in _rows(second, first):  # (m, N)
        inside.append((distances <= radii).any(dim=1))
        recalled |= (distances <= others[rows, None]).any(dim=0)
    precision, recall = float(torch.cat(inside).double().mean()), float(recalled.double().mean())
    return PrecisionRecall(
        precision=precision,
        recall=recall,
        precision_error=binomial_error(precision, len(second)),
        recall_error=binomial_error(recall, len(first)),
    )


def density_coverage(real: Array, samples: Array, *, k: int = 5) -> DensityCoverage:
    """Return density and coverage.

    Args:
        real: Features (N, D).
        samples: Features (M, D).
        k: Which neighbour sets the radius.

    Raises:
        ValueError: The widths differ, or a set has k items or fewer.

    Source: Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models", arXiv:2002.09797,
        equations 5 and 6; the expected coverage is proposition 2 for sets of any size.
    """
    first, second = _check(real, samples, k)
    radii = radii_of(first, k)
    counts, covered = [], torch.zeros(len(first), dtype=torch.bool)
    for _, distances in _rows(second, first):
        inside = distances <= radii
        counts.append(inside.sum(dim=1))
        covered |= inside.any(dim=0)
    per_sample = torch.cat(counts).double() / k
    coverage = float(covered.double().mean())
    return DensityCoverage(
        density=float(per_sample.mean()),
        coverage=coverage,
        density_error=float(per_sample.std() / len(second) ** 0.5),
        coverage_error=binomial_error(coverage, len(first)),
        expected=expected_coverage(len(first), len(second), k),
    )


def expected_coverage(n: int, m: int, k: int) -> float:
    """Return the expected coverage of n balls by m samples of the same law.

    Of the n - 1 + m other points in order of their distance from an item, all in random order, the ball holds no
    sample if the first k are real ones.
    """
    ranks = np.arange(k)
    return float(1.0 - np.prod((n - 1 - ranks) / (n - 1 + m - ranks)))


def radii_of(points: Matrix, k: int) -> Tensor:
    """Return the distance of each point (N, D) to its k-th nearest other point, float64 (N,)."""
    radii = []
    for rows, distances in _rows(points, points):
        distances[torch.arange(len(distances)), rows] = torch.inf
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _rows(x: Matrix, y: Matrix) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (positions in x, their distances to y) in chunks."""
    start = 0
    for distances in distance_chunks(x, y):
        yield torch.arange(start, start + len(distances)), distances
        start += len(distances)


def _check(real: Array, samples: Array, k: int) -> tuple[Matrix, Matrix]:
    first, second = as_pair(real, samples, ("real", "samples"))
    if not 1 <= k < min(len(first), len(second)):
        raise ValueError(
            f"k={k} with {len(first)} real items and {len(second)} samples; k must be 1 or more, and less."
        )
    return first, second
