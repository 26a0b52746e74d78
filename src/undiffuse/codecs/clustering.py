r"""Clusters of vectors: a uniform sample of many, k-means++ seeds, and Lloyd's iterations.

For the rebuilding of codebooks; vectors are those of an encoder, (n, d).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from undiffuse.codecs.quantised import nearest, require_finite
from undiffuse.noise import KeyedNoise


class Reservoir:
    """A sample of `size` of all vectors that were offered, each set of them equally likely, in memory of O(size).

    Every vector gets a keyed random number, and those with the smallest are kept: so the sample depends on the order
    in which vectors come, but not on how they are cut into batches of one size.

    Args:
        size: Vectors to keep.
        seed: Of the choice.

    Source: Efraimidis & Spirakis 2006, "Weighted random sampling with a reservoir", with equal weights.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.offered = size, seed, 0
        self._keys: Tensor | None = None
        self._kept: Tensor | None = None
        self._batches = 0

    def offer(self, vectors: Tensor) -> None:
        """Offer vectors (n, d)."""
        keys = KeyedNoise(self.seed, [self._batches]).uniform("order", 0, (len(vectors),))[0]
        self._batches += 1
        self.offered += len(vectors)
        if self._keys is not None and self._kept is not None:
            keys, vectors = torch.cat([self._keys, keys]), torch.cat([self._kept, vectors.cpu()])
        chosen = keys.argsort()[: self.size]
        self._keys, self._kept = keys[chosen], vectors.cpu()[chosen]

    def vectors(self) -> Tensor:
        """Return what is kept, (up to size, d).

        Raises:
            ValueError: Nothing was offered, or something that is not finite.
        """
        if self._kept is None:
            raise ValueError("no vectors were offered; the data are empty.")
        return require_finite(self._kept)


class Clusters(NamedTuple):
    """Centres (K, d), how many vectors belong to each (K,), and the mean squared distance to them, per value."""

    centers: Tensor
    counts: Tensor
    error: float


def seed_centers(vectors: Tensor, count: int, seed: int) -> Tensor:
    """Return `count` of the vectors (n, d), drawn one by one in proportion to the squared distance to those before.

    Raises:
        ValueError: There are fewer different vectors.

    Source: Arthur & Vassilvitskii 2007, "k-means++: The Advantages of Careful Seeding". Exact, where VQ-DDM's code
        approximates it by Markov chains (AFK-MC^2).
    """
    if count > len(vectors):
        raise ValueError(
            f"a codebook of {count} vectors was asked for, but there are {len(vectors)} encodings; ask for "
            f"fewer codes, or give more data."
        )
    draws = KeyedNoise(seed, [0]).uniform("order", 1, (count,))[0].tolist()
    rows = vectors.double()
    chosen = [min(int(draws[0] * len(rows)), len(rows) - 1)]
    distance = (rows - rows[chosen[0]]).square().sum(1)
    for draw in draws[1:]:
        total = distance.cumsum(0)
        if not float(total[-1]) > 0:
            raise ValueError(
                f"a codebook of {count} vectors was asked for, but only {len(chosen)} of the encodings differ; ask for "
                f"fewer codes, or give more varied data."
            )
        found = int(torch.searchsorted(total, draw * total[-1], right=True))
        chosen.append(min(found, int(distance.nonzero()[-1])))  # rounding may point behind the last that differs
        distance = torch.minimum(distance, (rows - rows[chosen[-1]]).square().sum(1))
    return vectors[chosen]


def cluster(
    vectors: Tensor, count: int, *, seed: int = 0, iterations: int = 50, start: Tensor | None = None
) -> Clusters:
    """Return `count` clusters of vectors (n, d) by Lloyd's iterations, which stop where nothing changes.

    A cluster that loses all its vectors begins again at the vector that is farthest from its centre. The error never
    grows from one iteration to the next.

    Args:
        vectors: What is clustered.
        count: Number of clusters.
        seed: Of the k-means++ seeds.
        iterations: At most so many.
        start: Centres to start from, (count, d), instead of k-means++ seeds.

    Raises:
        ValueError: There are fewer different vectors.

    Source: Lloyd 1982, "Least squares quantization in PCM".
    """
    centers = seed_centers(vectors, count, seed) if start is None else start
    centers, before = centers.double(), None
    rows = vectors.double()
    for _ in range(iterations):
        numbers = nearest(rows, centers)
        if before is not None and torch.equal(numbers, before):
            break
        centers, before = _means(rows, numbers, centers), numbers
    numbers = nearest(rows, centers)
    error = float((rows - centers[numbers]).square().mean())
    return Clusters(centers.to(vectors.dtype), torch.bincount(numbers, minlength=count), error)


def _means(rows: Tensor, numbers: Tensor, centers: Tensor) -> Tensor:
    """Return the mean of each cluster's rows; empty ones go to the rows that are farthest from their centres."""
    count = torch.bincount(numbers, minlength=len(centers))
    sums = torch.zeros_like(centers).index_add_(0, numbers, rows)
    means = sums / count.clamp(min=1)[:, None]
    empty = (count == 0).nonzero()[:, 0]
    if len(empty):
        far = (rows - means[numbers]).square().sum(1).argsort(descending=True)[: len(empty)]
        means[empty] = rows[far]
    return means
