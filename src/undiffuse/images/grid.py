"""Batches as one picture: tiles side by side, tiny images enlarged."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_COMFORTABLE = 64  # pixels a tile is enlarged towards, so that 8 x 8 images can be seen


def image_grid(
    batch: Tensor | np.ndarray,
    columns: int | None = None,
    *,
    pad: int = 2,
    scale: int | None = None,
    bounds: tuple[float, float] = (-1.0, 1.0),
    background: int = 255,
) -> np.ndarray:
    """Lay images out in rows, in reading order, as uint8 (H', W', C').

    Args:
        batch: Images (N, C, H, W). C = 1 is grey, 3 RGB, 4 RGBA; of 2 channels the first is shown in grey, of 5 or
            more the first three as RGB. Values that are not numbers are shown as `bounds[0]`.
        columns: Images per row; None makes the grid about square.
        pad: Pixels between and around images.
        scale: Whole-number enlargement of every pixel; None enlarges tiny images to about 64 pixels.
        bounds: Values shown black and white: (-1, 1) for model units, a spec's range for data units.
        background: Grey level of the padding, 0..255, opaque.

    Raises:
        ValueError: The batch is empty or not (N, C, H, W), or a number is out of range.
    """
    images = np.asarray(batch if isinstance(batch, np.ndarray) else batch.detach().cpu().float().numpy())
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"batch has shape {images.shape}; expected images (N, C, H, W) and at least one.")
    if not bounds[0] < bounds[1]:
        raise ValueError(f"bounds={bounds} is empty; give (low, high) with low < high.")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    scale = scale if scale is not None else max(1, round(_COMFORTABLE / max(images.shape[2:])))
    if columns < 1 or scale < 1 or pad < 0:
        raise ValueError(f"columns={columns}, scale={scale}, pad={pad}; expected at least 1, 1 and 0.")
    pixels = _to_bytes(_visible(images), bounds)
    pixels = pixels.repeat(scale, axis=2).repeat(scale, axis=3)
    return _tile(pixels, columns, pad, background)


def _visible(images: np.ndarray) -> np.ndarray:
    """Choose the channels to show: 1, 3 or 4 of them."""
    channels = images.shape[1]
    return images if channels in (1, 3, 4) else images[:, : 1 if channels == 2 else 3]


def _to_bytes(images: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    low, high = bounds
    levels = (np.nan_to_num(images.astype(np.float64), nan=low) - low) * (255.0 / (high - low))
    return levels.clip(0, 255).round().astype(np.uint8)


def _tile(pixels: np.ndarray, columns: int, pad: int, background: int) -> np.ndarray:
    count, channels, height, width = pixels.shape
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), background, dtype=np.uint8)
    if channels == 4:
        sheet[..., 3] = 255
    for number, image in enumerate(pixels):
        top = pad + (number // columns) * (height + pad)
        left = pad + (number % columns) * (width + pad)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return sheet
