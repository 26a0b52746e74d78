"""The contract of a data set; what all have in common whose items have numbers; the one that holds them in a tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from undiffuse.errors import DataError
from undiffuse.spec import DataSpec

_MIRRORED = 1 << 40  # added to the index of an item for its mirror image; no source has as many items


@dataclass(frozen=True)
class Problem:
    """A file that could not be read, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Dataset(Protocol):
    """Items of one spec, batched by position."""

    @property
    def spec(self) -> DataSpec:
        """Kind, shape and units of one item, and the names of the classes."""
        ...

    @property
    def problems(self) -> Sequence[Problem]:
        """What could not be read."""
        ...

    @property
    def default_holdout(self) -> float:
        """Share (below 1) or number of items to hold out unless asked otherwise."""
        ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def batch(self, index: Tensor) -> dict[str, Any]:
        """Return the items at positions `index`, int64 (B,), on the device of the data.

        The result holds "x" (B, *spec.shape) in model units, float32 or int64 tokens; "cond", a dict of the
        conditions in `spec.conditions`, such as "label" int64 (B,); and "index" int64 (B,), a number that stays with
        the item through splits.
        """
        ...

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set on another device."""
        ...

    def summary(self) -> list[str]:
        """Return lines for people: what was found, chosen and left out."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class IndexedDataset(ABC):
    """Items by row number, with their labels and conditions in tensors; how the items are read is the subclass's part.

    Args:
        spec: Units at the border; the model's where data are opened for a model.
        labels: Class numbers, int64 (M,).
        cond: Further conditions by name, (M, ...), in the smallest dtype that holds them.
        stored: Units of the items as they are read; None: those of `spec`. Both meet in model units.
        rows: Row for each position, int64 (N,); None: all of them.
        ids: Stable number of each row, int64 (M,); None: the row itself.
        mirror: Append the mirror image (last axis reversed) of every item: N becomes 2 N.
        problems: Files that could not be read.
        notes: Further lines of the summary.
        default_holdout: Share (below 1) or number of items to hold out unless asked otherwise.
    """

    spec: DataSpec
    labels: Tensor | None = None
    cond: dict[str, Tensor] = field(default_factory=dict)
    stored: DataSpec | None = None
    rows: Tensor | None = None
    ids: Tensor | None = None
    mirror: bool = False
    problems: Sequence[Problem] = ()
    notes: tuple[str, ...] = ()
    default_holdout: float = 0.1

    @property
    @abstractmethod
    def total(self) -> int:
        """Number of rows, M."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where batches lie."""

    @abstractmethod
    def fetch(self, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the rows (B,) at `positions` (B,), and "x" and maps (B, ...) in stored units."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Return the data set on `device`, where it can lie there."""

    @property
    def count(self) -> int:
        """Number of items without mirror images, N."""
        return self.total if self.rows is None else len(self.rows)

    def __len__(self) -> int:
        """Return the number of items, mirror images included."""
        return self.count * (2 if self.mirror else 1)

    def batch(self, index: Tensor) -> dict[str, Any]:
        """Return the items at positions `index` (B,); see `Dataset.batch`."""
        index = index.to(self.device)
        position = index % max(self.count, 1) if self.mirror else index
        rows, parts = self.fetch(position)
        maps = {name: (self.stored or self.spec).to_model(part) for name, part in parts.items()}
        ids = rows if self.ids is None else self.ids[rows]
        if self.mirror:
            mirrored = index >= self.count
            maps = {name: _flip(part, mirrored) for name, part in maps.items()}
            ids = ids + mirrored * _MIRRORED
        return {"x": maps.pop("x"), "cond": {**self._conditions(rows), **maps}, "index": ids}

    def _conditions(self, rows: Tensor) -> dict[str, Tensor]:
        label = {} if self.labels is None else {"label": self.labels[rows]}
        return label | {name: _widen(values[rows]) for name, values in self.cond.items()}

    def positions_to_rows(self, positions: Tensor) -> Tensor:
        """Return the rows at positions, mirror images left out."""
        return positions if self.rows is None else self.rows[positions]

    def take(self, positions: Tensor) -> Self:
        """Return the items at `positions`, mirror images left out of account, without copying any."""
        return replace(self, rows=self.positions_to_rows(positions.to(self.device)))

    def class_labels(self) -> Tensor | None:
        """Return the class number of each position, int64 (N,), mirror images left out."""
        return self.labels if self.labels is None or self.rows is None else self.labels[self.rows]

    def summary(self) -> list[str]:
        """Return lines for people: count, size, units, classes, choices made, files left out."""
        lines = [f"{self.count} {items_in_words(self.count, self.spec)}, {units_in_words(self.stored or self.spec)}"]
        labels = self.class_labels()
        if labels is not None:
            lines.append(_classes(labels, self.spec.classes))
        if self.mirror:
            lines.append(f"with a mirrored copy of each: {len(self)} items")
        if self.count == 1:
            lines.append("warning: a single item; a model can only learn it by heart (needs data.holdout=0)")
        lines.extend(self.notes)
        if self.problems:
            lines.append(f"warning: {len(self.problems)} file(s) could not be read: {some_problems(self.problems)}")
        return lines


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorDataset(IndexedDataset):
    """Items that lie in one tensor, in the smallest dtype that holds them; batches are converted as they are drawn.

    Args:
        data: All items (M, *shape), in stored units.
        maps: Further pictures of each item (M, C, ...), in the same units: conditions of kind "map".
    """

    data: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of rows, M."""
        return len(self.data)

    @property
    def device(self) -> torch.device:
        """Where the data lie."""
        return self.data.device

    def fetch(self, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return rows and stored items; see `IndexedDataset.fetch`."""
        rows = self.positions_to_rows(positions)
        return rows, {"x": self.data[rows], **{name: values[rows] for name, values in self.maps.items()}}

    def to(self, device: torch.device | str) -> Self:
        """Return the data set on `device`; only the items that are part of it travel."""
        if self.data.device == torch.empty(0, device=device).device:
            return self
        rows = torch.arange(self.count, device=self.data.device) if self.rows is None else self.rows
        ids = rows if self.ids is None else self.ids[rows]

        def move(values: Tensor) -> Tensor:
            return (values if self.rows is None else values[rows]).to(device)

        return replace(
            self,
            data=move(self.data),
            labels=None if self.labels is None else move(self.labels),
            cond={name: move(values) for name, values in self.cond.items()},
            maps={name: move(values) for name, values in self.maps.items()},
            rows=None,
            ids=ids.to(device),
        )


def _flip(x: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


def _widen(values: Tensor) -> Tensor:
    """Return conditions in the dtype of `ConditionSpec`."""
    return values.float() if values.is_floating_point() else values.long()


def some_problems(problems: Sequence[Problem], most: int = 5) -> str:
    """Return the first problems as one line, and how many more there are."""
    rest = len(problems) - most
    return "; ".join(map(str, problems[:most])) + (f"; and {rest} more" if rest > 0 else "")


def refuse_bad(bad: Mapping[str, str], total: int, most: float, where: str, key: str = "data.max_bad") -> None:
    """Raise `DataError` where all of `total` files are `bad` (name -> why), or more than the share `most` of `key`."""
    listed = some_problems([Problem(path, reason.rstrip(".")) for path, reason in bad.items()])
    if bad and len(bad) == total:
        raise DataError(f"none of the {total} file(s) in {where} can be read: {listed}. Mend or replace them.")
    if len(bad) > most * total:
        raise DataError(
            f"{len(bad)} of {total} file(s) in {where} cannot be read, more than {key}={most:g} allows: "
            f"{listed}. Remove or mend them, or raise {key}."
        )


def items_in_words(count: int, spec: DataSpec) -> str:
    """Return what items are, such as "images of 8 x 8 pixels, grey"."""
    if spec.columns:
        return f"{'row' if count == 1 else 'rows'} of {len(spec.columns)} columns"
    if spec.is_discrete:
        return f"{'row' if count == 1 else 'rows'} of {' x '.join(map(str, spec.grid or spec.shape))} tokens"
    size = " x ".join(map(str, spec.shape[1:] if spec.kind in ("image", "signal") else spec.shape))
    noun = spec.kind if count == 1 else f"{spec.kind}s"
    if spec.kind == "image":
        names = {1: "grey", 3: "RGB", 4: "RGBA"}
        return f"{noun} of {size} pixels, {names.get(spec.channels, f'{spec.channels} channels')}"
    if spec.kind == "signal":
        return f"{noun} of {size} points, {spec.channels} channel(s)"
    return f"{noun} of {size}{' features' if spec.kind == 'vector' else ''}"


def units_in_words(spec: DataSpec) -> str:
    """Return the range of values in words."""
    if spec.is_discrete:
        return f"{spec.categories} values in all"
    if spec.range is None:
        return "standardised per feature"
    return f"values {spec.range[0]:g} to {spec.range[1]:g}"


def _classes(labels: Tensor, names: tuple[str, ...], most: int = 12) -> str:
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    shown = ", ".join(f"{name} ({count})" for name, count in list(zip(names, counts, strict=True))[:most])
    return f"{len(names)} classes: {shown}{', ...' if len(names) > most else ''}"
