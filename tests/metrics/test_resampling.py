from __future__ import annotations

import numpy as np
import pytest

from undiffuse.metrics import bootstrap, frechet_distance


def _mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() - b.mean())


@pytest.mark.parametrize("method", ["basic", "percentile"])
def test_the_interval_of_a_mean_is_that_of_theory(method):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 1)), 2 * rng.normal(size=(100, 1))
    found = bootstrap(_mean_difference, a, b, draws=500, method=method)
    error = np.sqrt(a.var() / 400 + b.var() / 100)
    assert found.value == _mean_difference(a, b)
    assert found.error == pytest.approx(error, rel=4 / np.sqrt(2 * 500))  # the spread of 500 normal values, 4 errors
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    cases = [(rng.normal(size=(60, 1)), rng.normal(size=(60, 1)) + 0.3) for _ in range(100)]
    found = [bootstrap(_mean_difference, a, b, draws=60, level=0.8, seed=k) for k, (a, b) in enumerate(cases)]
    share = np.mean([each.low <= -0.3 <= each.high for each in found])
    assert share == pytest.approx(0.8, abs=0.03 + 4 * np.sqrt(0.16 / 100))  # 3%: 60 draws and 60 items


def test_mirroring_takes_the_bias_of_a_distance_away():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))  # distance of the laws: 0; of the sets: about 0.03
    basic = bootstrap(frechet_distance, a, b, draws=100)
    percentile = bootstrap(frechet_distance, a, b, draws=100, method="percentile")
    assert basic.low < 0.0 < percentile.low
    assert basic.low + percentile.high == pytest.approx(2 * basic.value)


def test_draws_are_keyed():
    x = np.arange(20.0)[:, None]
    same = [bootstrap(_mean_difference, x, x, draws=20, seed=3) for _ in range(2)]
    assert same[0] == same[1] != bootstrap(_mean_difference, x, x, draws=20, seed=4)


@pytest.mark.parametrize("options", [{"draws": 1}, {"level": 1.0}, {"method": "normal"}])
def test_bad_arguments_are_refused(options):
    with pytest.raises(ValueError, match="expected at least 2"):
        bootstrap(_mean_difference, np.zeros((3, 1)), np.zeros((3, 1)), **options)
