"""Picture files to a data set: look at all headers, choose a size, read what lies beside them, check the memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import torch

from undiffuse.data.columns import Conditions, read_conditions, with_conditions
from undiffuse.data.dataset import IndexedDataset, TensorDataset, refuse_bad
from undiffuse.data.labels import number_labels
from undiffuse.data.lazy import LazyDataset, Reader
from undiffuse.data.listing import Listing, folder_classes
from undiffuse.data.options import DataOptions
from undiffuse.data.pairs import SOURCE, with_pairs
from undiffuse.data.picture_source import (
    CHANNELS,
    PictureSource,
    Target,
    attempt,
    decode_all,
    known_of,
    stays_on_disk,
    workers_for,
)
from undiffuse.data.sidecars import with_columns
from undiffuse.errors import DataError
from undiffuse.images.fit import enlargement
from undiffuse.images.read import Header, read_header, without_bomb_warnings
from undiffuse.noise import permutation
from undiffuse.spec import ConditionSpec, DataSpec

_LARGEST_AUTO_SIDE = 64  # pixels; larger pictures want a decision about time and memory: data.size
_BUCKETS = ("buckets", "bucket_step")
_CAPTIONS = ("caption_length", "encoder")
_OPTIONS = ("size", "channels", "resize", "flip", "label", "cond", *_CAPTIONS, "pair", "lazy", *_BUCKETS)


@without_bomb_warnings()
def open_pictures(listing: Listing, options: DataOptions, spec: DataSpec | None = None) -> IndexedDataset:
    """Decode the pictures of a folder, archive or file into memory, as uint8 (float32 where some have 16 bits).

    Pictures that do not fit there stay where they are and are decoded while training (`data.lazy`).

    Args:
        listing: Where they are.
        options: Size, channels, resize policy, limits, conditions.
        spec: Units of a model: pictures are brought to its shape and its classes, whatever the options say.

    Raises:
        DataError: Too many files are unreadable, they do not fit into memory though `data.lazy=false` says they must,
            or not the model.
    """
    options.refuse_others("pictures", _OPTIONS)
    listing = _with_companions(listing, options)
    names = _limited(listing.names, options.limit)
    headers, unread = attempt(lambda name: _headers(listing, name), names)
    refuse_bad(unread, len(names), options.max_bad, listing.where)
    names = [name for name in names if name in headers]
    firsts = {name: pair[0] for name, pair in headers.items()}
    everything = [header for pair in headers.values() for header in pair]
    found = _conditions(listing, names, options, spec)
    target = _choose_target(list(firsts.values()), options, spec, listing.where)
    if options.buckets and spec is None:
        from undiffuse.data.picture_buckets import open_buckets

        kept = (*_colour_notes(list(firsts.values()), target), *_file_notes(listing, names, None), *found.notes)
        return open_buckets(listing, firsts, unread, found, target, options, kept)
    source = PictureSource(listing, names, target, _given_target(headers, target, options, spec))
    notes = (*_notes(listing, firsts, target, options, spec), *found.notes)
    return _assemble(source, everything, {**unread}, found, options, spec, notes)


def _assemble(
    source: PictureSource,
    headers: Sequence[Header],
    unread: dict[str, str],
    found: Conditions,
    options: DataOptions,
    spec: DataSpec | None,
    notes: tuple[str, ...],
) -> IndexedDataset:
    """Decode what fits into memory; leave the rest on disk."""
    lazy = stays_on_disk(source, headers, options.lazy)
    parts: dict[str, np.ndarray] = {}
    broken: dict[str, str] = {}
    if not lazy:
        parts, broken = decode_all(source, workers_for(headers))
    known = known_of(source.listing, source.names, found, unread, broken, options)
    stored = DataSpec(kind="image", shape=source.target.shape, range=(0.0, 255.0))
    own = spec or _with_source(with_conditions(stored, found), source.given)
    common: dict[str, Any] = {"spec": own, "stored": stored, "notes": notes, **known}
    if lazy:
        return LazyDataset(reader=Reader(source), max_bad=options.max_bad, **common)
    tensors = {name: torch.from_numpy(part) for name, part in parts.items()}
    return TensorDataset(data=tensors.pop("x"), maps=tensors, **common)


def _with_companions(listing: Listing, options: DataOptions) -> Listing:
    """Return a listing with the pictures that pair, and with the columns of the files beside them."""
    listing = with_pairs(listing, options.pair)
    return listing if options.cond == "none" and options.label is None else with_columns(listing)


def _conditions(listing: Listing, names: Sequence[str], options: DataOptions, spec: DataSpec | None) -> Conditions:
    """Return the conditions of the pictures: those of columns, and the class that a folder names."""
    place = {name: row for row, name in enumerate(listing.names)}
    columns = {key: [values[place[name]] for name in names] for key, values in listing.columns.items()}
    found = read_conditions(columns, options, listing.where, spec, listing.classes)
    folders = folder_classes(names, spec.classes if spec else ())
    if found.labels is not None or folders is None or listing.partner is not None:
        return found
    if spec is not None and not spec.classes:
        return replace(found, notes=(*found.notes, "the model has no classes; the folders' names were not used"))
    labels, classes = number_labels(folders, listing.where, spec.classes if spec else ())
    return replace(found, labels=labels, classes=classes)


def _with_source(spec: DataSpec, given: Target | None) -> DataSpec:
    if given is None:
        return spec
    return replace(spec, cond={**spec.cond, SOURCE: ConditionSpec(kind="map", width=given.shape[0])})


def _limited(names: Sequence[str], limit: int | None) -> list[str]:
    if limit is None or limit >= len(names):
        return list(names)
    return [names[i] for i in permutation(0, 0, len(names))[:limit].sort().values.tolist()]


def _headers(listing: Listing, name: str) -> tuple[Header, ...]:
    """Return the header of a picture, and of the one given with it."""
    openers = [listing.open] if listing.partner is None else [listing.open, listing.partner]
    return tuple(_header(opener, name) for opener in openers)


def _header(opener: Callable[[str], BinaryIO], name: str) -> Header:
    with opener(name) as file:
        return read_header(file, name)


def _choose_target(headers: Sequence[Header], options: DataOptions, spec: DataSpec | None, where: str) -> Target:
    dtype = np.float32 if any(header.deep for header in headers) else np.uint8
    if spec is not None:
        if spec.kind != "image" or spec.channels not in CHANNELS or spec.range is None:
            raise DataError(
                f"{where} holds pictures but the model was trained on {spec.noun} of shape {spec.shape}; "
                "give data of that kind."
            )
        return Target(spec.shape[1], spec.shape[2], CHANNELS[spec.channels], options.resize, dtype)
    channels = options.channels
    if channels == "auto":
        channels = "rgb" if any(header.colour for header in headers) else "grey"
    height, width = (options.size, options.size) if options.size else _auto_size(headers)
    return Target(height, width, channels, options.resize, dtype)


def _given_target(
    headers: dict[str, tuple[Header, ...]], target: Target, options: DataOptions, spec: DataSpec | None
) -> Target | None:
    """Return what the given pictures of pairs are brought to: the same size, in channels of their own."""
    given = [pair[1] for pair in headers.values() if len(pair) > 1]
    if not given or (spec is not None and SOURCE not in spec.cond):
        return None
    channels = options.channels
    if spec is not None:
        channels = CHANNELS[spec.cond[SOURCE].width]
    elif channels == "auto":
        channels = "rgb" if any(header.colour for header in given) else "grey"
    deep = target.dtype == np.float32 or any(header.deep for header in given)
    return replace(target, channels=channels, dtype=np.float32 if deep else np.uint8)


def _auto_size(headers: Sequence[Header]) -> tuple[int, int]:
    """Keep one small common size as it is, otherwise take a square of the median short side, 64 at most."""
    height, width = headers[0].height, headers[0].width
    if max(height, width) <= _LARGEST_AUTO_SIDE and all((h.height, h.width) == (height, width) for h in headers):
        return height, width
    side = min(_LARGEST_AUTO_SIDE, int(statistics.median_low(min(h.height, h.width) for h in headers)))
    return side, side


def stream_target(
    headers: Sequence[Header], options: DataOptions, spec: DataSpec | None, where: str
) -> tuple[int, int, int]:
    """Return the shape (C, H, W) that pictures like these are brought to.

    Raises:
        DataError: There are none, or the model takes other data.
    """
    if not headers:
        raise DataError(f"{where} holds no readable pictures.")
    return _choose_target(headers, options, spec, where).shape


def _notes(
    listing: Listing,
    headers: dict[str, Header],
    target: Target,
    options: DataOptions,
    spec: DataSpec | None,
) -> tuple[str, ...]:
    return (
        *listing.notes,
        *_size_notes(list(headers.values()), target, options, spec),
        *_colour_notes(list(headers.values()), target),
        *_file_notes(listing, list(headers), spec),
    )


def _size_notes(
    headers: Sequence[Header], target: Target, options: DataOptions, spec: DataSpec | None
) -> Iterator[str]:
    sizes = {(h.height, h.width) for h in headers}
    if sizes == {(target.height, target.width)}:
        return
    short, long = min(min(size) for size in sizes), max(max(size) for size in sizes)
    chosen = "the model's size" if spec else "data.size" if options.size else "chosen; data.size changes it"
    yield (
        f"files have {len(sizes)} size(s), sides of {short} to {long} pixels; brought to "
        f"{target.height} x {target.width} ({chosen}) by data.resize={target.resize}"
    )
    enlarged = sum(enlargement(h.height, h.width, (target.height, target.width), target.resize) > 1 for h in headers)
    if enlarged:
        yield f"warning: {enlarged} picture(s) are smaller than that and were enlarged"


def _colour_notes(headers: Sequence[Header], target: Target) -> Iterator[str]:
    see_through = sum(header.alpha for header in headers)
    if see_through and target.channels != "rgba":
        yield f"{see_through} picture(s) with transparency were laid over white; data.channels=rgba keeps it"
    coloured = sum(header.colour for header in headers)
    if coloured and target.channels == "grey":
        yield f"{coloured} picture(s) in colour were turned grey"
    reduced = sum(header.reduced for header in headers)
    if reduced:
        yield f"{reduced} colour picture(s) of 16 bits per channel were read with 8"


def _file_notes(listing: Listing, names: Sequence[str], spec: DataSpec | None) -> Iterator[str]:
    if listing.others:
        shown = ", ".join(listing.others[:5]) + (", ..." if len(listing.others) > 5 else "")
        yield f"{len(listing.others)} other file(s) passed over: {shown}"
    if any(name.lower().endswith(".gif") for name in names):
        yield "of .gif files the first frame counts; data.layout=video reads them as video"
    unlabelled = folder_classes(names, spec.classes if spec else ()) is None and not listing.columns
    if unlabelled and any("/" in name for name in names) and len({name.split("/")[0] for name in names}) > 1:
        yield "warning: pictures lie both in folders and beside them, so the folders were not taken for classes"
