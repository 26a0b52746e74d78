"""Rows of an endlessly repeated stream, by number."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from undiffuse.data.windows import Part, Row, Window
from undiffuse.errors import DataError


class Counting:
    """Row i says i; counts what was read and how often it was sought."""

    where = "the numbers"

    def __init__(self, total: int) -> None:
        self.total = total
        self.read, self.seeks = 0, 0

    def rows(self, start: int) -> Iterator[Row]:
        self.seeks += 1
        for number in range(start, self.total):
            self.read += 1
            yield {"number": number}


def numbers(window: Window, positions: range) -> list[int]:
    return [window.row(position)["number"] for position in positions]


@pytest.mark.parametrize("total", [1, 7, 100])
@pytest.mark.parametrize("block", [1, 8])
def test_a_stream_is_repeated_without_end(total: int, block: int):
    window = Window(Counting(total), block)
    assert numbers(window, range(250)) == [i % total for i in range(250)]
    assert window.total == total


def test_reading_in_order_reads_each_row_once():
    stream = Counting(1000)
    window = Window(stream, 16)
    numbers(window, range(900))
    assert stream.read == 900 and stream.seeks == 1


def test_a_block_may_be_read_in_any_order():
    stream = Counting(1000)
    window = Window(stream, 16)
    assert numbers(window, range(31, 15, -1)) == list(range(31, 15, -1))
    assert stream.seeks == 1  # from the start of the block, not once per row


@pytest.mark.parametrize("position", [5, 99, 100, 105, 950])
def test_a_place_is_found_from_a_fresh_start(position: int):
    window = Window(Counting(100), 8)
    assert window.row(position)["number"] == position % 100
    assert numbers(window, range(position, position + 120)) == [i % 100 for i in range(position, position + 120)]


def test_going_back_is_possible():
    window = Window(Counting(1000), 4)
    numbers(window, range(500))
    assert window.row(3)["number"] == 3


def test_threads_get_their_rows():
    window = Window(Counting(333), 32)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: window.row(i)["number"], range(2000)))
    assert found == [i % 333 for i in range(2000)]


def test_a_part_begins_and_ends_inside():
    part = Part(Counting(20), 5, 12)
    assert [row["number"] for row in part.rows(0)] == list(range(5, 12))
    assert [row["number"] for row in part.rows(4)] == [9, 10, 11]
    assert list(part.rows(9)) == []
    assert [row["number"] for row in Part(Counting(20), 18).rows(0)] == [18, 19]


def test_the_first_rows_may_be_all_there_are():
    window = Window(Counting(3), 8)
    assert len(window.peek(10)) == 3 and window.total == 3
    assert len(Window(Counting(30), 8).peek(10)) == 10


@pytest.mark.parametrize("position", [0, 50])
def test_an_empty_stream_is_refused(position: int):
    with pytest.raises(DataError, match="the numbers holds no rows"):
        Window(Counting(0), 4).row(position)
