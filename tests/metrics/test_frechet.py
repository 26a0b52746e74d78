from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from undiffuse.metrics import (
    PCAFeatures,
    frechet_distance,
    frechet_from_moments,
    frechet_infinity,
    frechet_interval,
    frechet_ratio,
)


def _spd(dim: int, seed: int) -> np.ndarray:
    root = np.random.default_rng(seed).normal(size=(dim, dim))
    return root @ root.T / dim


def test_agrees_with_the_matrix_square_root_for_given_moments():
    a, b = _spd(6, 0), _spd(6, 1)
    mean_a, mean_b = np.arange(6.0), np.ones(6)
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_from_moments(mean_a, a, mean_b, b) == pytest.approx(expected, rel=1e-10)


def test_of_two_given_gaussians_is_the_closed_form_within_sampling_error():
    n, shift = 200_000, np.array([1.0, 0.0, -2.0])
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(n, 3)), 2.0 * rng.normal(size=(n, 3)) + shift
    expected = 5.0 + 3 * (1.0 - 2.0) ** 2
    error = 2 * np.sqrt(5.0) * np.sqrt(5.0 / n)  # of |mean difference|^2, the largest part: 2 |d| std(d)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=5 * error)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_of_a_set_and_itself_is_zero_also_when_the_covariance_is_singular(scale):
    x = scale * np.random.default_rng(0).normal(size=(100, 4)) @ np.random.default_rng(1).normal(size=(4, 20))
    assert frechet_distance(x, x[::-1]) <= 1e-8 * scale**2


def test_does_not_change_under_a_shared_rotation_and_is_symmetric():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(80, 5)), rng.normal(size=(60, 5)) @ _spd(5, 3) + 1.0
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    expected = frechet_distance(a, b)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_warns_when_rows_do_not_determine_the_covariance():
    x = np.random.default_rng(0).normal(size=(8, 8))
    with pytest.warns(UserWarning, match="8 and 8 rows in 8 dimensions"):
        frechet_distance(x, x + 1.0)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (np.zeros((1, 2)), np.zeros((5, 2)), "1 and 5 rows"),
        (np.zeros((5, 2)), np.zeros((5, 3)), "2 features and b has 3"),
        (np.full((5, 2), np.nan), np.zeros((5, 2)), "in 5 of 5 rows"),
    ],
)
def test_refuses_what_has_no_distance(a, b, words):
    with pytest.raises(ValueError, match=words):
        frechet_distance(a, b)


def test_ratio_is_one_for_fresh_real_data_and_large_for_shifted_data():
    rng = np.random.default_rng(0)
    samples, train, held_out = (rng.normal(size=(2000, 4)) for _ in range(3))
    extractor = PCAFeatures(components=4).fit(train)
    fresh = frechet_ratio(extractor, samples, train, held_out, n=400)
    shifted = frechet_ratio(extractor, samples + 1.0, train, held_out, n=400)
    # A repeat has a relative spread of about sqrt(2 / 14) (14 moments); twenty of them, weakly correlated: 0.12 here.
    assert fresh.ratio == pytest.approx(1.0, abs=0.5)
    assert fresh.n == 400 and fresh.repeats == 20
    assert shifted.ratio > 20 and shifted.distance == pytest.approx(4.0, abs=0.5)
    assert shifted.floor == fresh.floor


def test_few_rows_give_the_same_distance_by_the_other_matrix():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(15, 12)), rng.normal(size=(13, 12)) * 2 + 1  # more rows than columns: covariances
    wide = np.zeros((15, 40)), np.zeros((13, 40))
    rotation = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    for target, rows in zip(wide, (a, b), strict=True):
        target[:, :12] = rows
    with pytest.warns(UserWarning, match="singular"):
        found = frechet_distance(wide[0] @ rotation, wide[1] @ rotation)
    assert found == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_the_interval_holds_the_distance_of_the_laws_and_not_that_of_the_sets():
    rng = np.random.default_rng(5)
    found = [frechet_interval(rng.normal(size=(200, 5)), rng.normal(size=(200, 5)) + 0.5) for _ in range(60)]
    truth = 5 * 0.25
    corrected = np.array([each.corrected for each in found])
    assert corrected.mean() == pytest.approx(truth, abs=4 * corrected.std() / np.sqrt(60))
    assert np.mean([each.distance for each in found]) > truth + 4 * corrected.std() / np.sqrt(60)
    share = np.mean([each.low <= truth <= each.high for each in found])
    assert share >= 0.95 - 0.05 - 3 * np.sqrt(0.95 * 0.05 / 60)  # ten groups: t with 9 degrees holds 92%
    assert np.sqrt(np.mean([each.error**2 for each in found])) == pytest.approx(corrected.std(), rel=0.35)


def test_infinitely_many_samples_are_reached_by_extrapolation():
    rng = np.random.default_rng(6)
    real = rng.normal(size=(20_000, 8))
    values = [frechet_infinity(rng.normal(size=(400, 8)) + 0.2, real, seed=k) for k in range(20)]
    plain = [frechet_distance(rng.normal(size=(400, 8)) + 0.2, real) for _ in range(20)]
    error = np.std(values) / np.sqrt(20)
    assert np.mean(values) == pytest.approx(8 * 0.04, abs=4 * error + 0.004)  # 0.004: 20 000 real rows, D (D + 3) / 4 N
    assert np.mean(plain) > np.mean(values) + 4 * error


@pytest.mark.parametrize(
    "call",
    [
        lambda x: frechet_interval(x[:3], x),
        lambda x: frechet_infinity(x, x, points=1),
        lambda x: frechet_infinity(x[:10], x),
    ],
)
def test_intervals_of_hardly_any_rows_are_refused(call):
    with pytest.raises(ValueError, match="give"):
        call(np.random.default_rng(0).normal(size=(40, 2)))
