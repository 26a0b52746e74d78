"""Rows of a stream by their number, although a stream can only be read in order.

The stream is repeated without end: position p of a stream of N rows is row p mod N, and N becomes known when the
stream first ends. The rows last read are kept, so that positions near each other may be asked for in any order, from
several threads; what lies further back or ahead is sought from the start of its block.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from undiffuse.errors import DataError

Row = dict[str, Any]
_SPARE = 64  # rows kept beside two blocks: what threads hold while others read on


class RowStream(Protocol):
    """Rows in a fixed order."""

    @property
    def where(self) -> str:
        """Stands for the stream in messages."""
        ...

    def rows(self, start: int) -> Iterator[Row]:
        """Return the rows from number `start` to the end; none where the stream is shorter."""
        ...


@dataclass(frozen=True)
class Part:
    """The rows [first, last) of a stream; to its end where `last` is None."""

    stream: RowStream
    first: int = 0
    last: int | None = None

    @property
    def where(self) -> str:
        """Stands for the stream in messages."""
        return self.stream.where

    def rows(self, start: int) -> Iterator[Row]:
        """Return the rows of the part from number `start` on."""
        if self.last is None:
            return self.stream.rows(self.first + start)
        left = max(0, self.last - self.first - start)
        return (row for _, row in zip(range(left), self.stream.rows(self.first + start), strict=False))


class Window:
    """Rows of an endlessly repeated stream by position.

    Args:
        stream: What is repeated.
        block: Rows among which the order is shuffled.

    Attributes:
        total: Number of rows N of the stream; None until it has ended once.
        seen: One more than the highest position read.
    """

    def __init__(self, stream: RowStream, block: int) -> None:
        self.stream, self.block = stream, block
        self.total: int | None = None
        self.seen = 0
        self._most = 2 * block + _SPARE
        self._kept: OrderedDict[int, Row] = OrderedDict()
        self._rows: Iterator[Row] | None = None
        self._next = 0  # position of the next row
        self._place = 0  # its number in the stream
        self._lock = threading.Lock()

    def row(self, position: int) -> Row:
        """Return the row at a position.

        Raises:
            DataError: The stream is empty, or what it raises itself.
        """
        with self._lock:
            if position not in self._kept:
                if self._rows is None or not self._next <= position < self._next + self._most:
                    self._seek(position // self.block * self.block)
                while self._next <= position:
                    self._read()
            return self._kept[position]

    def peek(self, count: int) -> list[Row]:
        """Return the first rows, `count` or all there are."""
        rows = []
        for position in range(count):
            row = self.row(position)
            if self.total is not None and position >= self.total:
                break
            rows.append(row)
        return rows

    def _read(self) -> None:
        row = self._advance()
        if row is None:
            self._end()
            row = self._advance()
        if row is None:
            raise DataError(f"{self.stream.where} holds no rows.")
        self._kept[self._next] = row
        self._next += 1
        self._place += 1
        self.seen = max(self.seen, self._next)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def _advance(self) -> Row | None:
        assert self._rows is not None
        return next(self._rows, None)

    def _end(self) -> None:
        """Note the length of a stream that has ended, and begin it again."""
        if self.total is None:
            self.total = self._place
        self._rows, self._place = self.stream.rows(0), 0

    def _seek(self, position: int) -> None:
        """Go to a position; a stream that turns out to be shorter is counted first."""
        self._kept.clear()
        self._next = position
        self._place = position if self.total is None else position % self.total
        self._rows = self.stream.rows(self._place)
        if self.total is not None or not self._place:
            return
        first = next(self._rows, None)
        if first is None:
            self.total = sum(1 for _ in self.stream.rows(0))
            if not self.total:
                raise DataError(f"{self.stream.where} holds no rows.")
            self._seek(position)
        else:
            self._rows = _chain(first, self._rows)


def _chain(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest
