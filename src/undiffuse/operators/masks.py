"""Masks for inpainting: which numbers of an item are known. A mask is a function of its seed (and item number)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import Shape, image_shape
from undiffuse.operators.diagonal import Mask

SIDES = ("left", "right", "top", "bottom")


def given_mask(shape: Shape, *, mask: Tensor, invert: bool = False, seed: int = 0) -> Mask:
    """Return a mask from a tensor, 1 where the item is known; where it is missing with `invert`."""
    made = Mask(shape, 1 - mask.double() if invert else mask)
    if made.mask.min() == made.mask.max():
        state = "everything is known, so nothing is left to restore" if made.mask.max() else "nothing is known"
        warnings.warn(f"the mask is {float(made.mask.max()):.0f} everywhere: {state}.", stacklevel=2)
    return made


def box_mask(
    shape: Shape, *, size: int = 0, position: str = "centre", seed: int = 0, items: Sequence[int] | None = None
) -> Mask:
    """Return a mask with a square hole.

    Args:
        size: Side of the hole in pixels; 0 for half of the smaller side of the picture.
        position: "centre", "random" (a place per item where there are `items`), or "ROW:COLUMN" of its upper left.
        seed: Of a random position.
        items: Numbers of the items, for a mask of each.
    """
    _, height, width = image_shape(shape, "a box")
    size = size or min(height, width) // 2
    if not 0 < size <= min(height, width):
        raise ValueError(f"size={size} of a box must be between 1 and {min(height, width)} pixels.")
    places = [_corner(position, (height - size, width - size), seed, item) for item in (items or [0])]
    holes = torch.ones(len(places), *[1] * (len(shape) - 2), height, width, dtype=torch.float64)
    for hole, (row, column) in zip(holes, places, strict=True):
        hole[..., row : row + size, column : column + size] = 0
    return Mask(shape, holes if items is not None else holes[0])


def random_mask(
    shape: Shape,
    *,
    missing: float = 0.5,
    channels: str = "shared",
    seed: int = 0,
    items: Sequence[int] | None = None,
) -> Mask:
    """Return a mask where each pixel is missing with probability `missing`.

    Args:
        missing: Between 0 and 1.
        channels: "shared" by all channels, or "each" with a mask of its own.
        seed: Of the draw.
        items: Numbers of the items, for a mask of each.
    """
    if not 0 <= missing <= 1:
        raise ValueError(f"missing={missing} of a random mask is a share; give a number between 0 and 1.")
    if channels not in ("shared", "each"):
        raise ValueError(f"channels={channels!r} of a random mask is unknown; choose shared or each.")
    drawn = (1, *shape[1:]) if channels == "shared" and len(shape) > 1 else tuple(shape)
    known = KeyedNoise(seed, list(items or [0])).uniform("operator", 0, drawn) >= missing
    return Mask(shape, known if items is not None else known[0])


def freeform_mask(
    shape: Shape, *, missing: float = 0.25, width: int = 0, seed: int = 0, items: Sequence[int] | None = None
) -> Mask:
    """Return a mask with brush strokes that hide at least the share `missing` of the picture.

    Args:
        missing: Between 0 and 0.9.
        width: Of the brush in pixels; 0 for a twelfth of the smaller side.
        seed: Of the strokes.
        items: Numbers of the items, for a mask of each.
    """
    _, height, columns = image_shape(shape, "a freeform mask")
    if not 0 < missing <= 0.9:
        raise ValueError(f"missing={missing} of a freeform mask must be above 0 and at most 0.9.")
    brush = width or max(1, min(height, columns) // 12)
    drawn = [_strokes(height, columns, missing, brush, seed, item) for item in (items or [0])]
    known = torch.stack(drawn).view(len(drawn), *[1] * (len(shape) - 2), height, columns)
    return Mask(shape, known if items is not None else known[0])


def half_mask(shape: Shape, *, side: str = "right", share: float = 0.5, seed: int = 0) -> Mask:
    """Return a mask where a share of the picture on one side is missing: outpainting."""
    _, height, width = image_shape(shape, "half")
    if side not in SIDES or not 0 < share < 1:
        raise ValueError(f"side={side!r}, share={share}: choose {', '.join(SIDES)} and a share between 0 and 1.")
    known = torch.ones(height, width, dtype=torch.float64)
    length = round(share * (width if side in ("left", "right") else height))
    hidden = slice(0, length) if side in ("left", "top") else slice(-length or None, None)
    known[(..., hidden) if side in ("left", "right") else (hidden, ...)] = 0
    return Mask(shape, known)


def lines_mask(shape: Shape, *, period: int = 2, keep: int = 1, seed: int = 0) -> Mask:
    """Return a mask that keeps `keep` of every `period` rows."""
    _, height, width = image_shape(shape, "lines")
    if not 0 < keep <= period:
        raise ValueError(f"keep={keep} of every period={period} rows: keep must be between 1 and the period.")
    known = (torch.arange(height) % period < keep).double()[:, None].expand(height, width)
    return Mask(shape, known.clone())


def bayer_mask(shape: Shape, *, pattern: str = "RGGB", seed: int = 0) -> Mask:
    """Return the colour filter of a camera: each pixel of an RGB picture keeps one colour; to demosaic."""
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"demosaic works on RGB pictures (3, H, W); an item has shape {tuple(shape)}.")
    if sorted(pattern) != sorted("RGGB"):
        raise ValueError(f"pattern={pattern!r} is no Bayer pattern; use RGGB, BGGR, GRBG or GBRG.")
    known = torch.zeros(shape, dtype=torch.float64)
    for place, colour in enumerate(pattern):
        known["RGB".index(colour), place // 2 :: 2, place % 2 :: 2] = 1
    return Mask(shape, known)


def _corner(position: str, most: tuple[int, int], seed: int, item: int) -> tuple[int, int]:
    if position == "centre":
        return most[0] // 2, most[1] // 2
    if position == "random":
        draw = KeyedNoise(seed, [item]).uniform("operator", 0, (2,))[0].tolist()
        return int(draw[0] * (most[0] + 1)), int(draw[1] * (most[1] + 1))
    row, _, column = position.partition(":")
    if not (row.isdigit() and column.isdigit()) or int(row) > most[0] or int(column) > most[1]:
        raise ValueError(
            f"position={position!r} of a box: give centre, random, or ROW:COLUMN of its corner, at most "
            f"{most[0]}:{most[1]}."
        )
    return int(row), int(column)


def _strokes(height: int, width: int, missing: float, brush: int, seed: int, item: int) -> Tensor:
    """Return what is known beside random strokes (smooth random walks of a round brush)."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    known = torch.ones(height, width, dtype=torch.float64)
    steps, noise = max(4, max(height, width) // brush), KeyedNoise(seed, [item])
    for stroke in range(1000):
        if float(known.mean()) <= 1 - missing:
            break
        draw = noise.uniform("operator", stroke, (3 + steps,))[0]
        angle = 2 * math.pi * draw[2] + (2.0 * (draw[3:] - 0.5)).cumsum(0)
        at = torch.stack(
            (draw[0] * height + brush * angle.sin().cumsum(0) / 2, draw[1] * width + brush * angle.cos().cumsum(0) / 2),
            1,
        )
        for row, column in at.tolist():
            known[(rows - row) ** 2 + (columns - column) ** 2 <= (brush / 2) ** 2 + 0.25] = 0
            if float(known.mean()) <= 1 - missing:
                break
    return known
