"""Arrays of any shape: what their axes mean, in which units, and what is wrong with them.

The first axis counts items. `layout="auto"` reads the rest so:

    (N,), (N, D)          vectors, standardised per feature
    (N, A, B)             signals (C, N) where A <= 4 < B, standardised per channel; else grey images (H, W)
    (N, A, B, C)          images, channels last where C <= 4 < A, else channels first
    (N, F, C, H, W)       video where the third axis is at most 4, else volumes (C, D, H, W) where the second is

A range is read off the values of images, video and volumes: uint8 0..255, uint16 0..65535, bool 0..1, other
numbers the first of 0..1, -1..1, 0..255 (if they pass 127) that holds them, else their own minimum and maximum.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from undiffuse.data.columns import read_conditions, with_conditions
from undiffuse.data.dataset import Problem, TensorDataset
from undiffuse.data.labels import number_labels
from undiffuse.data.memory import require_memory
from undiffuse.data.options import DataOptions
from undiffuse.data.tables import Table, read_csv, read_npy, read_npz
from undiffuse.data.token_arrays import has_ids, token_dataset
from undiffuse.errors import DataError
from undiffuse.noise import permutation
from undiffuse.spec import DataSpec, Kind

_FEW = 4  # the most channels an axis is taken to hold
_AXES = {"vector": 1, "signal": 2, "image": 3, "video": 4, "volume": 4}
_READERS = {".npy": read_npy, ".npz": read_npz, ".csv": read_csv, ".tsv": read_csv}
ARRAY_SUFFIXES = frozenset(_READERS)
TABLE_SUFFIXES = frozenset((".csv", ".tsv"))


def open_array(path: Path, options: DataOptions, spec: DataSpec | None = None) -> TensorDataset:
    """Read a .npy, .npz, .csv or .tsv file; `spec` says what a model expects, in whose units the values then are.

    Raises:
        DataError: Damaged or empty file, objects or text instead of numbers, NaN or infinity, a shape that has no
            reading or does not fit the model, unknown classes, or too large for the memory.
    """
    options.refuse_others("arrays", ("layout", "key", "label", "flip", "cond", "caption_length", "encoder"))
    if spec is not None and options.cond == "auto":
        options = replace(options, cond=",".join(_columns_of(spec)) or "auto")
    return open_table(_READERS[path.suffix.lower()](path, options), options, str(path), spec)


def open_table(table: Table, options: DataOptions, where: str, spec: DataSpec | None = None) -> TensorDataset:
    """Make a data set of values that are read already; `where` names them in messages.

    Raises:
        DataError: As for `open_array`.
    """
    if table.values.ndim == 0 or len(table.values) == 0:
        raise DataError(
            f"{where} holds an array of shape {table.values.shape}, without items; expected one row per item."
        )
    table = _limited(table, options.limit)
    if has_ids(spec) if spec else options.layout == "tokens":
        return _tokens(table, options, where, spec)
    values = _as_items(table, options, spec, where)
    kind = _kind(table.values.shape, options.layout, where) if spec is None else spec.kind
    bounds = (0.0, 65535.0) if table.values.dtype == np.uint16 else None
    dataset = make_array_dataset(values, kind, where, table.labels, spec, bounds=bounds, flip=options.flip)
    return _conditioned(dataset, table, options, where, spec) if table.beside else dataset


def _tokens(table: Table, options: DataOptions, where: str, spec: DataSpec | None) -> TensorDataset:
    """Read token ids, with labels and conditions as all arrays."""
    if options.flip:
        raise DataError(f"data.flip mirrors images and video; {where} holds token ids; leave it out.")
    _refuse_non_finite(table, where)
    numbers, classes, notes = _labels(table.labels, where, spec)
    dataset = token_dataset(table.values, where, spec, numbers, classes, notes)
    return _conditioned(dataset, table, options, where, spec) if table.beside else dataset


def _columns_of(spec: DataSpec) -> list[str]:
    """Return the conditions of a model that columns can hold."""
    held = {name for name, part in spec.cond.items() if part.kind in ("text", "vector", "label") or part.encoder}
    return [name for name in spec.cond if name in held and name != "augment"]


def _conditioned(
    dataset: TensorDataset, table: Table, options: DataOptions, where: str, spec: DataSpec | None
) -> TensorDataset:
    """Add the conditions of a table's other columns; rows that lack a value are left out."""
    found = read_conditions(
        table.beside, options if table.labels is None else replace(options, label=None), where, spec, table.classes
    )
    lacking = found.lacking
    if lacking and (len(lacking) > options.max_bad * len(dataset.data) or len(lacking) == len(dataset.data)):
        first = min(lacking)
        raise DataError(
            f"{where}: {len(lacking)} of {len(dataset.data)} rows lack a value, more than data.max_bad="
            f"{options.max_bad:g} allows; first row {first} (counted from 0): {lacking[first]}. Fill or remove them."
        )
    good = [row for row in range(len(dataset.data)) if row not in lacking]
    return replace(
        dataset,
        spec=spec or with_conditions(dataset.spec, found),
        labels=found.labels if dataset.labels is None else dataset.labels,
        cond=found.cond,
        rows=torch.tensor(good) if lacking else None,
        problems=tuple(Problem(f"row {row}", reason) for row, reason in sorted(lacking.items())),
        notes=(*dataset.notes, *found.notes),
    )


