"""Streams: data that are read in order while training, whose number nobody knows.

The order is that of the stream, shuffled in blocks of `data.shuffle` items by the seed, so a batch is a function of the
step, and a run that goes on finds its place by skipping rows. The first items are held out. What an item is, the
classes and the scale of numbers are read off the first rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from undiffuse.data.dataset import Problem, TensorDataset, items_in_words, units_in_words
from undiffuse.data.lazy import Item, Reader, refuse_late, stack
from undiffuse.data.options import DataOptions
from undiffuse.data.stream_items import Layout, data_column_of, see_layout
from undiffuse.data.stream_rows import PICTURE, ShardStream, rows_of
from undiffuse.data.windows import Part, Window
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec

_PEEK = 256  # rows that say what the data are
_HELD_OUT = 256
_TRIES = 64  # rows that are tried in the place of one that cannot be read
_OPTIONS = ("size", "channels", "resize", "key", "label", "cond", "caption_length", "split", "stream", "shuffle")


@dataclass(frozen=True)
class StreamSource:
    """Items of a stream by position, as a `Source`."""

    part: Part
    window: Window
    layout: Layout

    def __len__(self) -> int:
        return self.window.total or self.window.seen

    def read(self, row: int) -> Item:
        """Read and decode one item."""
        found = self.window.row(row)
        place = row if self.window.total is None else row % self.window.total
        return self.layout.read(found, f"item {self.part.first + place} of {self.part.where}")


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamDataset:
    """Items in the order of a stream, without end; see the module.

    Args:
        part: The rows.
        layout: How a row becomes an item.
        reader: Reads them ahead.
        shuffle: Items among which the order is shuffled.
        max_bad: Share of unreadable items tolerated.
        problems: Always empty: what cannot be read is found while training (`found_late`).
        notes: Lines of the summary.
    """

    part: Part
    layout: Layout
    reader: Reader
    shuffle: int
    max_bad: float = 0.05
    problems: Sequence[Problem] = ()
    notes: tuple[str, ...] = ()
    order: str = "sequential"

    @property
    def spec(self) -> DataSpec:
        """What one item is."""
        return self.layout.spec

    @property
    def endless(self) -> bool:
        """Whether nobody knows yet how many items there are."""
        return self._window.total is None

    @property
    def default_holdout(self) -> float:
        """Number of items to hold out unless asked otherwise."""
        total = self._window.total
        return float(_HELD_OUT if total is None else min(_HELD_OUT, max(1, total // 10)))

    @property
    def _window(self) -> Window:
        source = self.reader.source
        assert isinstance(source, StreamSource)
        return source.window

    def __len__(self) -> int:
        """Return the number of items, or of those read so far where the stream has not ended yet."""
        return len(self.reader.source)

    def batch(self, index: Tensor) -> dict[str, Any]:
        """Return the items at positions `index` (B,) of the stream, which may exceed its length; see `Dataset.batch`.

        Raises:
            DataError: Too many items cannot be read.
        """
        self.reader.prefetch(index.tolist(), forget=False)
        found = [self._readable(position) for position in index.tolist()]
        parts = {name: stack([item[name] for item in found]) for name in found[0]}
        x = (self.layout.stored or self.spec).to_model(parts.pop("x"))
        cond = {name: part.float() if part.is_floating_point() else part.long() for name, part in parts.items()}
        return {"x": x, "cond": cond, "index": index}

    def prefetch(self, index: Tensor) -> None:
        """Begin to read the items at positions `index`, which come next."""
        self.reader.prefetch(index.tolist())

    def found_late(self) -> list[Problem]:
        """Return the items that turned out to be unreadable while batches were made, each once."""
        problems = (self.reader.problems[position] for position in sorted(self.reader.problems))
        return list({problem.path: problem for problem in problems}.values())

    def close(self) -> None:
        """Stop reading ahead."""
        self.reader.close()

    def to(self, device: torch.device | str) -> Self:
        """Return the data set itself: whoever draws items moves them."""
        return self

    def cut(self, holdout: float) -> tuple[StreamDataset, TensorDataset]:
        """Return the stream without its first `holdout` items, and these in memory.

        Raises:
            DataError: They are all there is, or a share is asked of a stream of unknown length.
        """
        total = self._window.total
        if holdout < 1 and total is None:
            raise DataError(
                f"data.holdout={holdout:g} is a share, but nobody knows how many items {self.part.where} has; give a "
                f"number of items, such as data.holdout={_HELD_OUT}."
            )
        count = round(total * holdout) if holdout < 1 and total is not None else int(holdout)
        if count == 0 or (total is not None and count >= total):
            raise DataError(f"data.holdout={holdout:g} leaves nothing of {total} item(s); hold out another number.")
        held_out = self._hold(count)
        self.close()
        rest = replace(self.part, first=self.part.first + count)
        window = Window(rest, self.shuffle)
        window.total = None if total is None else total - count
        reader = Reader(StreamSource(rest, window, self.layout), cache_bytes=0)
        return replace(self, part=rest, reader=reader), held_out

    def summary(self) -> list[str]:
        """Return lines for people."""
        total = self._window.total
        count = "a stream of" if total is None else f"a stream of {total}"
        lines = [f"{count} {items_in_words(2, self.spec)}, {units_in_words(self.layout.stored or self.spec)}"]
        if self.spec.classes:
            lines.append(f"{len(self.spec.classes)} classes: {', '.join(self.spec.classes[:12])}")
        return [*lines, f"shuffled in blocks of {self.shuffle} items (data.shuffle)", *self.notes]

    def _hold(self, count: int) -> TensorDataset:
        positions = range(count)
        self.reader.prefetch(positions, forget=False)
        found = [(p, item) for p in positions if not isinstance(item := self.reader.get(p), Problem)]
        problems = tuple(self.found_late())
        refuse_late(list(problems), count, self.max_bad)
        if not found or (self._window.total is not None and self._window.total <= count):
            raise DataError(f"{self.part.where} has no more than the {count} items to hold out; hold out fewer.")
        parts = {name: stack([item[name] for _, item in found]) for name in found[0][1]}
        return TensorDataset(
            data=parts.pop("x"),
            spec=self.spec,
            stored=self.layout.stored,
            labels=parts.pop("label", None),
            cond=parts,
            ids=torch.tensor([position for position, _ in found]),
            problems=problems,
        )

    def _readable(self, position: int) -> Item:
        """Return the item at a position, or the first one after it that can be read."""
        for place in range(position, position + _TRIES):
            found = self.reader.get(place)
            if not isinstance(found, Problem):
                return found
            rows = self._window.total or max(self._window.seen, self.shuffle)
            refuse_late(self.found_late(), rows, self.max_bad)
        raise DataError(f"{_TRIES} items in a row of {self.part.where} cannot be read; the last one: {found}.")


def open_stream(source: str, options: DataOptions, spec: DataSpec | None = None) -> StreamDataset:
    """Open a stream (`data.stream=true`).

    Args:
        source: Tables, shards, "hf://...", .jsonl or .csv files, addresses of .tar shards.
        options: How to read it.
        spec: A model's spec.

    Raises:
        DataError: It is no such thing, cannot be read, or its first rows hold no data.
    """
    if options.encoder:
        raise DataError(
            f"data.encoder={options.encoder} encodes all captions once, which a stream does not allow; set "
            "data.stream=false, or leave data.encoder out."
        )
    options.refuse_others("streams", _OPTIONS)
    stream, kinds, classes = rows_of(source, options)
    whole = Part(stream, 0, options.limit)
    window = Window(whole, options.shuffle)
    rows = window.peek(_PEEK)
    key = PICTURE if isinstance(stream, ShardStream) else data_column_of(rows, kinds, options.key, source)
    layout, found = see_layout(rows, key, classes, options, source, spec)
    reader = Reader(StreamSource(whole, window, layout), cache_bytes=0)
    return StreamDataset(
        part=whole,
        layout=layout,
        reader=reader,
        shuffle=options.shuffle,
        max_bad=options.max_bad,
        notes=(f"read from {source} in order; seen so far: {len(rows)} item(s)", *found.notes),
    )
