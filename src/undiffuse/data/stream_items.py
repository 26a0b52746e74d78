"""How a row of a stream becomes an item, as seen in its first rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from undiffuse.data.columns import (
    Conditions,
    LackingValue,
    choose_columns,
    encode,
    is_missing,
    read_conditions,
    with_conditions,
)
from undiffuse.data.hub import Cells, cell_bytes, data_column
from undiffuse.data.lazy import Item
from undiffuse.data.options import DataOptions
from undiffuse.data.picture_source import decode_picture
from undiffuse.data.pictures import stream_target
from undiffuse.data.sidecars import plain_name
from undiffuse.data.windows import Row
from undiffuse.errors import DataError
from undiffuse.images.fit import Resize
from undiffuse.images.read import read_header, without_bomb_warnings
from undiffuse.spec import DataSpec


@dataclass(frozen=True)
class Layout:
    """How a row becomes an item.

    Args:
        spec: Units at the border, with classes and conditions.
        key: Column of the data.
        stored: Units of pictures as they are read; None for lists of numbers.
        resize: How pictures of other proportions are brought to the size.
        columns: Column of each condition.
        classes: Names of the classes of columns that hold class numbers.
    """

    spec: DataSpec
    key: str
    stored: DataSpec | None
    resize: Resize
    columns: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def read(self, row: Row, name: str) -> Item:
        """Return "x" and the conditions of a row.

        Raises:
            DataError: Something in it is missing or cannot be read.
        """
        item = {"x": self._picture(row, name) if self.stored else self._numbers(row, name)}
        for condition, column in self.columns.items():
            value = _named(row.get(column), self.classes.get(column, ()))
            try:
                item[condition] = encode(value, self.spec.conditions[condition])
            except LackingValue as error:
                raise LackingValue(name, f"its {column}: {error.reason}") from error
        return item

    def _picture(self, row: Row, name: str) -> np.ndarray:
        assert self.stored is not None
        return decode_picture(open_cell(row.get(self.key), name), name, self.stored, self.resize)

    def _numbers(self, row: Row, name: str) -> np.ndarray:
        try:
            values = np.asarray(row.get(self.key), dtype=np.float32)
        except (TypeError, ValueError):
            values = np.zeros(0, np.float32)
        if values.shape != self.spec.shape or not np.isfinite(values).all():
            raise LackingValue(name, f"the column {self.key} holds no {self.spec.shape[0]} finite numbers")
        return values


def see_layout(
    rows: Sequence[Row],
    key: str,
    classes: dict[str, tuple[str, ...]],
    options: DataOptions,
    where: str,
    spec: DataSpec | None,
) -> tuple[Layout, Conditions]:
    """Read off the first rows what items are."""
    names = dict.fromkeys(name for row in rows for name in row if name != key)
    columns = {name: [row.get(name) for row in rows] for name in names}
    usable = {name: values for name, values in columns.items() if not any(map(_is_picture, values))}
    found = read_conditions(usable, options, where, spec, classes, more=True)
    label = choose_columns(usable, options, where, spec, classes)[1]
    used = {name: name for name in found.specs} | ({"label": label} if label is not None else {})
    if any(_is_picture(row.get(key)) for row in rows):
        stored = _picture_spec(rows, key, options, where, spec)
        own = spec or with_conditions(stored, found)
    else:
        stored = None
        own = spec or with_conditions(_vector_spec(rows, key, where), found)
    return Layout(own, key, stored, options.resize, used, classes), found


def _is_picture(value: Any) -> bool:
    return isinstance(value, (bytes, dict)) or (isinstance(value, str) and Path(value).is_file())


@without_bomb_warnings()
def _picture_spec(rows: Sequence[Row], key: str, options: DataOptions, where: str, spec: DataSpec | None) -> DataSpec:
    headers = []
    for number, row in enumerate(rows):
        try:
            with open_cell(row.get(key), f"item {number}") as file:
                headers.append(read_header(file, f"item {number}"))
        except DataError:
            continue
    if len(rows) - len(headers) > options.max_bad * len(rows):
        raise DataError(f"{len(rows) - len(headers)} of the first {len(rows)} pictures of {where} cannot be read.")
    return DataSpec(kind="image", shape=stream_target(headers, options, spec, where), range=(0.0, 255.0))


def _vector_spec(rows: Sequence[Row], key: str, where: str) -> DataSpec:
    given = [np.asarray(row[key], dtype=np.float64) for row in rows if not is_missing(row.get(key))]
    if not given or given[0].ndim != 1 or any(values.shape != given[0].shape for values in given):
        raise DataError(f"{where}: the column {key!r} holds no lists of numbers of one length (data.key).")
    values = np.stack(given)
    std = values.std(axis=0)
    mean, std = values.mean(axis=0), np.where(std > 0, std, 1.0)
    return DataSpec(kind="vector", shape=given[0].shape, mean=tuple(mean.tolist()), std=tuple(std.tolist()))


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """Return the name of a class number."""
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def open_cell(cell: Any, name: str) -> BinaryIO:
    """Open a picture in a cell: bytes, bytes with a path, or a path."""
    return cell_bytes({"path": cell} if isinstance(cell, str) else cell, name)


def data_column_of(rows: Sequence[Row], kinds: Mapping[str, Cells], wanted: str | None, where: str) -> str:
    """Return the column of the data, by the types of the columns, else by the values in the first rows.

    Raises:
        DataError: There is none.
    """
    if any(cell.kind in ("picture", "array") for cell in kinds.values()):
        return plain_name(data_column(dict(kinds), wanted, where) or "")
    names = list(rows[0])
    found = [name for name in names if _is_data(rows[0][name])] if wanted is None else [wanted]
    if not found or found[0] not in names:
        raise DataError(f"{where} has no column of pictures or lists of numbers; it has {', '.join(names)} (data.key).")
    return found[0]


def _is_data(value: Any) -> bool:
    if isinstance(value, str):
        return Path(value).is_file()
    return isinstance(value, (bytes, list)) or (isinstance(value, dict) and "bytes" in value)