def make_array_dataset(
    values: np.ndarray,
    kind: Kind,
    where: str,
    labels: list[str] | None = None,
    spec: DataSpec | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    flip: bool = False,
) -> TensorDataset:
    """Wrap finite values (N, *shape), uint8 or float32, with the spec they call for, or check them against `spec`.

    `bounds` is their range where it is known; otherwise it is read off the values.
    """
    if flip and kind not in ("image", "video"):
        raise DataError(f"data.flip mirrors images and video; {where} holds data of kind {kind!r}; leave it out.")
    numbers, classes, notes = _labels(labels, where, spec)
    if spec is None:
        spec, notes = _describe(values, kind, classes, bounds), (*notes, *_constant_note(values, kind))
    else:
        _check_fits(values, spec, where)
    data = torch.from_numpy(np.ascontiguousarray(values))
    return TensorDataset(data=data, spec=spec, labels=numbers, mirror=flip, notes=notes)


def _limited(table: Table, limit: int | None) -> Table:
    if limit is None or limit >= len(table.values):
        return table
    rows = permutation(0, 0, len(table.values))[:limit].sort().values.numpy()
    labels = None if table.labels is None else [table.labels[row] for row in rows]
    beside = {name: [column[row] for row in rows] for name, column in table.beside.items()}
    return Table(table.values[rows], labels, table.columns, beside, table.classes)


def _as_items(table: Table, options: DataOptions, spec: DataSpec | None, where: str) -> np.ndarray:
    """Return values (N, *shape) as uint8 or float32 in the library's layout, finite."""
    values = table.values
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where} holds values of type {values.dtype}; expected numbers.")
    kind = spec.kind if spec else _kind(values.shape, options.layout, where)
    if kind not in _AXES:
        raise DataError(
            f"{where} is an array but the model was trained on data of kind {kind!r}; give data of that kind."
        )
    size = 1 if values.dtype == np.uint8 else 4
    require_memory(2 * values.size * size, f"reading the array {where} {values.shape}", "set data.limit")
    _refuse_non_finite(table, where)
    kept = values.dtype == np.uint8 and kind in ("image", "video", "volume")
    with np.errstate(over="ignore"):  # what overflows is refused below
        values = np.array(values, dtype=np.uint8 if kept else np.float32)  # a copy: files may be mapped, not read
    if not np.isfinite(values).all():
        raise DataError(f"{where} has values beyond the range of float32 (3.4e38); scale them.")
    return _arrange(values, kind, where)


