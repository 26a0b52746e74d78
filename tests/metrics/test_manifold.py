from __future__ import annotations

import numpy as np
import pytest

from undiffuse.metrics import density_coverage, distances, precision_recall
from undiffuse.metrics.manifold import expected_coverage, radii_of


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    return np.array(
        [np.sort([np.linalg.norm(p - q) for j, q in enumerate(x) if j != i])[k - 1] for i, p in enumerate(x)]
    )


def _inside(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return np.array([[np.linalg.norm(p - c) <= r for c, r in zip(centres, radii, strict=True)] for p in points])


@pytest.mark.parametrize("k", [1, 3])
def test_all_four_are_their_definitions_whatever_the_chunks(k, monkeypatch):
    rng = np.random.default_rng(k)
    real, samples = rng.normal(size=(25, 2)), rng.normal(size=(18, 2)) * 0.7 + 0.6
    in_real = _inside(samples, real, _radii(real, k))
    in_samples = _inside(real, samples, _radii(samples, k))
    for chunk in (64 * 2**20, 8 * 25 * 4):
        monkeypatch.setattr(distances, "_CHUNK_BYTES", chunk)
        np.testing.assert_allclose(radii_of(real, k).numpy(), _radii(real, k), rtol=1e-12)
        found = precision_recall(real, samples, k=k)
        assert found.precision == pytest.approx(in_real.any(axis=1).mean())
        assert found.recall == pytest.approx(in_samples.any(axis=1).mean())
        other = density_coverage(real, samples, k=k)
        assert other.density == pytest.approx(in_real.sum() / (k * 18))
        assert other.coverage == pytest.approx(in_real.any(axis=0).mean())


def test_a_set_and_itself_agree_wholly():
    x = np.random.default_rng(0).normal(size=(60, 50))
    found, other = precision_recall(x, x[::-1]), density_coverage(x, x[::-1])
    assert (found.precision, found.recall, other.coverage) == (1.0, 1.0, 1.0)


def test_sets_far_apart_have_nothing_in_common():
    x = np.random.default_rng(0).normal(size=(40, 3))
    found, other = precision_recall(x, x + 100), density_coverage(x, x + 100)
    assert (found.precision, found.recall, other.density, other.coverage) == (0.0, 0.0, 0.0, 0.0)
    assert found.precision_error > 0  # none of 40 is no certainty


def test_samples_of_one_mode_are_precise_and_recall_half():
    rng = np.random.default_rng(1)
    real = np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 50])
    found = precision_recall(real, rng.normal(size=(400, 2)))
    assert found.precision > 0.9 and found.recall == pytest.approx(0.5, abs=0.05)


def test_equal_laws_have_density_one_and_the_expected_coverage():
    rng = np.random.default_rng(2)
    k, n, m, repeats = 5, 60, 40, 100
    found = [density_coverage(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), k=k) for _ in range(repeats)]
    for values, expected in (
        ([each.density for each in found], 1.0 * n / (n - 1)),  # k of the n - 1 others, for each of n balls
        ([each.coverage for each in found], found[0].expected),
    ):
        assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values) / np.sqrt(repeats))


def test_expected_coverage_is_that_of_the_paper_for_equal_sizes():
    n, k = 50, 5
    paper = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    assert expected_coverage(n, n, k) == pytest.approx(paper, rel=1e-12)


@pytest.mark.parametrize("k", [0, 6])
def test_bad_arguments_are_refused(k):
    x = np.random.default_rng(0).normal(size=(8, 2))
    for metric in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match=r"k must be 1 or more"):
            metric(x, x[:6], k=k)
        with pytest.raises(ValueError, match="expected equal"):
            metric(x, x[:, :1])
