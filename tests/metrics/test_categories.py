"""Distances of tables against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from undiffuse.metrics.categories import column_distance, independent_bits


def test_equal_tables_have_no_distance() -> None:
    table = np.random.default_rng(0).integers(0, 4, (50, 3))
    assert column_distance(table, table) == 0 and column_distance(table, table, 2) == 0


def test_pairs_see_what_single_columns_do_not() -> None:
    """Two fair bits, equal or independent: the columns agree, the pairs differ by 1/2."""
    dependent = np.array([[0, 2], [1, 3]] * 8)
    independent = np.array([[0, 2], [0, 3], [1, 2], [1, 3]] * 4)
    assert column_distance(dependent, independent, 1) == 0
    assert column_distance(dependent, independent, 2) == pytest.approx(0.5)


def test_the_distance_is_total_variation_averaged_over_columns() -> None:
    a, b = np.array([[0, 5], [0, 5], [1, 5], [2, 5]]), np.array([[0, 5], [1, 5]])
    assert column_distance(a, b) == pytest.approx(0.5 * (abs(0.5 - 0.5) + abs(0.25 - 0.5) + 0.25) / 2)


def test_independent_bits_tend_to_the_entropy() -> None:
    table = np.random.default_rng(0).choice(4, p=[0.5, 0.25, 0.125, 0.125], size=(40_000, 2))
    assert independent_bits(table, table) == pytest.approx(1.75, abs=0.02)  # 4 standard errors of 80 000 cells


def test_values_unseen_in_training_cost_a_finite_number_of_bits() -> None:
    assert independent_bits(np.zeros((7, 1), dtype=np.int64), np.ones((1, 1), dtype=np.int64)) == pytest.approx(4.0)


@pytest.mark.parametrize("shapes", [((3, 2), (3, 1)), ((0, 2), (3, 2))])
def test_tables_that_cannot_be_compared_are_refused(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="tables of shape"):
        column_distance(*(np.zeros(shape, dtype=np.int64) for shape in shapes))
