"""Pictures brought to one size: read one by one from where they are, or decoded all at once into memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import torch

from undiffuse.data.dataset import Problem, refuse_bad
from undiffuse.data.lazy import Item
from undiffuse.data.listing import Listing
from undiffuse.data.memory import fits_memory, require_memory
from undiffuse.data.pairs import SOURCE
from undiffuse.images.fit import Resize, fit
from undiffuse.images.read import Channels, Header, UnreadablePicture, load_picture, to_array
from undiffuse.spec import DataSpec

if TYPE_CHECKING:
    from undiffuse.data.columns import Conditions
    from undiffuse.data.options import DataOptions

CHANNELS: dict[int, Channels] = {1: "grey", 3: "rgb", 4: "rgba"}
COUNTS: dict[Channels, int] = {name: count for count, name in CHANNELS.items()}
_SMALL_PICTURE = 128 * 128  # pixels; decoding smaller ones is mostly Python, which threads only slow down
_CHUNK = 16  # pictures per task of the pool

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Target:
    """What every picture is brought to."""

    height: int
    width: int
    channels: Channels
    resize: Resize
    dtype: type

    @property
    def shape(self) -> tuple[int, int, int]:
        return COUNTS[self.channels], self.height, self.width


@dataclass(frozen=True)
class PictureSource:
    """Pictures of a listing, brought to one size, as a `Source`.

    Args:
        listing: Opens them.
        names: Which, by row.
        target: What they are brought to.
        given: The same for the other picture of each pair; None where there are no pairs.
    """

    listing: Listing
    names: Sequence[str]
    target: Target
    given: Target | None = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, row: int) -> Item:
        """Decode one picture "x" (C, H, W), and the one given with it as "source"."""
        name = self.names[row]
        item = {"x": _pixels(self.listing.open, name, self.target)}
        if self.given is not None and self.listing.partner is not None:
            item[SOURCE] = _pixels(self.listing.partner, name, self.given)
        return item

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Shape of each part of an item."""
        return {"x": self.target.shape} | ({} if self.given is None else {SOURCE: self.given.shape})


def attempt(read: Callable[[str], Answer], names: Iterable[str]) -> tuple[dict[str, Answer], dict[str, str]]:
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


def stays_on_disk(source: PictureSource, headers: Sequence[Header], lazy: bool | None) -> bool:
    """Whether the pictures are read while training: as asked, else where they would not fit into memory.

    Raises:
        DataError: They do not fit, and `lazy` is False.
    """
    if lazy:
        return True
    target = source.target
    values = sum(int(np.prod(shape)) for shape in source.shapes.values())
    kept = len(source) * values * np.dtype(target.dtype).itemsize
    decoding = workers_for(headers) * max(h.height * h.width for h in headers) * 8  # RGBA, and its copy
    if lazy is None:
        return not fits_memory(kept + decoding)
    require_memory(
        kept + decoding,
        f"decoding {len(source)} picture(s) to {target.height} x {target.width} pixels",
        "leave out data.lazy, choose a smaller data.size, or set data.limit",
    )
    return False


def known_of(
    listing: Listing,
    names: Sequence[str],
    found: Conditions,
    unread: Mapping[str, str],
    broken: Mapping[str, str],
    options: DataOptions,
) -> dict[str, Any]:
    """Return what a data set of pictures holds besides pixels: labels, conditions, which rows are good, problems.

    Args:
        listing: Where they are.
        names: The pictures, a row each.
        found: Their conditions.
        unread: Why others have no row.
        broken: Why rows are bad, as those are for which `found` lacks a value.
        options: How many may be.

    Raises:
        DataError: Too many are bad.
    """
    bad = {**unread, **{names[row]: reason for row, reason in found.lacking.items()}, **broken}
    refuse_bad(bad, len(names) + len(unread), options.max_bad, listing.where)
    good = [row for row, name in enumerate(names) if name not in bad]
    return {
        "labels": found.labels,
        "cond": found.cond,
        "rows": torch.tensor(good) if len(good) < len(names) else None,
        "mirror": options.flip,
        "problems": tuple(Problem(path, reason) for path, reason in sorted(bad.items())),
    }


def workers_for(headers: Iterable[Header]) -> int:
    large = any(header.height * header.width > _SMALL_PICTURE for header in headers)
    return min(8, os.cpu_count() or 1) if large else 1


def decode_picture(file: BinaryIO, name: str, stored: DataSpec, resize: Resize) -> np.ndarray:
    """Decode a picture to the shape of `stored`, uint8 (C, H, W).

    Raises:
        UnreadablePicture: It cannot be read.
    """
    channels, height, width = stored.shape
    return _pixels(lambda _: file, name, Target(height, width, CHANNELS[channels], resize, np.uint8))


def _pixels(opener: Callable[[str], BinaryIO], name: str, target: Target) -> np.ndarray:
    """Return a picture's pixels (C, H, W), brought to the target."""
    with opener(name) as file:
        picture = load_picture(file, name, target.channels, side=max(target.height, target.width))
    small = fit(picture, target.height, target.width, target.resize)
    return to_array(small, target.channels).transpose(2, 0, 1).astype(target.dtype)


def decode_all(source: PictureSource, workers: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return all parts (N, C, H, W) and the reasons of those that could not be decoded, whose rows stay undefined."""
    names = source.names
    dtype = source.target.dtype
    parts: dict[str, np.ndarray] = {
        key: np.zeros((len(names), *shape), dtype=dtype) for key, shape in source.shapes.items()
    }

    def decode(row: int) -> None:
        for key, part in source.read(row).items():
            parts[key][row] = part

    def decode_chunk(start: int) -> dict[str, str]:
        rows = {names[row]: row for row in range(start, min(start + _CHUNK, len(names)))}
        return attempt(lambda name: decode(rows[name]), rows)[1]

    reasons: dict[str, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        for chunk in pool.map(decode_chunk, range(0, len(names), _CHUNK)):
            reasons.update(chunk)
    return parts, reasons
