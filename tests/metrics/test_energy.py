from __future__ import annotations

import numpy as np
import pytest
import torch

from undiffuse.metrics import distances, energy_distance, sliced_wasserstein


def _brute_energy(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    def mean(a: np.ndarray, b: np.ndarray, skip_self: bool) -> float:
        total = sum(np.linalg.norm(p - q) for p in a for q in b)
        return float(total / (len(a) * (len(b) - skip_self)))

    return 2 * mean(x, y, False) - mean(x, x, unbiased) - mean(y, y, unbiased)


@pytest.mark.parametrize("dim", [1, 2, 40])
@pytest.mark.parametrize("estimator", ["u", "v"])
def test_energy_distance_is_the_double_sum_whatever_the_chunks(dim, estimator, monkeypatch):
    rng = np.random.default_rng(dim)
    x, y = rng.normal(size=(23, dim)), rng.normal(size=(17, dim)) + 0.7
    expected = _brute_energy(x, y, unbiased=estimator == "u")
    assert energy_distance(x, y, estimator=estimator) == pytest.approx(expected, abs=1e-6 if dim > 32 else 1e-12)
    monkeypatch.setattr(distances, "_CHUNK_BYTES", 8 * 17 * 5)
    assert energy_distance(x, y, estimator=estimator) == pytest.approx(expected, abs=1e-6 if dim > 32 else 1e-12)


def test_energy_distance_of_two_points_is_twice_their_distance():
    assert energy_distance([[0.0, 0.0]], [[3.0, 4.0]], estimator="v") == 10.0


def test_biased_energy_is_zero_for_equal_sets_and_unbiased_is_zero_on_average():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2))
    assert energy_distance(x, x[::-1], estimator="v") == pytest.approx(0.0, abs=1e-14)
    values = [energy_distance(rng.normal(size=(20, 2)), rng.normal(size=(30, 2))) for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)  # false alarm below 1e-4
    assert min(values) < 0


def test_metrics_take_tensors_of_any_shape():
    x = torch.randn(10, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    flat = x.reshape(10, 6).numpy()
    assert energy_distance(x, x.half() + 1, estimator="v") == energy_distance(
        flat, (x.half() + 1).numpy(), estimator="v"
    )


@pytest.mark.parametrize("p", [1, 2])
def test_sliced_wasserstein_of_a_translation_is_the_projected_shift(p):
    x = np.random.default_rng(0).normal(size=(40, 3))
    shift = np.array([1.0, -2.0, 0.5])
    value = sliced_wasserstein(x, x + shift, projections=4000, seed=1, p=p)
    directions = np.random.default_rng(7).normal(size=(200_000, 3))
    projected = np.abs(directions / np.linalg.norm(directions, axis=1, keepdims=True) @ shift)
    error = projected.std() * 5 / np.sqrt(4000)  # W_p of a shift is |<direction, shift>|: a mean over 4000 directions
    assert value == pytest.approx(float((projected**p).mean() ** (1 / p)), abs=error * (3 if p == 2 else 1))


@pytest.mark.parametrize(("n", "m"), [(7, 7), (7, 5), (4, 12)])
def test_sliced_wasserstein_in_one_dimension_is_the_exact_distance(n, m):
    from scipy.stats import wasserstein_distance

    rng = np.random.default_rng(n + m)
    x, y = rng.normal(size=n), rng.exponential(size=m)
    assert sliced_wasserstein(x, y, projections=2) == pytest.approx(wasserstein_distance(x, y), abs=1e-12)


def test_sliced_wasserstein_ignores_order_and_repetition():
    x = np.random.default_rng(0).normal(size=(9, 4))
    assert sliced_wasserstein(x, np.concatenate([x, x])[::-1]) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: energy_distance(x, x[:, :1]),
        lambda x: energy_distance(x[:1], x),
        lambda x: energy_distance(x, x, estimator="w"),
        lambda x: energy_distance(x[:0], x),
        lambda x: sliced_wasserstein(x, x, projections=0),
        lambda x: sliced_wasserstein(x, x, p=0),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"expected|choose|needs|must"):
        call(np.zeros((4, 2)))
