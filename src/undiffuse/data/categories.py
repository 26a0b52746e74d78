"""Tables of categories: each column has values of its own, numbers with many values are cut into bins.

A row becomes tokens (L,), one per column; column l owns the K_l ids that follow those of the columns before it. A bin
is named by its median, and a number belongs to the bin whose name is nearest, so that data opened for a model meet
its bins exactly.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undiffuse.data.dataset import Problem, TensorDataset
from undiffuse.data.labels import number_labels
from undiffuse.data.memory import require_memory
from undiffuse.data.options import DataOptions
from undiffuse.data.tables import is_number, label_column, table_rows
from undiffuse.errors import DataError
from undiffuse.noise import permutation
from undiffuse.spec import DataSpec

_MOST_VALUES = 1000  # of a text column: beyond it, it names rows rather than kinds of rows
_MEMORY_PER_BYTE = 30  # of a csv file: a Python string per cell
_LOOKED_AT = 50  # rows that tell whether a table is one of categories


@dataclass(frozen=True)
class Column:
    """A column of cells, as text without spaces around it; an empty cell means that the value is missing."""

    name: str
    cells: list[str]

    @property
    def is_numeric(self) -> bool:
        """Whether every cell that is not empty is a number."""
        return all(is_number(cell) for cell in self.cells)

    def values(self, bins: int) -> tuple[str, ...]:
        """Return the names of its values: missing first, numbers by size, texts by name, or the medians of bins."""
        missing = ("",) if "" in self.cells else ()
        distinct = {cell for cell in self.cells if cell}
        if not self.is_numeric:
            return missing + tuple(sorted(distinct))
        if len(distinct) <= bins:
            return missing + tuple(sorted(distinct, key=float))
        numbers = np.sort([float(cell) for cell in self.cells if cell])
        medians = np.unique([np.median(part) for part in np.array_split(numbers, bins)])
        return missing + tuple(dict.fromkeys(f"{median:.6g}" for median in medians))

    def numbered(self, values: Sequence[str]) -> np.ndarray:
        """Return the number of each cell's value, int64 (N,); -1 where it is none of them."""
        known = {value: number for number, value in enumerate(values)}
        found = np.array([known.get(cell, -1) for cell in self.cells], dtype=np.int64)
        numeric = [(float(value), number) for value, number in known.items() if value and is_number(value)]
        if len(numeric) < len([value for value in values if value]):
            return found  # a column of texts: what is not named is unknown
        names, numbers = (np.array(part) for part in zip(*sorted(numeric), strict=True))
        edges = (names[1:] + names[:-1]) / 2
        for row in np.flatnonzero(found < 0):
            if self.cells[row] and is_number(self.cells[row]):
                found[row] = numbers[np.searchsorted(edges, float(self.cells[row]))]
        return found


def looks_like_categories(path: Path, options: DataOptions, spec: DataSpec | None) -> bool:
    """Whether a .csv or .tsv file is a table of categories: asked for, wanted by the model, or with a column of words.

    A column is one of words if none of its first cells is a number: a stray word among numbers is a mistake to report.
    """
    if spec is not None:
        return bool(spec.columns)
    if options.layout != "auto":
        return options.layout == "categories"
    named = options.columns() or {}
    with table_rows(path) as filled:
        head, *rows = [row for _, row in islice(filled, _LOOKED_AT + 1)] or [[]]
    if all(is_number(cell) for cell in head):
        return False
    aside = {label_column(head, options.label, path), *(at for at, name in enumerate(head) if name in named)}
    cells = ([row[at].strip() for row in rows if at < len(row)] for at in range(len(head)) if at not in aside)
    return any(any(column) and not any(is_number(cell) for cell in column if cell) for column in cells)


def open_categories(path: Path, options: DataOptions, spec: DataSpec | None = None) -> TensorDataset:
    """Read a table of categories; its first row names the columns, and the label column, if any, the classes.

    Args:
        path: A .csv or .tsv file.
        options: `bins`, `label`, `limit`, `max_bad`.
        spec: A model's spec: columns are found by name, and its values and bins are kept.

    Raises:
        DataError: No rows, a column that names every row, columns that the model lacks or wants, or too many cells
            with a value that the model does not know.
    """
    options.refuse_others("tables of categories", ("layout", "label", "bins"))
    require_memory(path.stat().st_size * _MEMORY_PER_BYTE, f"reading {path}", "set data.limit or split the file")
    columns, labels = _read(path, options)
    if spec is None:
        named = {column.name: _values(column, options, path) for column in columns}
    else:
        columns, named = _for_model(columns, spec, path)
    numbers, classes = (None, ()) if labels is None else number_labels(labels, str(path), spec.classes if spec else ())
    offsets = np.cumsum([0, *(len(values) for values in named.values())])[:-1]
    ids = np.stack([column.numbered(named[column.name]) for column in columns], axis=1)
    unknown: np.ndarray = np.any(ids < 0, axis=1)
    problems = _unknown(unknown, ids, columns, options, path)
    described = spec or DataSpec(
        kind="tokens",
        shape=(len(columns),),
        classes=classes,
        vocabulary=tuple(value for values in named.values() for value in values),
        columns={name: len(values) for name, values in named.items()},
    )
    return TensorDataset(
        data=torch.from_numpy(ids + offsets),
        spec=described,
        labels=numbers,
        rows=torch.from_numpy(np.flatnonzero(~unknown)) if unknown.any() else None,
        problems=problems,
        notes=tuple(_describe(column, named[column.name]) for column in columns),
    )


