"""Pictures in their own proportions: a few sizes of near-equal area are planned, and a batch has one of them.

Sides are multiples of a step. Each picture goes to the size whose proportions are nearest to its own, in logarithms, so
that little is cut away. Sizes with few pictures are given up, and these go to the next nearest size; nothing is lost.
Each epoch visits every picture (`training.order.Bucketed`).

Source: the idea of the NovelAI engineering blog of 2022, "NovelAI Improvements on Stable Diffusion", where sizes are
    given; here they follow from the pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.data.dataset import IndexedDataset
from undiffuse.data.lazy import Item, LazyDataset, Source, refuse_late
from undiffuse.errors import DataError

Size = tuple[int, int]
_LEAST_SHARE = 0.02  # of all pictures: a size with fewer is given up
_WIDEST = 4.0  # long side over short side of the longest size
_AREA_SLACK = 1.0 / 3.0  # how far the area of a size may be from that of the square, either way


@dataclass(frozen=True)
class Plan:
    """Sizes and who goes where.

    Args:
        sizes: (height, width) of each bucket that is used, tallest first.
        bucket: Number of the bucket of each picture, in order of the pictures.
        cut: Share of each picture that is cut away, on average per bucket.
    """

    sizes: tuple[Size, ...]
    bucket: tuple[int, ...]
    cut: tuple[float, ...]

    def lines(self) -> list[str]:
        """Return the plan for people: sizes, pictures in each, share cut away."""
        counts = [self.bucket.count(number) for number in range(len(self.sizes))]
        total = sum(count * cut for count, cut in zip(counts, self.cut, strict=True)) / max(1, sum(counts))
        rows = [
            f"{height} x {width}: {count} picture(s), {cut:.1%} cut away"
            for (height, width), count, cut in zip(self.sizes, counts, self.cut, strict=True)
        ]
        return [f"{len(self.sizes)} bucket(s), {total:.1%} of the pictures cut away on average", *rows]


def candidate_sizes(side: int, step: int) -> list[Size]:
    """Return all sizes (H, W) in multiples of `step` with an area near side * side, tallest first.

    For each width the height is the one that brings the area nearest.

    Raises:
        DataError: The side is smaller than the step.
    """
    if side < step:
        raise DataError(f"data.size={side} is below data.bucket_step={step}; sides are multiples of it.")
    area = float(side * side)
    sizes = set()
    for count in range(1, math.floor(side * math.sqrt(_WIDEST) / step) + 1):
        short = count * step
        long = max(step, round(area / short / step) * step)
        near = abs(short * long / area - 1.0) <= _AREA_SLACK
        if near and max(short, long) <= _WIDEST * min(short, long):
            sizes |= {(short, long), (long, short)}
    return sorted(sizes or {(side // step * step,) * 2}, key=lambda size: (-size[0] / size[1], size))


def plan_buckets(pictures: Sequence[Size], side: int, step: int, sizes: Sequence[Size] = ()) -> Plan:
    """Choose sizes for pictures (height, width), and the bucket of each.

    Args:
        pictures: Height and width of each.
        side: Side of the square whose area the sizes have, nearly.
        step: Sides are multiples of this.
        sizes: Take these, all of them, instead of choosing.
    """
    chosen = list(sizes or candidate_sizes(side, step))
    nearest = [_nearest(picture, chosen) for picture in pictures]
    if not sizes:
        least = _LEAST_SHARE * len(pictures)
        while len(set(nearest)) > 1:
            smallest = min(sorted(set(nearest)), key=nearest.count)
            if nearest.count(smallest) >= least:
                break
            chosen.remove(smallest)
            nearest = [
                _nearest(p, chosen) if own == smallest else own for p, own in zip(pictures, nearest, strict=True)
            ]
    used = [size for size in chosen if size in set(nearest)]
    bucket = tuple(used.index(size) for size in nearest)
    lost: list[list[float]] = [[] for _ in used]
    for picture, number in zip(pictures, bucket, strict=True):
        lost[number].append(cut_away(picture, used[number]))
    return Plan(tuple(used), bucket, tuple(sum(part) / len(part) for part in lost))


def cut_away(picture: Size, size: Size) -> float:
    """Return the share of a picture that is lost where it is scaled to cover `size` and cropped."""
    ratio = (picture[0] / picture[1]) / (size[0] / size[1])
    return 1.0 - min(ratio, 1.0 / ratio)


def _nearest(picture: Size, sizes: Sequence[Size]) -> Size:
    wanted = math.log(picture[0] / picture[1])
    return min(sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - wanted), size))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Bucketed(IndexedDataset):
    """What both kinds have: each row belongs to a bucket, and a batch to one.

    Args:
        bucket: Bucket of each row, int64 (M,).
    """

    bucket: Tensor
    order = "bucketed"

    def groups(self) -> Tensor:
        """Return the bucket of each position, int64 (N,)."""
        own = self.bucket if self.rows is None else self.bucket[self.rows]
        return torch.cat((own, own)) if self.mirror else own

    def _check(self, rows: Tensor) -> int:
        """Return the bucket of these rows.

        Raises:
            ValueError: They are of several.
        """
        found = self.bucket[rows].unique().tolist()
        if len(found) != 1:
            raise ValueError(f"a batch of buckets {found} was asked for; items of one batch are of one bucket.")
        return found[0]

    def summary(self) -> list[str]:
        """Return lines for people."""
        counts = torch.bincount(self.groups(), minlength=len(self.spec.sizes)).tolist()
        shown = ", ".join(f"{h}x{w} ({n})" for (h, w), n in zip(self.spec.sizes, counts, strict=True))
        return [*super().summary(), f"batches of one size each: {shown}"]


@dataclass(frozen=True, kw_only=True, eq=False)
class BucketDataset(_Bucketed):
    """Pictures of several sizes in memory.

    Args:
        data: Pictures of each bucket by its number, (M_b, C, H_b, W_b).
        place: Where in its bucket each row lies, int64 (M,).
    """

    data: dict[int, Tensor] = field(default_factory=dict)
    place: Tensor

    @property
    def total(self) -> int:
        """Number of rows, M."""
        return len(self.bucket)

    @property
    def device(self) -> torch.device:
        """Where the data lie."""
        return next(iter(self.data.values())).device

    def fetch(self, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return rows and stored items of one bucket; see `IndexedDataset.fetch`."""
        rows = self.positions_to_rows(positions)
        return rows, {"x": self.data[self._check(rows)][self.place[rows]]}

    def to(self, device: torch.device | str) -> BucketDataset:
        """Return the data set on `device`."""
        if self.device == torch.empty(0, device=device).device:
            return self

        def move(values: Tensor | None) -> Any:
            return None if values is None else values.to(device)

        return replace(
            self,
            data={number: part.to(device) for number, part in self.data.items()},
            cond={name: part.to(device) for name, part in self.cond.items()},
            **{name: move(getattr(self, name)) for name in ("bucket", "place", "labels", "rows", "ids")},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LazyBucketDataset(_Bucketed, LazyDataset):
    """Pictures of several sizes, read from disk as they are drawn."""

    def fetch(self, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return rows and stored items of one bucket; see `LazyDataset.fetch`."""
        self._check(self.positions_to_rows(positions))
        return super().fetch(positions)

    def _readable(self, position: int) -> tuple[int, Item]:
        """Return the item at a position, or the next one of its bucket that can be read."""
        rows = torch.arange(self.total) if self.rows is None else self.rows
        row = int(rows[position])
        found = self.reader.get(row)
        if isinstance(found, dict):
            return row, found
        refuse_late(self.found_late(), self.total, self.max_bad)
        alike = rows[self.bucket[rows] == self.bucket[row]].tolist()
        start = alike.index(row)
        for other in (*alike[start + 1 :], *alike[:start]):
            found = self.reader.get(other)
            if isinstance(found, dict):
                return other, found
            refuse_late(self.found_late(), self.total, self.max_bad)
        raise DataError("none of the pictures of a bucket can be read; look at the files.")


@dataclass(frozen=True)
class BucketSource:
    """Pictures by row, each read by the source of its bucket.

    Args:
        sources: One per bucket.
        bucket: Bucket of each row.
        place: Where in its bucket each row lies.
    """

    sources: Sequence[Source]
    bucket: Sequence[int]
    place: Sequence[int]

    def __len__(self) -> int:
        return len(self.bucket)

    def read(self, row: int) -> Item:
        """Read one picture."""
        return self.sources[self.bucket[row]].read(self.place[row])
