"""Where the rows of a stream come from: tables, files of lines, shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from undiffuse.data.hub import HUB, STREAM_SUFFIXES, Cells, describe, is_table, load_table, trouble
from undiffuse.data.options import DataOptions
from undiffuse.data.shards import expand, is_shards, read_samples, sample_fields, shard_paths
from undiffuse.data.sidecars import plain_name
from undiffuse.data.windows import Row, RowStream
from undiffuse.errors import DataError
from undiffuse.images.read import PICTURE_SUFFIXES

PICTURE = "x"
"""Name under which shards give their pictures."""
_WEB = ("http://", "https://")


@dataclass(frozen=True)
class TableStream:
    """Rows of an `IterableDataset`."""

    where: str
    table: Any

    def rows(self, start: int) -> Iterator[Row]:
        """Return the rows from number `start` on."""
        with trouble(self.where):
            for row in self.table.skip(start) if start else self.table:
                yield {plain_name(str(name)): value for name, value in row.items()}


@dataclass(frozen=True)
class ShardStream:
    """Samples of .tar shards; pictures under `key`."""

    where: str
    names: tuple[str, ...]
    key: str | None

    def rows(self, start: int) -> Iterator[Row]:
        """Return the samples from number `start` on."""
        samples = read_samples((_opener(name) for name in self.names), self.names)
        return (self._row(sample) for number, sample in enumerate(samples) if number >= start)

    def _row(self, sample: dict[str, bytes]) -> Row:
        try:
            fields = sample_fields(sample)
        except (ValueError, AttributeError):
            fields = {}
        suffix = self.key or next((suffix for suffix in sample if f".{suffix}" in PICTURE_SUFFIXES), "")
        return {**fields, PICTURE: sample.get(suffix)}


def rows_of(source: str, options: DataOptions) -> tuple[RowStream, dict[str, Cells], dict[str, tuple[str, ...]]]:
    """Return the rows, what is known of their columns, and the names of class numbers."""
    if source.startswith(_WEB):
        return ShardStream(source, tuple(expand(source)), options.key), {}, {}
    if not source.startswith(HUB) and is_shards(source):
        return ShardStream(source, tuple(map(str, shard_paths(source))), options.key), {}, {}
    path = Path(source).expanduser()
    if not source.startswith(HUB) and not (path.exists() and (is_table(path) or path.suffix in STREAM_SUFFIXES)):
        raise DataError(
            f"{source} cannot be read as a stream; expected .parquet, .arrow, .jsonl or .csv files, .tar shards, a "
            f"folder saved by datasets, or hf://owner/name. Leave out data.stream."
        )
    table = load_table(source, options, stream=True)
    cells = {plain_name(name): describe(name, feature) for name, feature in (table.features or {}).items()}
    return TableStream(source, table), cells, {name: cell.classes for name, cell in cells.items() if cell.classes}


def _opener(name: str) -> Any:
    def opened() -> BinaryIO:
        if not name.startswith(_WEB):
            return open(name, "rb")
        from urllib.request import urlopen

        return urlopen(name, timeout=60)

    return opened
