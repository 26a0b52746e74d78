"""Reading .npy, .npz and .csv files into an array and, where there are some, class labels."""

from __future__ import annotations

import csv
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data.memory import require_memory
from undiffuse.data.options import DataOptions
from undiffuse.errors import DataError

_CSV_LABELS = ("label", "labels", "class")
_NPZ_LABELS = ("labels", "label", "y")
_NPZ_DATA = ("x", "data", "images")
_DAMAGE = (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error)
_MEMORY_PER_CSV_BYTE = 8  # the text, float64 values of short numbers, and labels


@dataclass(frozen=True)
class Table:
    """Values (N, ...) of any number type, the class name of each row, and the names of the columns (csv).

    `beside` holds columns that are no data but may be conditions; `classes` the names of class numbers in them.
    """

    values: np.ndarray
    labels: list[str] | None = None
    columns: tuple[str, ...] = ()
    beside: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_npy(path: Path, options: DataOptions) -> Table:
    """Read a .npy file without loading it: the array stays on disk until it is used."""
    if options.key or options.label or options.columns():
        raise DataError(f"{path} holds one array without names; data.key, data.label and data.cond need a .npz file.")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if not isinstance(values, np.ndarray):
        raise DataError(f"{path} holds several arrays; name the file .npz.")
    return Table(values)


def read_npz(path: Path, options: DataOptions) -> Table:
    """Read the data array and the labels of a .npz file."""
    try:
        with zipfile.ZipFile(path) as archive:
            require_memory(sum(i.file_size for i in archive.infolist()), f"reading {path}", "split the file")
        with np.load(path, allow_pickle=False) as arrays:
            label_key = _label_key(arrays.files, options.label, path)
            aside = _aside(arrays.files, options, path)
            left = [name for name in arrays.files if name != label_key and name not in aside]
            values = arrays[_data_key(left, options.key, path)]
            beside = {name: _beside(arrays[name], values, name, path) for name in aside}
            return replace(_labelled(values, arrays[label_key] if label_key else None, path), beside=beside)
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def read_csv(path: Path, options: DataOptions) -> Table:
    """Read numbers separated by commas, semicolons or tabs; a first row that is not all numbers names the columns.

    Empty cells count as NaN.
    """
    if options.key:
        raise DataError(f"{path} holds one table; data.key={options.key!r} needs a .npz file.")
    require_memory(path.stat().st_size * _MEMORY_PER_CSV_BYTE, f"reading {path}", "split the file")
    with table_rows(path) as filled:
        return _parse_rows(filled, path, options)