def _kind(shape: tuple[int, ...], layout: str, where: str) -> Kind:
    if layout != "auto":
        assert layout in get_args(Kind)
        return layout  # type: ignore[return-value]
    if len(shape) <= 2:
        return "vector"
    if len(shape) == 3:
        return "signal" if shape[1] <= _FEW < shape[2] else "image"
    if len(shape) == 4:
        return "image"
    if len(shape) == 5 and min(shape[1], shape[2]) <= _FEW:
        return "video" if shape[2] <= _FEW else "volume"
    raise DataError(
        f"{where} has shape {shape}, which has no reading of its own; expected 1 to 5 axes, items first; "
        "set data.layout or rearrange it."
    )


def _arrange(values: np.ndarray, kind: str, where: str) -> np.ndarray:
    """Add a missing channel axis and bring channels to the front."""
    missing = _AXES[kind] + 1 - values.ndim
    if missing == 1:
        values = values[:, None] if kind != "video" else values[:, :, None]
    elif missing != 0:
        raise DataError(f"{where} has shape {values.shape}, but {kind} items have {_AXES[kind]} axes; set data.layout.")
    if kind == "image" and values.shape[3] <= _FEW < values.shape[1]:
        values = values.transpose(0, 3, 1, 2)
    if 0 in values.shape:
        raise DataError(f"{where} has shape {values.shape} with an empty axis; expected at least one value per item.")
    return values


def _refuse_non_finite(table: Table, where: str) -> None:
    if table.values.dtype.kind != "f":
        return
    bad = ~np.isfinite(table.values)
    count = int(bad.sum())
    if not count:
        return
    first = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
    column = table.columns[first[1]] if table.columns else ", ".join(map(str, first[1:])) or "0"
    raise DataError(
        f"{where} has {count} value(s) that are missing, NaN or infinite, first in row {first[0]}, column {column} "
        "(rows counted from 0); remove or fill these rows."
    )


def _labels(
    labels: list[str] | None, where: str, spec: DataSpec | None
) -> tuple[torch.Tensor | None, tuple[str, ...], tuple[str, ...]]:
    """Return class numbers, class names, and notes."""
    if labels is None:
        return None, (), ()
    if spec is not None and not spec.classes:
        return None, (), ("the model has no classes; the labels were not used",)
    return (*number_labels(labels, where, spec.classes if spec else ()), ())


def _describe(values: np.ndarray, kind: Kind, classes: tuple[str, ...], bounds: tuple[float, float] | None) -> DataSpec:
    shape = values.shape[1:]
    if kind in ("vector", "signal"):
        mean, std = _moments(values)
        std = np.where(std > 0, std, 1.0)
        return DataSpec(kind=kind, shape=shape, classes=classes, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    return DataSpec(kind=kind, shape=shape, classes=classes, range=bounds or _range(values))


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over all but the channel axis, in float64."""
    axes = (0, *range(2, values.ndim))
    return values.mean(axis=axes, dtype=np.float64), values.std(axis=axes, dtype=np.float64)


def _constant_note(values: np.ndarray, kind: str) -> tuple[str, ...]:
    if kind not in ("vector", "signal"):
        return ()
    constant = int((_moments(values)[1] == 0).sum())
    return (f"warning: {constant} feature(s) never vary",) if constant else ()


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if values.dtype == np.uint8 or (low >= 0 and 127 < high <= 255):
        return 0.0, 255.0
    for bounds in ((0.0, 1.0), (-1.0, 1.0)):
        if bounds[0] <= low and high <= bounds[1]:
            return bounds
    return (low, high) if low < high else (low, low + 1.0)


def _check_fits(values: np.ndarray, spec: DataSpec, where: str) -> None:
    if values.shape[1:] != spec.shape:
        what = f"{values.shape[1]} columns" if spec.kind == "vector" else f"items of shape {values.shape[1:]}"
        wanted = f"{spec.shape[0]}" if spec.kind == "vector" else f"{spec.shape}"
        raise DataError(f"{where} has {what} but the model expects {wanted}; give data of that shape.")
    if spec.range is None:
        return
    low, high = float(values.min()), float(values.max())
    if low < spec.range[0] or high > spec.range[1]:
        raise DataError(
            f"{where} has values from {low:g} to {high:g} but the model's data lie in {spec.range[0]:g} to "
            f"{spec.range[1]:g}; scale them."
        )
