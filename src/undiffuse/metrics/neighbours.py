"""Nearest neighbours: has the model learned the law, or the training set by heart?

A model of the law lands as near to unseen real items as to the training items; one that copies lands
nearer to the latter. Both reference sets must have equal size, as more items are nearer by number alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from undiffuse.metrics.distances import Array, Matrix, as_matrix, as_pair, distance_chunks

NEAR_DUPLICATE_QUANTILE = 0.01


def nearest_neighbours(samples: Array, reference: Array) -> tuple[Matrix, NDArray[np.int64]]:
    """Return, per sample, the Euclidean distance to its nearest reference item and that item's index.

    Args:
        samples: (N, *), in the units that distance should have.
        reference: (M, *), same features.

    Returns:
        Distances (N,) float64, computed from the difference itself (a copy has distance exactly 0), and indices (N,).

    Raises:
        ValueError: See `as_pair`.
    """
    x, y = as_pair(samples, reference, ("samples", "reference"))
    index = torch.cat([chunk.argmin(dim=1) for chunk in distance_chunks(x, y)]).numpy()
    return np.linalg.norm(x - y[index], axis=1), index


@dataclass(frozen=True, kw_only=True)
class Memorisation:
    """Nearest-neighbour statistics of N samples.

    Args:
        to_train: Distances (N,) to the nearest of `references` training items.
        to_held_out: Distances (N,) to the nearest of as many held-out items.
        median_ratio: Median of `to_train` over median of `to_held_out`: about 1, below 1 when memorising.
        closer_to_train: Share of samples nearer to training than to held-out items (ties count half); 0.5 is ideal.
        closer_error: Binomial standard error of that share. The choice of references adds to it.
        near_duplicates: Samples nearer to some training item (of all) than `threshold`.
        expected_duplicates: How many of N real held-out items would be: the quantile times N.
        threshold: The `NEAR_DUPLICATE_QUANTILE` of the distances of held-out items to all training items.
        references: Size of each reference set.
    """

    to_train: Matrix
    to_held_out: Matrix
    median_ratio: float
    closer_to_train: float
    closer_error: float
    near_duplicates: int
    expected_duplicates: float
    threshold: float
    references: int


def memorisation(samples: Array, train: Array, held_out: Array, *, seed: int = 0) -> Memorisation:
    """Compare nearest-neighbour distances of samples to equally many training and held-out items.

    Args:
        samples: Generated items (N, *), in data units.
        train: All training items (M, *).
        held_out: Real items (K, *) not trained on.
        seed: Seed of the subsets that make the references equal in number.

    Raises:
        ValueError: A set is empty, or their widths differ.
    """
    x, real, unseen = (as_matrix(v, k) for k, v in (("samples", samples), ("train", train), ("held_out", held_out)))
    count, rng = min(len(real), len(unseen)), np.random.default_rng(seed)
    to_train, to_unseen = (
        nearest_neighbours(x, rows[rng.choice(len(rows), count, replace=False)])[0] for rows in (real, unseen)
    )
    closer = float((to_train < to_unseen).mean() + 0.5 * (to_train == to_unseen).mean())
    threshold = float(np.quantile(nearest_neighbours(unseen, real)[0], NEAR_DUPLICATE_QUANTILE))
    return Memorisation(
        to_train=to_train,
        to_held_out=to_unseen,
        median_ratio=float(np.median(to_train) / max(np.median(to_unseen), np.finfo(float).tiny)),
        closer_to_train=closer,
        closer_error=binomial_error(closer, len(x)),
        near_duplicates=int((nearest_neighbours(x, real)[0] < threshold).sum()),
        expected_duplicates=NEAR_DUPLICATE_QUANTILE * len(x),
        threshold=threshold,
        references=count,
    )


def binomial_error(share: float, n: int) -> float:
    """Return the standard error of a share of n trials, with one success and one failure added (Agresti-Coull like).

    The plain sqrt(p (1 - p) / n) claims certainty at 0 and 1.
    """
    adjusted = (share * n + 1.0) / (n + 2.0)
    return float(np.sqrt(adjusted * (1.0 - adjusted) / (n + 2.0)))
