"""The contract of a data set, and the one that holds everything in a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

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

        The result holds "x" (B, *spec.shape) in model units, float32 or int64 tokens; "cond", a dict with "label"
        int64 (B,) where there are labels; and "index" int64 (B,), a number that stays with the item through splits.
        """
        ...

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set on another device."""
        ...

    def summary(self) -> list[str]:
        """Return lines for people: what was found, chosen and left out."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class TensorDataset:
    """Items that lie in one tensor, in the smallest dtype that holds them; batches are converted as they are drawn.

    Args:
        data: All items (M, *shape), in stored units.
        spec: Units at the border; the model's where data are opened for a model.
        labels: Class numbers, int64 (M,).
        stored: Units of `data`; None: those of `spec`. Both meet in model units.
        rows: Row of `data` for each position, int64 (N,); None: all of them.
        ids: Stable number of each row of `data`, int64 (M,); None: the row itself.
        mirror: Append the mirror image (last axis reversed) of every item: N becomes 2 N.
        problems: Files that could not be read.
        notes: Further lines of the summary.
        default_holdout: Share (below 1) or number of items to hold out unless asked otherwise.
    """

    data: Tensor
    spec: DataSpec
    labels: Tensor | None = None
    stored: DataSpec | None = None
    rows: Tensor | None = None
    ids: Tensor | None = None
    mirror: bool = False
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    default_holdout: float = 0.1

    @property
    def count(self) -> int:
        """Number of items without mirror images, N."""
        return len(self.data) if self.rows is None else len(self.rows)

    def __len__(self) -> int:
        """Return the number of items, mirror images included."""
        return self.count * (2 if self.mirror else 1)

    def batch(self, index: Tensor) -> dict[str, Any]:
        """Return the items at positions `index` (B,); see `Dataset.batch`."""
        index = index.to(self.data.device)
        position = index % max(self.count, 1) if self.mirror else index
        rows = position if self.rows is None else self.rows[position]
        x = (self.stored or self.spec).to_model(self.data[rows])
        ids = rows if self.ids is None else self.ids[rows]
        if self.mirror:
            mirrored = index >= self.count
            x = torch.where(mirrored.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)
            ids = ids + mirrored * _MIRRORED
        return {"x": x, "cond": {} if self.labels is None else {"label": self.labels[rows]}, "index": ids}

    def take(self, positions: Tensor) -> TensorDataset:
        """Return the items at `positions`, mirror images left out of account, without copying any."""
        rows = positions.to(self.data.device)
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def to(self, device: torch.device | str) -> TensorDataset:
        """Return the data set on `device`; only the items that are part of it travel."""
        if self.data.device == torch.empty(0, device=device).device:
            return self
        rows = torch.arange(self.count, device=self.data.device) if self.rows is None else self.rows
        ids = rows if self.ids is None else self.ids[rows]
        return replace(
            self,
            data=(self.data if self.rows is None else self.data[rows]).to(device),
            labels=None if self.labels is None else self.labels[rows].to(device),
            rows=None,
            ids=ids.to(device),
        )

    def class_labels(self) -> Tensor | None:
        """Return the class number of each position, int64 (N,), mirror images left out."""
        return self.labels if self.labels is None or self.rows is None else self.labels[self.rows]

    def summary(self) -> list[str]:
        """Return lines for people: count, size, units, classes, choices made, files left out."""
        lines = [f"{self.count} {_items(self.count, self.spec)}, {_units(self.stored or self.spec)}"]
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


def some_problems(problems: Sequence[Problem], most: int = 5) -> str:
    """Return the first problems as one line, and how many more there are."""
    rest = len(problems) - most
    return "; ".join(map(str, problems[:most])) + (f"; and {rest} more" if rest > 0 else "")


def _items(count: int, spec: DataSpec) -> str:
    size = " x ".join(map(str, spec.shape[1:] if spec.kind in ("image", "signal") else spec.shape))
    noun = spec.kind if count == 1 else f"{spec.kind}s"
    if spec.kind == "image":
        names = {1: "grey", 3: "RGB", 4: "RGBA"}
        return f"{noun} of {size} pixels, {names.get(spec.channels, f'{spec.channels} channels')}"
    if spec.kind == "signal":
        return f"{noun} of {size} points, {spec.channels} channel(s)"
    return f"{noun} of {size}{' features' if spec.kind == 'vector' else ''}"


def _units(spec: DataSpec) -> str:
    if spec.range is None:
        return "standardised per feature"
    return f"values {spec.range[0]:g} to {spec.range[1]:g}"


def _classes(labels: Tensor, names: tuple[str, ...], most: int = 12) -> str:
    counts = torch.bincount(labels, minlength=len(names)).tolist()
    shown = ", ".join(f"{name} ({count})" for name, count in list(zip(names, counts, strict=True))[:most])
    return f"{len(names)} classes: {shown}{', ...' if len(names) > most else ''}"
