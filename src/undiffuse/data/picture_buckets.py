"""Pictures in buckets: from headers and a plan to a data set whose batches have one size each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from undiffuse.data.buckets import BucketDataset, BucketSource, LazyBucketDataset, Plan, plan_buckets
from undiffuse.data.columns import Conditions, with_conditions
from undiffuse.data.dataset import IndexedDataset
from undiffuse.data.lazy import Reader
from undiffuse.data.listing import Listing
from undiffuse.data.options import DataOptions
from undiffuse.data.picture_source import PictureSource, Target, decode_all, known_of, stays_on_disk, workers_for
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec

if TYPE_CHECKING:
    from undiffuse.images.read import Header


def open_buckets(
    listing: Listing,
    headers: Mapping[str, Header],
    unread: Mapping[str, str],
    found: Conditions,
    target: Target,
    options: DataOptions,
    notes: Sequence[str],
) -> IndexedDataset:
    """Plan the sizes, and decode each picture to its own, or leave it on disk.

    Args:
        listing: Opens them.
        headers: Size of each picture that has a readable head, by name.
        unread: Why others have none.
        found: Conditions of the pictures.
        target: Channels and depth; its area is that of the buckets.
        options: Step of the sides, resize policy, limits.
        notes: Lines of the summary.

    Raises:
        DataError: Pairs of pictures, a size below the step, or too many unreadable files.
    """
    if listing.partner is not None:
        raise DataError("data.buckets keeps single pictures in their proportions, not pairs; set data.buckets=false.")
    names, step = list(headers), options.bucket_step
    side = round(math.sqrt(target.height * target.width))
    plan = plan_buckets([(header.height, header.width) for header in headers.values()], side, step)
    base = replace(target, height=side // step * step, width=side // step * step)
    source, sources = _sources(listing, names, plan, base)
    everything = list(headers.values())
    lazy = stays_on_disk(PictureSource(listing, names, base), everything, options.lazy)
    data: dict[int, torch.Tensor] = {}
    broken: dict[str, str] = {}
    for number, part in enumerate(() if lazy else sources):
        decoded, reasons = decode_all(part, workers_for(everything))
        data[number] = torch.from_numpy(decoded["x"])
        broken |= reasons
    known = known_of(listing, names, found, unread, broken, options)
    stored = DataSpec(kind="image", shape=base.shape, range=(0.0, 255.0), sizes=plan.sizes)
    common: dict[str, Any] = {
        "spec": with_conditions(stored, found),
        "stored": stored,
        "notes": (*notes, *plan.lines()),
        "bucket": torch.tensor(plan.bucket),
        **known,
    }
    if lazy:
        return LazyBucketDataset(reader=Reader(source), max_bad=options.max_bad, **common)
    return BucketDataset(data=data, place=torch.tensor(source.place), **common)


def _sources(
    listing: Listing, names: Sequence[str], plan: Plan, base: Target
) -> tuple[BucketSource, list[PictureSource]]:
    members: list[list[str]] = [[] for _ in plan.sizes]
    place = []
    for name, number in zip(names, plan.bucket, strict=True):
        place.append(len(members[number]))
        members[number].append(name)
    sources = [
        PictureSource(listing, part, replace(base, height=height, width=width))
        for part, (height, width) in zip(members, plan.sizes, strict=True)
    ]
    return BucketSource(sources, plan.bucket, place), sources
