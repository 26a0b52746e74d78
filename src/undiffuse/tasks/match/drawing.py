"""Pictures of matches: two pictures side by side with lines between corresponding points, and flow as colours."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undiffuse.tasks.match.frame import Picture, read_picture
from undiffuse.tasks.match.results import DenseMatch, Matches

_SIDE = 360  # pixels of the higher picture, where small ones are enlarged to
_GAP = 24
_GREY = (150, 150, 150)
_FINE = 3  # lines are drawn so many times as large and shrunk, which smooths them


def draw_matches(src: Any, dst: Any, found: Matches, *, side: int = _SIDE) -> NDArray[np.uint8]:
    """Draw two pictures side by side with a coloured line for each match; those that were dropped are grey and thin.

    Args:
        src: Source, as for `match`.
        dst: Target.
        found: Their matches.
        side: Height in pixels of the higher picture; pictures smaller than that are enlarged by whole factors.

    Returns:
        uint8 (H, W, 3).
    """
    from PIL import Image, ImageDraw

    pair = [read_picture(src, "the source"), read_picture(dst, "the target")]
    zooms = [_zoom(picture, side) for picture in pair]
    shown = [_enlarged(picture, zoom) for picture, zoom in zip(pair, zooms, strict=True)]
    height, left = max(part.shape[0] for part in shown), shown[0].shape[1] + _GAP
    canvas = np.full((height, left + shown[1].shape[1], 3), 255, np.uint8)
    offsets = [(0, (height - shown[0].shape[0]) // 2), (left, (height - shown[1].shape[0]) // 2)]
    for part, (x, y) in zip(shown, offsets, strict=True):
        canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    image = Image.fromarray(canvas).resize((canvas.shape[1] * _FINE, canvas.shape[0] * _FINE), Image.Resampling.BOX)
    pen = ImageDraw.Draw(image)
    ends = [
        (_placed(points, zoom, offset) * _FINE).tolist()
        for points, zoom, offset in zip((found.points, found.positions), zooms, offsets, strict=True)
    ]
    colours = _colours(found)
    for number in sorted(range(len(found)), key=lambda i: bool(found.kept[i])):  # dropped ones below
        _line(pen, ends[0][number], ends[1][number], colours[number], bool(found.kept[number]))
    return np.asarray(image.resize((canvas.shape[1], canvas.shape[0]), Image.Resampling.BOX))


def draw_flow(dense: DenseMatch) -> NDArray[np.uint8]:
    """Draw a flow as colours, uint8 (H, W, 3): the hue is its direction, the strength of the colour its length as a
    share of the longest.
    """
    x, y = dense.flow.unbind(-1)
    length = torch.hypot(x, y)
    share = (length / length.max().clamp_min(1e-9)).numpy()
    hue = (torch.atan2(y, x) / (2 * torch.pi) + 0.5).numpy()
    wheel = np.stack([np.clip(np.abs((hue * 6 + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)], axis=-1)
    return (255 * (1 - share[..., None] * (1 - wheel))).round().astype(np.uint8)


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Return pixels (C, H, W) in [-1, 1] as uint8 (H, W, C)."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).to(torch.uint8).numpy()


def _zoom(picture: Picture, side: int) -> float:
    """Return by how much a picture is enlarged: a whole factor; or shrunk."""
    longer = max(picture.size)
    return float(side // longer) if longer <= side else side / longer


def _enlarged(picture: Picture, zoom: float) -> NDArray[np.uint8]:
    from PIL import Image

    height, width = (max(1, round(n * zoom)) for n in picture.size)
    filtered = Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(to_uint8(picture.channels(3))).resize((width, height), filtered))


def _placed(points: Tensor, zoom: float, offset: tuple[int, int]) -> Tensor:
    return (points + 0.5) * zoom + torch.tensor(offset, dtype=points.dtype)


def _colours(found: Matches) -> list[tuple[int, ...]]:
    """Return a colour for each match, by its place among the source's points from left to right."""
    order = torch.argsort(torch.argsort(found.points[:, 0] + 1e-3 * found.points[:, 1])).tolist()
    hues = [place / max(1, len(order)) for place in order]
    return [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 0.92)) for hue in hues]


def _line(pen: Any, start: Sequence[float], end: Sequence[float], colour: tuple[int, ...], kept: bool) -> None:
    colour, width, radius = (colour, 2 * _FINE, 4 * _FINE) if kept else (_GREY, _FINE, 2 * _FINE)
    pen.line([*start, *end], fill=colour, width=width)
    for x, y in (start, end):
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour, outline=(255, 255, 255), width=_FINE)
