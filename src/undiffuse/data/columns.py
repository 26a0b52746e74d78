"""Conditions of items from columns of values: captions, numbers, several labels.

Columns come from tables, shards, and from files beside pictures. Which become conditions, and of which kind, is said
by `data.cond` ("caption:text,age:vector,shape:label"), or seen ("auto"):

    named caption, text, prompt or description    text
    numbers, or lists of them of equal length     vector, standardised per number
    truth values; words that recur                label: at most 100 words, each 5 times on average
    other words; whole numbers that never recur   nothing: they look like names or addresses of items

A column of the last kind that is named without a kind ("age") is a vector if it holds numbers, else text.
A column called label, labels or class is the class label, else the first one of class numbers, unless `data.label`
names another. An item without a caption
has an empty one. An item without a number or label counts as unreadable (`data.max_bad`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from undiffuse.data.encoders import encode_captions
from undiffuse.data.labels import number_labels
from undiffuse.data.options import ColumnKind, DataOptions
from undiffuse.errors import DataError
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.words import did_you_mean

CAPTIONS = ("caption", "captions", "text", "prompt", "description")
LABELS = ("label", "labels", "class", "cls")
_MOST_WORDS, _LEAST_USES = 100, 5

Columns = Mapping[str, Sequence[Any]]


class LackingValue(DataError):
    """An item has no usable value in a column; `path` and `reason` say which item and why."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")


@dataclass(frozen=True)
class Conditions:
    """What columns say about M items.

    Args:
        labels: Class numbers int64 (M,), and the names of the classes.
        specs: Conditions by name.
        cond: Their values (M, ...), in small dtypes.
        lacking: Item -> why it has no value; its rows in `labels` and `cond` mean nothing.
        notes: Lines of the summary.
    """

    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    specs: dict[str, ConditionSpec] = field(default_factory=dict)
    cond: dict[str, Tensor] = field(default_factory=dict)
    lacking: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_conditions(
    columns: Columns,
    options: DataOptions,
    where: str,
    spec: DataSpec | None = None,
    classes: Mapping[str, tuple[str, ...]] | None = None,
    *,
    more: bool = False,
) -> Conditions:
    """Return the conditions that `columns` hold, as `options.cond` and `options.label` say.

    Args:
        columns: Values by name, one per item; None stands for a missing value.
        options: See the module.
        where: Stands for the data in messages.
        spec: A model's spec: its conditions are looked for, whatever the options say.
        classes: Names of the classes of columns that hold class numbers, in the order of these.
        more: Whether items follow that are not seen here, whose captions may be longer.

    Raises:
        DataError: A column that was asked for is not there, holds other values than its kind, or classes that the
            model does not know; or captions go through an encoder and are not all seen here.
        CheckpointError: There is no such encoder as `options.encoder` or the model says.
    """
    classes = classes or {}
    columns = _named_classes(columns, classes)
    kinds, label = choose_columns(columns, options, where, spec, classes)
    lacking: dict[int, str] = {}
    notes: list[str] = []
    numbers: Tensor | None = None
    names: tuple[str, ...] = ()
    if label is not None:
        known_names = spec.classes if spec else classes.get(label, ())
        numbers, names = _numbered(label, columns[label], where, known_names, lacking)
    specs, cond = {}, {}
    for name, kind in kinds.items():
        known = spec.cond.get(name) if spec else None
        if known is None and kind == "label" and name in classes:
            known = ConditionSpec(kind="label", classes=classes[name])
        if known.encoder if known else kind == "text" and options.encoder:
            specs[name], cond[name], note = _encode_texts(name, columns[name], options, where, known, more)
        else:
            specs[name] = known or fit_column(name, kind, columns[name], options.caption_length, where, more)
            cond[name] = _encode_all(name, columns[name], specs[name], lacking)
            note = _note(name, specs[name], columns[name])
        notes.append(note)
    unused = [name for name in columns if name not in specs and name != label]
    if unused and options.cond == "auto" and spec is None:
        notes.append(f"columns not used: {', '.join(unused)} (data.cond={unused[0]} makes a condition of one)")
    return Conditions(numbers, names, specs, cond, lacking, (*notes, *_absent(spec, specs)))