def decode_rows(tokens: Tensor, spec: DataSpec) -> list[dict[str, str]]:
    """Return ids (N, L) as rows, name of the column -> value; a masked cell reads "?", a missing one ""."""
    names, known = list(spec.columns), spec.vocabulary
    return [
        {name: known[i] if i < len(known) else "?" for name, i in zip(names, row, strict=True)}
        for row in tokens.tolist()
    ]


def write_rows(path: Path, tokens: Tensor, spec: DataSpec, labels: Sequence[str] | None = None) -> None:
    """Write ids (N, L) as a .csv file, with a column "label" behind where classes are given."""
    rows = decode_rows(tokens, spec)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*spec.columns, *([] if labels is None else ["label"])])
        for number, row in enumerate(rows):
            writer.writerow([*row.values(), *([] if labels is None else [labels[number]])])


def _read(path: Path, options: DataOptions) -> tuple[list[Column], list[str] | None]:
    with table_rows(path) as filled:
        _, head = next(filled, (0, []))
        if not head or all(is_number(cell) for cell in head):
            raise DataError(f"{path} has no first row with the names of its columns; add one.")
        rows = []
        for line, row in filled:
            if len(row) != len(head):
                raise DataError(f"{path} has {len(row)} cells in line {line} but {len(head)} names; mend that line.")
            rows.append([cell.strip() for cell in row])
    if not rows:
        raise DataError(f"{path} names columns but holds no rows.")
    if options.limit is not None and options.limit < len(rows):
        rows = [rows[at] for at in permutation(0, 0, len(rows))[: options.limit].sort().values.tolist()]
    head = [name.strip() for name in head]
    if len(set(head)) < len(head):
        raise DataError(f"{path} has two columns of one name; rename one of {', '.join(head)}.")
    cells = dict(zip(head, map(list, zip(*rows, strict=True)), strict=True))
    label = label_column(head, options.label, path)
    labels = None if label is None else cells.pop(head[label])
    if labels is not None and "" in labels:
        raise DataError(f"{path} has no class in data row {labels.index('') + 1}; fill the label column.")
    return [Column(name, column) for name, column in cells.items()], labels


def _values(column: Column, options: DataOptions, path: Path) -> tuple[str, ...]:
    values = column.values(options.bins)
    if len(values) > _MOST_VALUES:
        raise DataError(
            f"{path}: column {column.name!r} has {len(values)} different values, too many for categories; remove it."
        )
    return values


def _for_model(columns: list[Column], spec: DataSpec, path: Path) -> tuple[list[Column], dict[str, tuple[str, ...]]]:
    """Return the columns in the model's order, and its values."""
    found = {column.name: column for column in columns}
    if found.keys() != spec.columns.keys():
        lacking, more = sorted(spec.columns.keys() - found.keys()), sorted(found.keys() - spec.columns.keys())
        wrong = [f"it lacks {', '.join(lacking)}"] * bool(lacking) + [f"it has also {', '.join(more)}"] * bool(more)
        raise DataError(f"{path} does not fit the model: {'; '.join(wrong)}. Give a table with the model's columns.")
    ends = np.cumsum(list(spec.columns.values()))
    values = {
        name: spec.vocabulary[end - count : end] for (name, count), end in zip(spec.columns.items(), ends, strict=True)
    }
    return [found[name] for name in values], values


def _unknown(
    rows: np.ndarray, ids: np.ndarray, columns: list[Column], options: DataOptions, path: Path
) -> tuple[Problem, ...]:
    """Return the rows with a value that the model does not know.

    Raises:
        DataError: There are too many.
    """
    problems = []
    for row in np.flatnonzero(rows):
        column = columns[int((ids[row] < 0).argmax())]
        problems.append(Problem(f"row {row + 1}", f"{column.name}={column.cells[row]!r} is unknown to the model"))
    if len(problems) > options.max_bad * len(rows):
        raise DataError(
            f"{path}: {len(problems)} of {len(rows)} rows hold a value unknown to the model, more than data.max_bad="
            f"{options.max_bad:g} allows; first {problems[0]}."
        )
    return tuple(problems)


def _describe(column: Column, values: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(value or "(missing)" for value in values[:most]) + (", ..." if len(values) > most else "")
    distinct = len(set(column.cells))
    binned = f", bins of {distinct} numbers" if distinct > len(values) else ""
    return f"column {column.name}: {len(values)} values{binned} ({shown})"
