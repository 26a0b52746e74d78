from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from undiffuse.metrics import classifier_two_sample


def _normal(n: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=(n, 2)) + shift


@pytest.mark.parametrize("classifier", ["logistic", "knn", "mlp"])
def test_equal_laws_cannot_be_told_apart_and_distant_ones_always(classifier):
    n = 100
    equal = classifier_two_sample(_normal(n, 0), _normal(n, 1), classifier=classifier)
    assert abs(equal.accuracy - 0.5) < 4 * 0.5 / np.sqrt(2 * n)  # binomial; false alarm below 1e-4
    assert equal.p_value > 1e-4 and equal.n == 2 * n
    apart = classifier_two_sample(_normal(n, 0), _normal(n, 1, shift=20.0), classifier=classifier)
    assert apart.accuracy == 1.0 and apart.p_value == pytest.approx(0.5 ** (2 * n), rel=1e-6)


def test_logistic_regression_reaches_the_best_accuracy_for_two_gaussians():
    n, shift = 2000, 1.0
    found = classifier_two_sample(_normal(n, 0), _normal(n, 1, shift=shift))
    best = norm.cdf(np.sqrt(2) * shift / 2)  # half the distance of the means, along the line between them
    assert found.accuracy == pytest.approx(best, abs=5 * found.error)


def test_differences_of_spread_are_seen_by_those_that_look_at_more_than_the_mean():
    x, y = _normal(120, 0), _normal(120, 1, scale=6.0)
    assert abs(classifier_two_sample(x, y).accuracy - 0.5) < 0.2
    assert classifier_two_sample(x, y, classifier="mlp").accuracy > 0.8


def test_the_larger_set_is_cut_and_the_result_is_reproducible():
    first, second = (classifier_two_sample(_normal(50, 0), _normal(300, 1)) for _ in range(2))
    assert first == second and first.n == 100


@pytest.mark.parametrize("options", [{"folds": 1}, {"folds": 11}, {"classifier": "forest"}])
def test_bad_arguments_are_refused(options):
    with pytest.raises(ValueError, match=r"give at least|choose"):
        classifier_two_sample(_normal(20, 0), _normal(20, 1), **options)
