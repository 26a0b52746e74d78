"""Data that stay on disk: items are read while training, ahead of the step that needs them, by a few threads.

A `Source` reads one item by its row. A `Reader` reads many of them ahead and keeps the last ones, bounded in bytes.
`LazyDataset` is a data set over both: the same batches as from memory, in the same order.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from undiffuse.data.dataset import IndexedDataset, Problem, some_problems
from undiffuse.data.memory import free_bytes
from undiffuse.errors import DataError

Item = dict[str, np.ndarray]
_CACHE_BYTES = 1 << 28
_WORKERS = max(2, min(8, os.cpu_count() or 1))


class Source(Protocol):
    """Items on disk."""

    def __len__(self) -> int:
        """Return the number of rows, M."""
        ...

    def read(self, row: int) -> Item:
        """Return one item: "x" and, by name, its conditions of kind "map", uint8 or float32 in stored units.

        Called from several threads at once.

        Raises:
            DataError, OSError: The item cannot be read; `path` and `reason`, where the error has them, say what and
                why (as those of `UnreadablePicture`).
        """
        ...


class Reader:
    """Reads items ahead of their use, and keeps the last ones.

    Args:
        source: Where items come from.
        workers: Threads.
        cache_bytes: Most bytes of items kept after their use; None: 256 MB, or an eighth of the memory that is free.

    Attributes:
        problems: Rows that could not be read, and why.
    """

    def __init__(self, source: Source, workers: int = _WORKERS, cache_bytes: int | None = None) -> None:
        self.source, self.workers = source, workers
        free = free_bytes() if cache_bytes is None else None
        most = _CACHE_BYTES if free is None else min(_CACHE_BYTES, free // 8)
        self.cache_bytes = most if cache_bytes is None else cache_bytes
        self.problems: dict[int, Problem] = {}
        self._kept: OrderedDict[int, Item] = OrderedDict()
        self._bytes = 0
        self._coming: dict[int, Future[Item | Problem]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def prefetch(self, rows: Iterable[int], *, forget: bool = True) -> None:
        """Begin to read these rows; with `forget`, what was asked for before and is not among them is dropped."""
        wanted = dict.fromkeys(rows)
        if forget:
            for row in self._coming.keys() - wanted.keys():
                self._coming.pop(row).cancel()
        for row in wanted:
            if row not in self._kept and row not in self._coming and row not in self.problems:
                self._coming[row] = self._threads().submit(self._read, row)

    def get(self, row: int) -> Item | Problem:
        """Return an item, or why it cannot be read."""
        if row in self.problems:
            return self.problems[row]
        if row in self._kept:
            self._kept.move_to_end(row)
            return self._kept[row]
        future = self._coming.pop(row, None)
        found = self._read(row) if future is None else future.result()
        if isinstance(found, Problem):
            self.problems[row] = found
        else:
            self._keep(row, found)
        return found

    def close(self) -> None:
        """Stop the threads; a later call starts them again."""
        self._coming.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _read(self, row: int) -> Item | Problem:
        try:
            return self.source.read(row)
        except DataError as error:
            return Problem(str(getattr(error, "path", f"item {row}")), str(getattr(error, "reason", error)))
        except OSError as error:
            return Problem(str(error.filename or f"item {row}"), (error.strerror or str(error)).lower())

    def _keep(self, row: int, item: Item) -> None:
        self._kept[row] = item
        self._bytes += _bytes_of(item)
        while self._bytes > self.cache_bytes:
            self._bytes -= _bytes_of(self._kept.popitem(last=False)[1])

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="undiffuse-read")
        return self._pool


@dataclass(frozen=True, kw_only=True, eq=False)
class LazyDataset(IndexedDataset):
    """Items that are read from disk as they are drawn.

    An item that turns out to be unreadable is replaced by the next readable one of the same part (with that one's
    labels and conditions), so batches stay a function of the data; more than `max_bad` of them end the run.

    Args:
        reader: Reads them; shared by all parts of the data.
        max_bad: Share of items that may be unreadable.
    """

    reader: Reader
    max_bad: float = 0.05

    @property
    def total(self) -> int:
        """Number of rows, M."""
        return len(self.reader.source)

    @property
    def device(self) -> torch.device:
        """Batches are made on the CPU."""
        return torch.device("cpu")

    def fetch(self, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return rows and stored items; see `IndexedDataset.fetch`.

        Raises:
            DataError: Too many items cannot be read.
        """
        self.reader.prefetch(self.positions_to_rows(positions).tolist(), forget=False)
        found = [self._readable(position) for position in positions.tolist()]
        rows = torch.tensor([row for row, _ in found], dtype=torch.int64)
        return rows, {name: stack([item[name] for _, item in found]) for name in (found[0][1] if found else ())}

    def prefetch(self, index: Tensor) -> None:
        """Begin to read the items at positions `index`, which come next."""
        positions = index % max(self.count, 1) if self.mirror else index
        self.reader.prefetch(self.positions_to_rows(positions).tolist())

    def found_late(self) -> list[Problem]:
        """Return the items that turned out to be unreadable while batches were made."""
        return [self.reader.problems[row] for row in sorted(self.reader.problems)]

    def close(self) -> None:
        """Stop reading ahead."""
        self.reader.close()

    def to(self, device: torch.device | str) -> Self:
        """Return the data set itself: items come from disk, and whoever draws them moves them."""
        return self

    def summary(self) -> list[str]:
        """Return lines for people."""
        return [*super().summary(), "read from disk while training (data.lazy)"]

    def _readable(self, position: int) -> tuple[int, Item]:
        """Return the item at a position, or the first one after it that can be read."""
        for step in range(self.count):
            place = (position + step) % self.count
            row = place if self.rows is None else int(self.rows[place])
            found = self.reader.get(row)
            if not isinstance(found, Problem):
                return row, found
            refuse_late(self.found_late(), self.total, self.max_bad)
        raise DataError("none of the items can be read; look at the files.")


def refuse_late(bad: list[Problem], total: int, most: float) -> None:
    """Raise `DataError` where more of `total` items turned out to be unreadable than `most`, a share, allows."""
    if len(bad) > most * total:
        raise DataError(
            f"{len(bad)} item(s) turned out to be unreadable, more than data.max_bad={most:g} of {total} allows: "
            f"{some_problems(bad)}. Remove or mend them, or raise data.max_bad."
        )


def stack(parts: list[np.ndarray]) -> Tensor:
    """Return arrays of one shape as a tensor (B, ...), contiguous whatever the order of their axes in memory.

    A convolution rounds differently in another memory layout, so batches would not train to the same bits.
    """
    return torch.from_numpy(np.ascontiguousarray(np.stack(parts)))


def _bytes_of(item: Item) -> int:
    return sum(part.nbytes for part in item.values())