def choose_columns(
    columns: Columns,
    options: DataOptions,
    where: str,
    spec: DataSpec | None = None,
    classes: Collection[str] = (),
) -> tuple[dict[str, ColumnKind], str | None]:
    """Return the kind of each column that becomes a condition, and the column of the class label.

    `classes` are the columns that hold class numbers; the first of them is the label where none is called so.

    Raises:
        DataError: A column that was asked for is not there.
    """
    named = [name for name in columns if name.lower() in LABELS]
    asked = options.columns()
    unasked = [name for name in classes if name in columns and name not in (asked or {})]
    label = options.label or next(iter([*named, *unasked]), None)
    for name in [*([options.label] if options.label else []), *(asked or {})]:
        if name not in columns:
            found = f"it has {', '.join(columns)}" if columns else "it has no columns beside the data"
            raise DataError(f"{where} has no column {name!r}; {found}.{did_you_mean(name, columns)}")
    if asked is not None:
        asked.pop("label", None)  # the class label is a condition already
    if spec is not None:
        label = label if spec.classes else None
        return {name: _column_kind(part) for name, part in spec.cond.items() if name in columns}, label
    if asked is None:
        others = [name for name in columns if name not in (label, "label")]
        seen = {name: "label" if name in classes else _see_kind(name, columns[name]) for name in others}
        return {name: kind for name, kind in seen.items() if kind} if options.cond == "auto" else {}, label
    return {name: _kind_of(name, columns[name]) if kind == "auto" else kind for name, kind in asked.items()}, label


def fit_column(
    name: str, kind: ColumnKind, values: Sequence[Any], most: int, where: str, more: bool = False
) -> ConditionSpec:
    """Return the spec of a condition whose values are those of a column.

    Captions get the length of the longest, `most` bytes at most; where `more` of them follow, `most`.

    Raises:
        DataError: The column holds other values than its kind, or none at all.
    """
    given = _given(name, values, where)
    if kind == "text":
        longest = most if more else max(len(str(value).encode()) for value in given)
        return ConditionSpec(kind="text", length=max(1, min(most, longest)))
    if kind == "label":
        return ConditionSpec(kind="label", classes=number_labels([_word(value) for value in given], where)[1])
    rows = [_floats(value) for value in given]
    widths = {len(row) for row in rows if row is not None}
    if not widths:
        raise DataError(f"{where} has a column {name!r} of {str(given[0])[:40]!r}; a vector needs numbers.")
    if len(widths) > 1:
        raise DataError(f"{where} has vectors of {min(widths)} to {max(widths)} numbers in the column {name!r}.")
    table = np.array([row for row in rows if row is not None])
    std = table.std(axis=0)
    return ConditionSpec(
        kind="vector",
        width=widths.pop(),
        mean=tuple(table.mean(axis=0).tolist()),
        std=tuple(np.where(std > 0, std, 1.0).tolist()),
    )


def encode(value: Any, spec: ConditionSpec) -> np.ndarray:
    """Return one value as a condition: int64 (), float32 (width,), or int16 (length,).

    Raises:
        LackingValue: It is missing, or not of the spec.
    """
    if spec.kind == "text":
        return encode_caption("" if is_missing(value) else str(value), spec.length)
    if is_missing(value):
        raise LackingValue("a value", "it is missing")
    if spec.kind == "label":
        word = _word(value)
        if word not in spec.classes:
            raise LackingValue("a value", f"{word!r} is none of the {len(spec.classes)} classes")
        return np.array(spec.classes.index(word))
    row = _floats(value)
    if row is None or len(row) != spec.width:
        raise LackingValue("a value", f"{str(value)[:40]!r} is not {spec.width} finite number(s)")
    return ((row - np.array(spec.mean or 0.0)) / np.array(spec.std or 1.0)).astype(np.float32)


