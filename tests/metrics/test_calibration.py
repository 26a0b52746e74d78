from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undiffuse.metrics import (
    coverage,
    energy_distance,
    energy_to_reference,
    fair_crps,
    rank_histogram,
    sparsification,
    spread_ratio,
    z_squared,
)
from undiffuse.noise import KeyedNoise

_ITEMS, _SAMPLES = 200_000, 8


@pytest.fixture(scope="module")
def normals() -> Tensor:
    """K + 1 independent standard normals of each item: calibrated samples and their truth, (K + 1, items)."""
    return KeyedNoise(3, range(_SAMPLES + 1)).normal("data", 0, (_ITEMS,), torch.float64)


def scaled(normals: Tensor, std: float) -> tuple[Tensor, Tensor]:
    return std * normals[1:], normals[0]


def test_calibrated_samples_give_what_they_should(normals):
    samples, truth = scaled(normals, 1.0)
    root = math.sqrt(_ITEMS)  # each bound is 5 standard errors, false alarm below 1e-6
    assert spread_ratio(samples, truth) == pytest.approx(1.0, abs=5 * 1.51 / root)  # sd of the ratio: sqrt(2 + 2 / 7)
    assert spread_ratio(samples, exact_variance=torch.ones(_ITEMS)) == pytest.approx(1.0, abs=5 * 0.54 / root)
    found = coverage(samples, truth)
    assert found.nominal == pytest.approx(7 / 9)
    assert found.share == pytest.approx(found.nominal, abs=5 * 0.42 / root)
    assert coverage(samples, truth, rank=3).share == pytest.approx(1 - 6 / 9, abs=5 * 0.48 / root)
    histogram = rank_histogram(samples, truth)
    assert histogram.shape == (9,) and float(histogram.sum()) == pytest.approx(_ITEMS)
    assert float((histogram / _ITEMS - 1 / 9).abs().max()) < 5 * 0.32 / root
    assert fair_crps(samples, truth) == pytest.approx(1 / math.sqrt(math.pi), abs=5 * 0.9 / root)
    assert z_squared(samples, truth) == pytest.approx(1.0, abs=5 * 3.0 / root)  # of (9/8) F(1, 7) * 40/63: sd 2.5


def test_few_samples_are_judged_as_many_are(normals):
    """The corrections for K: without them, the ratios of 4 samples would be off by 20 % and more."""
    few = normals[1:6], normals[0]
    assert spread_ratio(*few) == pytest.approx(1.0, abs=0.02)
    assert z_squared(*few) == pytest.approx(1.0, abs=0.15)  # F(1, 4) has no variance: a loose bound
    assert fair_crps(normals[1:3], normals[0]) == pytest.approx(1 / math.sqrt(math.pi), abs=0.015)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_samples_of_a_wrong_width_are_found_out(normals, std):
    samples, truth = scaled(normals, std)
    expected = (1 + 1 / 8) * std**2 / (1 + std**2 / 8)
    assert spread_ratio(samples, truth) == pytest.approx(expected, rel=0.02)
    assert (coverage(samples, truth).share > 7 / 9) == (std > 1)
    histogram = rank_histogram(samples, truth)
    assert bool(histogram[0] < histogram[4]) == (std > 1)
    assert fair_crps(samples, truth) > 1 / math.sqrt(math.pi) + 0.02


def test_equal_values_share_their_ranks():
    samples = torch.tensor([[0.0, -1.0], [0.0, 1.0], [1.0, 2.0]])
    assert rank_histogram(samples, torch.tensor([0.0, 5.0])).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])


def test_crps_is_the_double_sum(normals):
    samples, truth = normals[1:6, :7], normals[0, :7]
    pairs = (samples[:, None] - samples[None]).abs().sum((0, 1)) / (2 * 5 * 4)
    assert fair_crps(samples, truth) == pytest.approx(float(((samples - truth).abs().mean(0) - pairs).mean()))


def test_energy_distance_is_taken_item_by_item(normals):
    samples, reference = normals[:4, :12].view(4, 3, 2, 2), normals[4:, :12].view(5, 3, 2, 2)
    each = [energy_distance(samples[:, i], reference[:, i]) for i in range(3)]
    assert energy_to_reference(samples, reference) == pytest.approx(sum(each) / 3)


def test_sparsification_knows_a_perfect_map_from_a_useless_one(normals):
    truth = torch.zeros(1000, dtype=torch.float64)
    size = torch.linspace(0.1, 2.0, 1000, dtype=torch.float64)
    fits = torch.stack([2 * size, torch.zeros(1000)])  # mean = error = size, deviation sqrt(2) size
    assert sparsification(fits, truth).ause == pytest.approx(0.0, abs=1e-12)
    turned = torch.stack([size + size.flip(0), size - size.flip(0)])
    found = sparsification(turned, truth)
    assert found.ause > 0.5
    assert [float(curve[0]) for curve in (found.error, found.oracle)] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, x: spread_ratio(s, x, x), "one of them"),
        (lambda s, x: spread_ratio(s[:1], x), "at least 2"),
        (lambda s, x: z_squared(s[:3], x), "at least 4"),
        (lambda s, x: z_squared(torch.zeros(4, *x.shape), x), "no element"),
        (lambda s, x: coverage(s, x, rank=5), "choose 1 to 4"),
        (lambda s, x: fair_crps(s, x[:1]), "one more axis"),
        (lambda s, x: energy_to_reference(s, s[:, :1]), "the reference of"),
        (lambda s, x: sparsification(s, x, points=1), "at least 2"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.arange(24.0).view(8, 3), torch.zeros(3))
