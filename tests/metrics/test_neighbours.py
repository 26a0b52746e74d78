from __future__ import annotations

import numpy as np
import pytest

from undiffuse.metrics import distances, memorisation, nearest_neighbours
from undiffuse.metrics.neighbours import binomial_error


@pytest.mark.parametrize("dim", [2, 64])
def test_nearest_neighbours_are_those_of_a_double_loop(dim, monkeypatch):
    rng = np.random.default_rng(dim)
    x, reference = rng.normal(size=(20, dim)), rng.normal(size=(30, dim))
    everything = np.linalg.norm(x[:, None] - reference[None], axis=2)
    monkeypatch.setattr(distances, "_CHUNK_BYTES", 8 * 30 * 3)
    found, index = nearest_neighbours(x, reference)
    np.testing.assert_array_equal(index, everything.argmin(axis=1))
    np.testing.assert_allclose(found, everything.min(axis=1), rtol=1e-13)


def test_a_copy_has_distance_zero_however_wide_it_is():
    x = 1e3 + np.random.default_rng(0).normal(size=(10, 3000))
    found, index = nearest_neighbours(x[[3, 7]], x)
    assert found.tolist() == [0.0, 0.0] and index.tolist() == [3, 7]


def test_fresh_samples_are_as_near_to_held_out_as_to_training_data():
    rng = np.random.default_rng(0)
    samples, train, held_out = (rng.normal(size=(n, 3)) for n in (2000, 4000, 1000))
    found = memorisation(samples, train, held_out)
    assert found.references == 1000
    assert found.closer_to_train == pytest.approx(0.5, abs=5 * found.closer_error)
    assert found.median_ratio == pytest.approx(1.0, abs=0.1)
    assert found.near_duplicates < 3 * found.expected_duplicates == 60


def test_copies_of_the_training_set_are_found_out():
    rng = np.random.default_rng(1)
    train, held_out = rng.normal(size=(500, 3)), rng.normal(size=(500, 3))
    found = memorisation(train + 1e-6, train, held_out)
    assert found.near_duplicates == 500
    assert found.closer_to_train > 0.99 and found.median_ratio < 1e-3


def test_binomial_error_is_not_zero_at_certainty_and_is_the_usual_one_elsewhere():
    assert binomial_error(1.0, 1000) == pytest.approx(1e-3, rel=0.01)
    assert binomial_error(0.3, 10_000) == pytest.approx(np.sqrt(0.21 / 10_000), rel=1e-3)
