"""Times and how they meet a batch."""

from __future__ import annotations

import math

import pytest
import torch

from undiffuse.process.times import align, check_time, expand_time

X = torch.zeros(3, 4, 5)


@pytest.mark.parametrize("t", [0.0, 1.0, 0.3, 1])
def test_numbers_in_the_unit_interval_pass(t: float) -> None:
    check_time(t, X)
    assert torch.equal(expand_time(t, X), torch.full((3,), t, dtype=torch.float64))


@pytest.mark.parametrize("t", [-1e-9, 1.0000001, math.nan, math.inf, 999])
def test_numbers_outside_are_refused(t: float) -> None:
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        check_time(t, X)


@pytest.mark.parametrize(
    ("shape", "expanded"),
    [((), (3,)), ((3,), (3,)), ((3, 4), (3, 4)), ((1, 4), (3, 4)), ((3, 4, 5), (3, 4, 5)), ((1, 4, 5), (3, 4, 5))],
)
def test_shapes_that_broadcast_from_the_left_pass(shape: tuple[int, ...], expanded: tuple[int, ...]) -> None:
    t = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    check_time(t, X)
    assert expand_time(t, X).shape == expanded
    assert torch.equal(expand_time(t, X), t.expand(expanded))


@pytest.mark.parametrize("shape", [(4,), (5,), (1,), (2,)])
def test_one_axis_of_another_size_is_refused_and_the_right_form_named(shape: tuple[int, ...]) -> None:
    """(F,) would be read as (B,)."""
    with pytest.raises(ValueError, match=r"\(1, F\)") as caught:
        check_time(torch.zeros(shape), X)
    assert str(shape) in str(caught.value)
    assert "3 items" in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 5), (2, 4), (3, 1), (1, 1), (4, 3), (3, 4, 4), (3, 4, 5, 1)])
def test_sizes_that_do_not_fit_are_refused_naming_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        check_time(torch.zeros(shape), X)
    assert str(shape) in str(caught.value)
    assert "(3, 4, 5)" in str(caught.value)


def test_aligned_times_multiply_from_the_left() -> None:
    t = torch.arange(12.0).reshape(3, 4)
    assert align(t, X).shape == (3, 4, 1)
    assert torch.equal((align(t, X) + X)[2, 1], torch.full((5,), 9.0))
    assert align(torch.arange(3.0), X).shape == (3, 1, 1)
