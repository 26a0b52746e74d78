"""Picture files to one tensor: look at all headers, choose a size, check the memory, decode."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from undiffuse.data.dataset import Problem, TensorDataset, some_problems
from undiffuse.data.labels import number_labels
from undiffuse.data.listing import Listing, folder_classes
from undiffuse.data.memory import require_memory
from undiffuse.data.options import DataOptions
from undiffuse.errors import DataError
from undiffuse.images.fit import Resize, enlargement, fit
from undiffuse.images.read import (
    Channels,
    Header,
    UnreadablePicture,
    load_picture,
    read_header,
    to_array,
    without_bomb_warnings,
)
from undiffuse.noise import permutation
from undiffuse.spec import DataSpec

_LARGEST_AUTO_SIDE = 64  # pixels; larger pictures want a decision about time and memory: data.size
_CHANNELS: dict[int, Channels] = {1: "grey", 3: "rgb", 4: "rgba"}
_COUNTS: dict[Channels, int] = {name: count for count, name in _CHANNELS.items()}
_SMALL_PICTURE = 128 * 128  # pixels; decoding smaller ones is mostly Python, which threads only slow down
_CHUNK = 16  # pictures per task of the pool

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Target:
    """What every picture is brought to."""

    height: int
    width: int
    channels: Channels
    resize: Resize
    dtype: type

    @property
    def shape(self) -> tuple[int, int, int]:
        return _COUNTS[self.channels], self.height, self.width


@without_bomb_warnings()
def open_pictures(listing: Listing, options: DataOptions, spec: DataSpec | None = None) -> TensorDataset:
    """Decode the pictures of a folder, archive or file into memory, as uint8 (float32 where some have 16 bits).

    Args:
        listing: Where they are.
        options: Size, channels, resize policy, limits.
        spec: Units of a model: pictures are brought to its shape and its classes, whatever the options say.

    Raises:
        DataError: Too many files are unreadable, they do not fit into memory, or not the model.
    """
    options.refuse_others("pictures", ("size", "channels", "resize", "flip"))
    names = _limited(listing.names, options.limit)
    headers, unread = _attempt(lambda name: _header(listing, name), names)
    _refuse_bad(unread, len(names), options.max_bad, listing.where)
    names = [name for name in names if name in headers]
    target = _choose_target(list(headers.values()), options, spec, listing.where)
    _check_memory(list(headers.values()), target)
    pixels, broken = _decode_all(listing, names, target, _workers(headers.values()))
    problems = tuple(Problem(path, reason) for path, reason in sorted({**unread, **broken}.items()))
    _refuse_bad({p.path: p.reason for p in problems}, len(names) + len(unread), options.max_bad, listing.where)
    classes = folder_classes(names, spec.classes if spec else ())
    labels, class_names = _labels(classes, listing.where, spec)
    stored = DataSpec(kind="image", shape=target.shape, range=(0.0, 255.0), classes=class_names)
    rows = [row for row, name in enumerate(names) if name not in broken]
    return TensorDataset(
        data=torch.from_numpy(pixels),
        spec=spec or stored,
        stored=stored,
        labels=labels,
        rows=torch.tensor(rows) if broken else None,
        mirror=options.flip,
        problems=problems,
        notes=_notes(listing, headers, target, options, spec, classes),
    )


def _limited(names: Sequence[str], limit: int | None) -> list[str]:
    if limit is None or limit >= len(names):
        return list(names)
    return [names[i] for i in permutation(0, 0, len(names))[:limit].sort().values.tolist()]


def _header(listing: Listing, name: str) -> Header:
    with listing.open(name) as file:
        return read_header(file, name)


def _attempt(read: Callable[[str], Answer], names: Iterable[str]) -> tuple[dict[str, Answer], dict[str, str]]:
    """Return answers by name, and by name the reasons why there is none."""
    answers, reasons = {}, {}
    for name in names:
        try:
            answers[name] = read(name)
        except UnreadablePicture as error:
            reasons[name] = error.reason
        except OSError as error:
            reasons[name] = (error.strerror or str(error)).lower()
    return answers, reasons


def _refuse_bad(bad: dict[str, str], total: int, most: float, where: str) -> None:
    if bad and (len(bad) > most * total or len(bad) == total):
        listed = some_problems([Problem(path, reason) for path, reason in bad.items()])
        raise DataError(
            f"{len(bad)} of {total} picture file(s) in {where} cannot be read, more than data.max_bad={most:g} allows: "
            f"{listed}. Remove or mend them, or raise data.max_bad."
        )


def _choose_target(headers: Sequence[Header], options: DataOptions, spec: DataSpec | None, where: str) -> _Target:
    dtype = np.float32 if any(header.deep for header in headers) else np.uint8
    if spec is not None:
        if spec.kind != "image" or spec.channels not in _CHANNELS or spec.range is None:
            raise DataError(
                f"{where} holds pictures but the model was trained on {spec.kind} data of shape {spec.shape}; "
                "give data of that kind."
            )
        return _Target(spec.shape[1], spec.shape[2], _CHANNELS[spec.channels], options.resize, dtype)
    channels = options.channels
    if channels == "auto":
        channels = "rgb" if any(header.colour for header in headers) else "grey"
    height, width = (options.size, options.size) if options.size else _auto_size(headers)
    return _Target(height, width, channels, options.resize, dtype)


def _auto_size(headers: Sequence[Header]) -> tuple[int, int]:
    """Keep one small common size as it is, otherwise take a square of the median short side, 64 at most."""
    height, width = headers[0].height, headers[0].width
    if max(height, width) <= _LARGEST_AUTO_SIDE and all((h.height, h.width) == (height, width) for h in headers):
        return height, width
    side = min(_LARGEST_AUTO_SIDE, int(statistics.median_low(min(h.height, h.width) for h in headers)))
    return side, side


def _check_memory(headers: Sequence[Header], target: _Target) -> None:
    kept = len(headers) * int(np.prod(target.shape)) * np.dtype(target.dtype).itemsize
    decoding = _workers(headers) * max(h.height * h.width for h in headers) * 8  # RGBA, and its copy
    require_memory(
        kept + decoding,
        f"decoding {len(headers)} picture(s) to {target.height} x {target.width} pixels",
        "choose a smaller data.size, or set data.limit",
    )


def _workers(headers: Iterable[Header]) -> int:
    large = any(header.height * header.width > _SMALL_PICTURE for header in headers)
    return min(8, os.cpu_count() or 1) if large else 1


def _decode_all(
    listing: Listing, names: Sequence[str], target: _Target, workers: int
) -> tuple[np.ndarray, dict[str, str]]:
    """Return pixels (N, C, H, W) and the reasons of those that could not be decoded, whose rows stay undefined."""
    pixels: np.ndarray = np.zeros((len(names), *target.shape), dtype=target.dtype)

    def decode(row: int) -> None:
        with listing.open(names[row]) as file:
            picture = load_picture(file, names[row], target.channels, side=max(target.height, target.width))
        small = fit(picture, target.height, target.width, target.resize)
        pixels[row] = to_array(small, target.channels).transpose(2, 0, 1)

    def decode_chunk(start: int) -> dict[str, str]:
        rows = {names[row]: row for row in range(start, min(start + _CHUNK, len(names)))}
        return _attempt(lambda name: decode(rows[name]), rows)[1]

    reasons: dict[str, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        for chunk in pool.map(decode_chunk, range(0, len(names), _CHUNK)):
            reasons.update(chunk)
    return pixels, reasons


def _labels(
    classes: Sequence[str] | None, where: str, spec: DataSpec | None
) -> tuple[torch.Tensor | None, tuple[str, ...]]:
    if classes is None or (spec is not None and not spec.classes):
        return None, ()
    return number_labels(classes, where, spec.classes if spec else ())


def _notes(
    listing: Listing,
    headers: dict[str, Header],
    target: _Target,
    options: DataOptions,
    spec: DataSpec | None,
    classes: Sequence[str] | None,
) -> tuple[str, ...]:
    return (
        *_size_notes(list(headers.values()), target, options, spec),
        *_colour_notes(list(headers.values()), target),
        *_file_notes(listing, list(headers), classes, spec),
    )


def _size_notes(
    headers: Sequence[Header], target: _Target, options: DataOptions, spec: DataSpec | None
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


def _colour_notes(headers: Sequence[Header], target: _Target) -> Iterator[str]:
    see_through = sum(header.alpha for header in headers)
    if see_through and target.channels != "rgba":
        yield f"{see_through} picture(s) with transparency were laid over white; data.channels=rgba keeps it"
    coloured = sum(header.colour for header in headers)
    if coloured and target.channels == "grey":
        yield f"{coloured} picture(s) in colour were turned grey"
    reduced = sum(header.reduced for header in headers)
    if reduced:
        yield f"{reduced} colour picture(s) of 16 bits per channel were read with 8"


def _file_notes(
    listing: Listing, names: Sequence[str], classes: Sequence[str] | None, spec: DataSpec | None
) -> Iterator[str]:
    if listing.others:
        shown = ", ".join(listing.others[:5]) + (", ..." if len(listing.others) > 5 else "")
        yield f"{len(listing.others)} other file(s) passed over: {shown}"
    if classes is None and any("/" in name for name in names) and len({name.split("/")[0] for name in names}) > 1:
        yield "warning: pictures lie both in folders and beside them, so the folders were not taken for classes"
    if classes is not None and spec is not None and not spec.classes:
        yield "the model has no classes; the folders' names were not used"
