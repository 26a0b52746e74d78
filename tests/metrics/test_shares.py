"""Shares of items and their intervals."""

from __future__ import annotations

import math

import pytest

from undiffuse.metrics.shares import share


def test_intervals_are_those_of_the_books():
    """Wilson's interval solves (p - x)^2 = z^2 x (1 - x) / n; at 0 of n it ends at z^2 / (n + z^2)."""
    z = 1.959963984540054
    found = share([True] * 7 + [False] * 13)
    for end in (found.low, found.high):
        assert (0.35 - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / 20, rel=1e-9)
    none = share([False] * 20)
    assert (none.low, none.high) == (0.0, pytest.approx(z**2 / (20 + z**2)))
    assert share([True] * 20).high == 1.0
    normal = share([True] * 7 + [False] * 13, "normal")
    assert normal.high - normal.low == pytest.approx(2 * z * math.sqrt(0.35 * 0.65 / 20))
    assert str(share([True] * 20)) == "100.0 % (95 %: 83.9 to 100.0)"
    with pytest.raises(ValueError, match="use wilson or normal"):
        share([True], "exact")