@contextmanager
def table_rows(path: Path) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """Open a table separated by commas, semicolons or tabs, and give (line number, cells) of each row that has some.

    Raises:
        DataError: It is no table of text.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            rows = csv.reader(file, delimiter=max(",;\t", key=head.count))
            yield ((rows.line_num, row) for row in rows if row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a table of text ({error}); save it as UTF-8 csv.") from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = "it holds Python objects" if "allow_pickle" in str(error) else " ".join(str(error).split())
    return DataError(
        f"cannot read the array {path}: {reason}; expected plain numbers saved by numpy.save or numpy.savez."
    )


def _label_key(names: Sequence[str], wanted: str | None, path: Path) -> str | None:
    if wanted is None:
        return next((name for name in _NPZ_LABELS if name in names and len(names) > 1), None)
    if wanted not in names:
        raise DataError(f"{path} has no array data.label={wanted!r}; it holds {', '.join(names)}.")
    return wanted


def _data_key(names: Sequence[str], wanted: str | None, path: Path) -> str:
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{path} has no array data.key={wanted!r}; it holds {', '.join(names)}.")
        return wanted
    usual = [name for name in names if name in _NPZ_DATA] if len(names) > 1 else names
    if len(usual) != 1:
        raise DataError(f"{path} holds {len(names)} arrays ({', '.join(names)}); say which with data.key.")
    return usual[0]


def _aside(names: Sequence[str], options: DataOptions, path: Path) -> list[str]:
    """Return the columns or arrays that `data.cond` names."""
    aside = list(options.columns() or {})
    for name in aside:
        if name not in names:
            raise DataError(f"{path} has no column {name!r} (data.cond); it holds {', '.join(names) or 'no names'}.")
    return aside


def _beside(found: np.ndarray, values: np.ndarray, name: str, path: Path) -> list[Any]:
    if found.ndim not in (1, 2) or found.shape[:1] != values.shape[:1]:
        raise DataError(f"{path} has a condition {name!r} of shape {found.shape}; expected one row for each item.")
    return found.tolist()


def _labelled(values: np.ndarray, labels: np.ndarray | None, path: Path) -> Table:
    if labels is None:
        return Table(values)
    labels = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != values.shape[:1]:
        raise DataError(
            f"{path} has labels of shape {labels.shape} for data of shape {values.shape}; expected one per item."
        )
    if labels.dtype.kind == "f":
        if not np.isfinite(labels).all() or (labels % 1 != 0).any():
            raise DataError(f"{path} has labels that are not whole numbers; data.label must name an array of classes.")
        labels = labels.astype(np.int64)
    return Table(values, [str(label) for label in labels.tolist()])


def _parse_rows(filled: Iterator[tuple[int, list[str]]], path: Path, options: DataOptions) -> Table:
    first_line, first = next(filled, (0, []))
    if not first:
        raise DataError(f"{path} is empty; expected rows of numbers.")
    header = None if all(is_number(cell) for cell in first) else [cell.strip() for cell in first]
    label_at = label_column(header, options.label, path)
    aside = {(header or []).index(name): name for name in _aside(header or [], options, path) if name != "label"}
    dropped = {*aside, *([] if label_at is None else [label_at])}
    columns = tuple(name for at, name in enumerate(header or map(str, range(len(first)))) if at not in dropped)
    values, labels = array("d"), []
    beside: dict[str, list[Any]] = {name: [] for name in aside.values()}
    for line, row in filled if header else chain([(first_line, first)], filled):
        if len(row) != len(first):
            raise DataError(
                f"{path} has {len(row)} cells in line {line} but {len(first)} in the first; mend that line."
            )
        if label_at is not None:
            labels.append(_class_name(row[label_at], line, path))
        for at, name in aside.items():
            beside[name].append(row[at])
        if dropped:
            row = [cell for at, cell in enumerate(row) if at not in dropped]
        values.extend(_numbers(row, columns, line, path))
    if not columns:
        raise DataError(f"{path} has labels but no columns of numbers.")
    table = np.array(values).reshape(-1, len(columns))
    return Table(table, labels if label_at is not None else None, columns, beside)


def _class_name(cell: str, line: int, path: Path) -> str:
    if not cell.strip():
        raise DataError(f"{path} has no class in line {line}; fill the label column.")
    return cell.strip()


def is_number(cell: str) -> bool:
    """Whether a cell holds a number or nothing."""
    try:
        float(cell.strip() or "nan")
    except ValueError:
        return False
    return True


def label_column(header: Sequence[str] | None, wanted: str | None, path: Path) -> int | None:
    """Return the place of the column of classes; None where there is none.

    Raises:
        DataError: There is no column `wanted`.
    """
    if header is None:
        if wanted is not None:
            raise DataError(f"{path} has no row of column names, so data.label={wanted!r} cannot be found; add one.")
        return None
    if wanted is None:
        return next((at for at, name in enumerate(header) if name.lower() in _CSV_LABELS), None)
    if wanted not in header:
        raise DataError(f"{path} has no column data.label={wanted!r}; its columns are {', '.join(header)}.")
    return header.index(wanted)


def _numbers(row: list[str], columns: Sequence[str], line: int, path: Path) -> list[float]:
    try:
        return [float(cell) for cell in row]
    except ValueError:
        wrong = next(((at, cell) for at, cell in enumerate(row) if not is_number(cell)), None)
    if wrong is None:
        return [float(cell.strip() or "nan") for cell in row]
    raise DataError(
        f"{path} has {wrong[1]!r} in line {line}, column {columns[wrong[0]]}; expected a number. Name a column of "
        "classes 'label', or with data.label."
    )
