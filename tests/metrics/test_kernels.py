from __future__ import annotations

import numpy as np
import pytest
import torch

from undiffuse.metrics import energy_distance, kernels, kid, mmd
from undiffuse.metrics.kernels import gaussian, median_distance, rational_quadratic


def _double_sum(x: np.ndarray, y: np.ndarray, kernel) -> float:
    """The definition, pair by pair."""

    def mean(a: np.ndarray, b: np.ndarray, skip: bool) -> float:
        values = [kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return float(np.mean(values))

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def _rational(p: np.ndarray, q: np.ndarray) -> float:
    return sum((1 + ((p - q) ** 2).sum() / (2 * a * 1.5**2)) ** -a for a in (0.2, 0.5, 1.0, 2.0, 5.0))


_FORMULAS = {
    "gaussian": lambda p, q: np.exp(-((p - q) ** 2).sum() / (2 * 1.5**2)),
    "rational-quadratic": _rational,
    "energy": lambda p, q: -np.linalg.norm(p - q),
}


@pytest.mark.parametrize("kernel", list(_FORMULAS))
@pytest.mark.parametrize(("n", "m"), [(23, 17), (5, 4)])
def test_mmd_is_the_double_sum_over_pairs_whatever_the_groups_and_chunks(kernel, n, m, monkeypatch):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(m, 3)) + 0.5
    expected = _double_sum(x, y, _FORMULAS[kernel])
    for groups in (2, 10):
        assert mmd(x, y, kernel=kernel, scale=1.5, groups=groups).value == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(kernels, "_CHUNK_BYTES", 8 * 3)
    assert mmd(x, y, kernel=kernel, scale=1.5).value == pytest.approx(expected, abs=1e-12)


def test_kid_is_the_double_sum_with_the_cubic_kernel():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(21, 4)), rng.normal(size=(30, 4)) * 1.3 + 0.2
    assert kid(x, y).value == pytest.approx(_double_sum(x, y, lambda p, q: (p @ q / 4 + 1) ** 3), abs=1e-12)


def test_a_kernel_of_ones_own_sees_the_points_as_they_are():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1.0, 1.0, (20, 3)), rng.normal(0.0, 1.0, (24, 3))

    def cubed(a, b):
        return (a @ b.T / 3 + 1.0) ** 3

    assert mmd(x, y, kernel=cubed).value == pytest.approx(kid(x, y).value, rel=1e-12)


def test_the_energy_kernel_gives_the_energy_distance():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(30, 2)) + 1
    assert mmd(x, y, kernel="energy").value == pytest.approx(energy_distance(x, y), abs=1e-12)


def test_mmd_of_gaussians_is_the_closed_form_within_five_errors():
    n, dim, scale, shift = 4000, 3, 1.2, np.array([0.4, 0.0, -0.3])
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(n, dim)), rng.normal(size=(n, dim)) + shift
    spread = scale**2 + 2.0  # a difference of two points has variance 2
    same = (scale**2 / spread) ** (dim / 2)
    expected = 2 * same * (1 - np.exp(-(shift @ shift) / (2 * spread)))
    found = mmd(x, y, kernel="gaussian", scale=scale)
    assert found.error < 0.1 * expected
    assert found.value == pytest.approx(expected, abs=5 * found.error)  # false alarm below 1e-5


def test_the_error_is_the_spread_of_the_estimate():
    rng = np.random.default_rng(3)
    found = [kid(rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 0.5) for _ in range(100)]
    spread = np.std([each.value for each in found])
    # The spread of 100 values is known to 7%; the jackknife's mean square is about right away from equal laws.
    assert np.sqrt(np.mean([each.error**2 for each in found])) == pytest.approx(spread, rel=0.3)


def test_equal_laws_give_zero_on_average():
    rng = np.random.default_rng(4)
    values = [mmd(rng.normal(size=(20, 2)), rng.normal(size=(30, 2)), scale=1.0, groups=2).value for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)  # false alarm below 1e-4
    assert min(values) < 0


def test_fixed_proportions_of_classes_bias_the_value_and_not_the_corrected_one():
    rng = np.random.default_rng(5)
    labels = np.repeat([-3.0, 3.0], 20)[:, None]  # exactly half of each, in order
    found = [kid(labels + rng.normal(size=(40, 1)), labels + rng.normal(size=(40, 1))) for _ in range(100)]
    values, corrected = (np.array([getattr(each, name) for each in found]) for name in ("value", "corrected"))
    standard = 4 / np.sqrt(100)
    assert values.mean() < -standard * values.std()
    assert abs(corrected.mean()) < standard * corrected.std()


def test_the_default_length_is_the_median_distance():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=(20, 2))
    pooled = np.concatenate([x, y])
    distances = [np.linalg.norm(p - q) for i, p in enumerate(pooled) for q in pooled[:i]]
    length = median_distance(x, y)
    assert length == pytest.approx(np.sort(distances)[(len(distances) - 1) // 2])
    assert mmd(x, y).value == pytest.approx(mmd(x, y, scale=length).value, abs=1e-15)
    assert mmd(x, y).value == pytest.approx(mmd(x, y, kernel=gaussian(length)).value, abs=1e-15)
    assert median_distance(np.zeros((5, 2)), np.zeros((5, 2))) == 1.0


def test_kernels_are_one_at_distance_zero():
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert gaussian(0.7)(x, x).diagonal().tolist() == pytest.approx([1.0] * 4)
    assert rational_quadratic(0.7)(x, x).diagonal().tolist() == pytest.approx([5.0] * 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: mmd(x, x[:, :1]),
        lambda x: mmd(x[:3], x),
        lambda x: mmd(x, x, kernel="cubical"),
        lambda x: mmd(x, x, scale=0.0),
        lambda x: kid(x, x, groups=1),
    ],
)
def test_bad_arguments_are_refused(call):
    with pytest.raises(ValueError, match=r"expected|choose|needs|must"):
        call(np.random.default_rng(0).normal(size=(8, 2)))
