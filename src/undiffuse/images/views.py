"""Batches that are no pictures, as something to look at: film strips, moving grids, slices, curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from undiffuse.images.grid import image_grid

if TYPE_CHECKING:
    from torch import Tensor

_MOST_ROWS = 16  # items of a strip or plot, and its columns
_MOST_COLUMNS = 16
_CURVE = (480, 64)  # pixels of one plotted signal, width and height
_COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))


def film_strips(videos: Tensor, bounds: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Return a picture with a row of frames for each of the first videos (N, F, C, H, W), uint8 (H', W', C')."""
    chosen = _spread(videos.shape[1], _MOST_COLUMNS)
    shown = videos[:_MOST_ROWS, chosen]
    return image_grid(shown.flatten(0, 1), columns=shown.shape[1], bounds=bounds)


def movie_grid(videos: Tensor, bounds: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Return videos (N, F, C, H, W) that play side by side, uint8 (F, H', W', C')."""
    return np.stack([image_grid(frame, bounds=bounds) for frame in videos.transpose(0, 1)])


def slices(volumes: Tensor, bounds: tuple[float, float] = (-1.0, 1.0)) -> np.ndarray:
    """Return a picture with a row of slices across D for each of the first volumes (N, C, D, H, W).

    Rows of a slice are turned around, so that H grows upwards, as radiologists look at it.
    """
    chosen = _spread(volumes.shape[2], _MOST_COLUMNS)
    shown = volumes[:_MOST_ROWS, :, chosen].flip(-2).transpose(1, 2)
    return image_grid(shown.flatten(0, 1), columns=shown.shape[1], bounds=bounds)


def curves(signals: Tensor, bounds: tuple[float, float] | None = None) -> np.ndarray:
    """Return a picture with a plot for each of the first signals (N, C, L), one colour per channel, uint8 (H', W', 3).

    Args:
        signals: What to draw; values that are not finite are drawn as 0.
        bounds: Values at the lower and upper edge of each plot; None takes the least and the largest.
    """
    from PIL import Image, ImageDraw

    values = np.nan_to_num(signals[:_MOST_ROWS].detach().cpu().double().numpy(), posinf=0.0, neginf=0.0)
    low, high = bounds if bounds is not None else (float(values.min()), float(values.max()))
    width, height = _CURVE
    picture = Image.new("RGB", (width + 8, len(values) * (height + 8)), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    scale = (height - 1) / max(high - low, 1e-12)
    for row, signal in enumerate(values):
        top = row * (height + 8) + 4
        draw.rectangle((4, top, 4 + width - 1, top + height - 1), outline=(220, 220, 220))
        for channel, curve in enumerate(signal.clip(low, high)):
            places = np.linspace(4, 4 + width - 1, len(curve))
            points = list(zip(places.tolist(), (top + (high - curve) * scale).tolist(), strict=True))
            draw.line(points if len(points) > 1 else points * 2, fill=_COLOURS[channel % len(_COLOURS)])
    return np.asarray(picture)


def _spread(count: int, most: int) -> list[int]:
    """Return up to `most` of `count` numbers, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
