"""Clusters: a uniform reservoir, exact k-means on few different vectors, errors that only fall."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from undiffuse.codecs import Reservoir, cluster
from undiffuse.codecs.clustering import seed_centers
from undiffuse.noise import KeyedNoise


def test_every_vector_is_kept_with_the_same_probability() -> None:
    """Chi-square over 100 blocks of positions of 10 000 vectors, 5 reservoirs of 400: 99 degrees of freedom.

    Above 171 with probability below 1e-5 (sampling without replacement makes it smaller still).
    """
    counts = torch.zeros(100)
    vectors = torch.arange(10_000.0)[:, None]
    for seed in range(5):
        reservoir = Reservoir(400, seed)
        for part in vectors.split(333):
            reservoir.offer(part)
        kept = reservoir.vectors()[:, 0].long()
        assert len(kept) == len(kept.unique()) == 400 and reservoir.offered == 10_000
        counts += torch.bincount(kept // 100, minlength=100)
    expected = 2000 / 100
    assert float(((counts - expected) ** 2 / expected).sum()) < 171
    assert counts[:50].sum() < 1000 + 4.4 * 500**0.5  # neither early nor late ones are preferred: 4.4 deviations
    assert counts[50:].sum() < 1000 + 4.4 * 500**0.5


def test_few_vectors_are_all_kept() -> None:
    reservoir = Reservoir(10, 0)
    reservoir.offer(torch.arange(6.0)[:, None])
    assert sorted(reservoir.vectors()[:, 0].tolist()) == list(range(6))


def test_as_many_centres_as_different_vectors_lose_nothing() -> None:
    different = KeyedNoise(0, range(17)).normal("data", 0, (5,))
    repeated = different[torch.arange(400) % 17]
    found = cluster(repeated, 17, seed=3)
    assert found.error == 0.0 and int(found.counts.min()) > 0
    assert torch.equal(found.centers[found.centers[:, 0].argsort()], different[different[:, 0].argsort()])


def test_iterations_never_raise_the_error_and_use_every_centre() -> None:
    vectors = KeyedNoise(1, range(600)).normal("data", 0, (3,))
    start = torch.zeros(24, 3) + torch.arange(24.0)[:, None]  # most are far from everything
    errors = [cluster(vectors, 24, iterations=n, start=start).error for n in (0, 1, 2, 4, 8, 40)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(errors))
    assert int(cluster(vectors, 24, start=start, iterations=60).counts.min()) > 0
    seeded = cluster(vectors, 24, seed=0)
    assert seeded.error <= cluster(vectors, 24, start=seed_centers(vectors, 24, 0), iterations=0).error


def test_seeds_are_spread() -> None:
    """Of two far clouds, one of 2 vectors and one of 998, k-means++ seeds both (else with probability 2e-6)."""
    vectors = torch.cat([KeyedNoise(0, range(998)).normal("data", 0, (2,)), torch.full((2, 2), 1e5)])
    assert float(seed_centers(vectors, 2, 0).max()) == 1e5 and float(seed_centers(vectors, 2, 0).min()) < 10


def test_more_centres_than_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="7 vectors was asked for, but there are 5"):
        cluster(torch.arange(5.0)[:, None], 7)
    with pytest.raises(ValueError, match="only 2 of the encodings differ"):
        cluster(torch.tensor([[0.0], [1.0], [1.0], [0.0]]), 3)
    bad = Reservoir(4, 0)
    bad.offer(torch.tensor([[float("nan")], [1.0]]))
    with pytest.raises(ValueError, match="not finite"):
        bad.vectors()
