from __future__ import annotations

import numpy as np
import pytest

from undiffuse.metrics import ratio_to_floor


def _mean_gap(x: np.ndarray, y: np.ndarray) -> float:
    return abs(float(x.mean() - y.mean()))


def test_both_distances_use_sets_of_equal_size():
    seen = []

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        seen.append((len(x), len(y)))
        return 1.0

    result = ratio_to_floor(distance, np.zeros(50), np.zeros(90), np.zeros(30), repeats=3)
    assert seen == [(30, 30)] * 6
    assert (result.n, result.repeats, result.ratio, result.ratio_spread) == (30, 3, 1.0, 0.0)


def test_same_seed_same_figures_and_another_seed_others():
    sets = [np.random.default_rng(k).normal(size=200) for k in range(3)]
    first, again, other = (ratio_to_floor(_mean_gap, *sets, n=50, seed=seed) for seed in (0, 0, 1))
    assert first == again and first != other


def test_ratio_is_the_quotient_of_the_mean_distances():
    sets = [np.random.default_rng(k).normal(size=200) for k in range(3)]
    result = ratio_to_floor(_mean_gap, *sets, n=50)
    assert result.ratio == pytest.approx(result.distance / result.floor)


def test_zero_over_zero_is_at_the_floor_and_a_zero_floor_is_infinitely_far():
    same, other = np.zeros(20), np.ones(20)
    assert ratio_to_floor(_mean_gap, same, same, same).ratio == 1.0
    assert ratio_to_floor(_mean_gap, other, same, same).ratio == np.inf


@pytest.mark.parametrize(("n", "repeats"), [(31, 1), (0, 1), (10, 0)])
def test_refuses_subsets_that_do_not_exist(n, repeats):
    with pytest.raises(ValueError, match="smallest set"):
        ratio_to_floor(_mean_gap, np.zeros(50), np.zeros(50), np.zeros(30), n=n, repeats=repeats)
