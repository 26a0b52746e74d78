"""PCK by hand in every convention, and its intervals."""

from __future__ import annotations

import numpy as np
import pytest

from undiffuse.metrics.key_points import PairErrors, pair_errors, pck, pck_gain, pck_interval


def errors(*values: float, size: float = 100.0, category: str = "") -> PairErrors:
    return PairErrors(np.array(values, dtype=np.float64), size, category)


def test_thresholds_by_hand():
    pair = [errors(0, 5, 9.99, 10.01, 30)]
    assert pck(pair, 0.1) == pytest.approx(3 / 5)
    assert pck(pair, 0.05) == pytest.approx(1 / 5)
    assert pck(pair, 0.05, strict=False) == pytest.approx(2 / 5)


def test_averages_by_hand():
    pairs = [errors(1, 1, category="cat"), errors(*[50.0] * 8, category="dog"), errors(1, 50, category="dog")]
    assert pck(pairs[:2], average="image") == pytest.approx(0.5)
    assert pck(pairs[:2], average="point") == pytest.approx(0.2)
    assert pck(pairs, average="point") == pytest.approx(3 / 12)
    assert pck(pairs, average="image") == pytest.approx((1 + 0 + 0.5) / 3)
    assert pck(pairs, average="category") == pytest.approx((1 + 0.1) / 2)
    assert pck(pairs, average="category-pairs") == pytest.approx((1 + 2 * 0.1) / 3)
    assert pck(pairs, average="category-image") == pytest.approx((1 + 0.25) / 2)


def test_what_is_not_visible_does_not_count():
    truth = [[0.0, 0], [10, 10], [20, 20]]
    found = pair_errors([[0.0, 3], [10, 14], [90, 90]], truth, 10.0, visible=[True, True, False])
    assert found.errors.tolist() == [3.0, 4.0]
    unseen = pair_errors(truth, truth, 10.0, visible=[False] * 3)
    assert pck([found, unseen], 0.35, average="image") == pytest.approx(0.5)  # the pair without points is in no mean
    with pytest.raises(ValueError, match="none of 1 pairs"):
        pck([unseen])
    with pytest.raises(ValueError, match="expected"):
        pair_errors(truth, truth[:2], 10.0)
    with pytest.raises(ValueError, match="above 0"):
        errors(1.0, size=0.0)
    with pytest.raises(ValueError, match="NaN"):
        errors(float("nan"))
    with pytest.raises(ValueError, match="unknown"):
        pck([found], average="points")  # type: ignore[arg-type]


def test_intervals_hold_the_figure_and_pairing_makes_them_narrow():
    rng = np.random.default_rng(0)
    base = [errors(*rng.uniform(0, 20, 6)) for _ in range(200)]
    better = [errors(*(pair.errors - 0.5).clip(0)) for pair in base]
    interval = pck_interval(better, 0.1, draws=200)
    assert interval.low < interval.value == pck(better, 0.1) < interval.high
    # of a share p of n points that are independent the standard error is sqrt(p (1 - p) / n); 200 draws know it to 20 %
    p = interval.value
    assert interval.error == pytest.approx((p * (1 - p) / 1200) ** 0.5, rel=0.25)
    gain = pck_gain(better, base, 0.1, draws=200)
    assert gain.value == pytest.approx(pck(better, 0.1) - pck(base, 0.1))
    assert gain.low > 0
    assert gain.error < interval.error / 2
    with pytest.raises(ValueError, match="same pairs"):
        pck_gain(better, base[:-1], 0.1)