def encode_caption(text: str, length: int) -> np.ndarray:
    """Return the UTF-8 bytes of a caption, cut between characters, int16 (length,); -1 fills up."""
    data = text.encode()[:length].decode(errors="ignore").encode()
    filled = np.full(length, -1, dtype=np.int16)
    filled[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    return filled


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, an empty word, NaN."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    return isinstance(value, float) and math.isnan(value)


def with_conditions(spec: DataSpec, conditions: Conditions) -> DataSpec:
    """Return `spec` with the classes and conditions found."""
    return replace(spec, classes=conditions.classes or spec.classes, cond={**spec.cond, **conditions.specs})


def _numbered(
    name: str, values: Sequence[Any], where: str, known: tuple[str, ...], lacking: dict[int, str]
) -> tuple[Tensor, tuple[str, ...]]:
    here = [at for at, value in enumerate(values) if not is_missing(value)]
    lacking.update({at: f"it has no {name}" for at in range(len(values)) if is_missing(values[at])})
    if not here:
        raise DataError(f"{where} has a column {name!r} without any value; name another with data.label.")
    found, classes = number_labels([_word(values[at]) for at in here], where, known)
    numbers = torch.zeros(len(values), dtype=torch.int64)
    numbers[here] = found
    return numbers, classes


def _encode_all(name: str, values: Sequence[Any], spec: ConditionSpec, lacking: dict[int, str]) -> Tensor:
    rows: list[np.ndarray | None] = []
    for at, value in enumerate(values):
        try:
            rows.append(encode(value, spec))
        except LackingValue as error:
            rows.append(None)
            lacking.setdefault(at, f"its {name}: {error.reason}")
    blank = np.zeros_like(next((row for row in rows if row is not None), np.zeros(())))
    return torch.from_numpy(np.stack([blank if row is None else row for row in rows]))


def _encode_texts(
    name: str, values: Sequence[Any], options: DataOptions, where: str, known: ConditionSpec | None, more: bool
) -> tuple[ConditionSpec, Tensor, str]:
    """Return the spec, float16 (M, L, W) and a line of the summary of captions that a frozen encoder reads."""
    encoder = known.encoder if known else options.encoder
    if more:
        raise DataError(
            f"the model's condition {name!r} goes through the encoder {encoder}, which reads all captions of {where} "
            "once; set data.stream=false."
        )
    if known is None:
        _given(name, values, where)
    captions = ["" if is_missing(value) else str(value) for value in values]
    most = known.length if known else options.caption_length
    found, identity = encode_captions(encoder, captions, most, known.encoder_hash if known else "")
    length, width = found.outputs.shape[1:]
    spec = known or ConditionSpec(kind="embedding", length=length, width=width, encoder=encoder, encoder_hash=identity)
    line = f"condition {name}: text of {length} tokens at most, read by {encoder} (width {width})"
    line += f"; {found.cut} were cut (data.caption_length)" if found.cut else ""
    return spec, torch.nn.functional.pad(found.outputs, (0, 0, 0, spec.length - length)), line + _empty(values)


def _named_classes(columns: Columns, classes: Mapping[str, tuple[str, ...]]) -> Columns:
    """Replace class numbers by the names of the classes."""

    def name_of(value: Any, names: tuple[str, ...]) -> str | None:
        return names[value] if value is not None and 0 <= value < len(names) else None

    return {
        name: [name_of(value, classes[name]) for value in values] if name in classes else values
        for name, values in columns.items()
    }


def _see_kind(name: str, values: Sequence[Any]) -> ColumnKind | None:
    """Return the kind that a column seems to have; None where it seems to name its items."""
    given = [value for value in values if not is_missing(value)]
    if name.lower() in CAPTIONS:
        return "text"
    if all(isinstance(value, bool) for value in given):
        return "label"
    words = {str(value) for value in given}
    if all(_floats(value) is not None for value in given):
        whole = all(word.strip().lstrip("-").isdigit() for word in words)
        return None if whole and len(words) == len(given) else "vector"
    recur = len(words) <= _MOST_WORDS and len(given) >= _LEAST_USES * len(words)
    return "label" if recur else None


def _kind_of(name: str, values: Sequence[Any]) -> ColumnKind:
    """Return the kind of a column that was asked for without one: numbers are a vector, also if none recurs."""
    given = [value for value in values if not is_missing(value)]
    are_numbers = bool(given) and all(_floats(value) is not None for value in given)
    return _see_kind(name, values) or ("vector" if are_numbers else "text")


def _column_kind(spec: ConditionSpec) -> ColumnKind:
    if spec.encoder:
        return "text"
    return spec.kind if spec.kind in get_args(ColumnKind) else "vector"  # type: ignore[return-value]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _floats(value: Any) -> np.ndarray | None:
    """Return a number, a word that reads as one, or a list of numbers as float64 (width,); None for anything else."""
    try:
        row = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        return None
    return row if row.ndim == 1 and len(row) and np.isfinite(row).all() else None


_WORDS: dict[str, Callable[[ConditionSpec], str]] = {
    "text": lambda spec: f"text of {spec.length} bytes at most",
    "vector": lambda spec: f"{spec.width} number(s), standardised",
    "label": lambda spec: f"label, {len(spec.classes)} classes",
}


def _note(name: str, spec: ConditionSpec, values: Sequence[Any]) -> str:
    line = f"condition {name}: {_WORDS[spec.kind](spec)}"
    if spec.kind != "text":
        return line
    cut = sum(not is_missing(value) and len(str(value).encode()) > spec.length for value in values)
    return line + (f"; {cut} were cut (data.caption_length)" if cut else "") + _empty(values)


def _given(name: str, values: Sequence[Any], where: str) -> list[Any]:
    """Return the values that are there, of which there must be one."""
    given = [value for value in values if not is_missing(value)]
    if not given:
        raise DataError(f"{where} has a column {name!r} without any value; leave it out of data.cond.")
    return given


def _empty(values: Sequence[Any]) -> str:
    empty = sum(is_missing(value) for value in values)
    return f"; warning: {empty} of {len(values)} are empty" if empty else ""


def _absent(spec: DataSpec | None, specs: Mapping[str, ConditionSpec]) -> tuple[str, ...]:
    """Name the conditions of a model that the columns lack."""
    names = [name for name, part in (spec.cond if spec else {}).items() if name not in specs and part.kind != "map"]
    names = [name for name in names if name != "augment"]
    return (f"the model's condition(s) {', '.join(names)} are not in the data and stay empty",) if names else ()
