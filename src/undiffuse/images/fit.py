"""Bringing pictures of mixed sizes to one size: crop, pad or stretch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL import Image

Resize = Literal["crop", "pad", "stretch"]


def fit(picture: Image.Image, height: int, width: int, policy: Resize) -> Image.Image:
    """Resample a picture to exactly `height` x `width` pixels with a Lanczos filter.

    Args:
        picture: Any mode that `load_picture` returns.
        height: Target height in pixels.
        width: Target width in pixels.
        policy: "crop" fills the target and cuts what stands over, centred; "pad" keeps all of the picture, centred
            on black (on transparent, with alpha); "stretch" changes the proportions.
    """
    from PIL.Image import Resampling

    if picture.size == (width, height):
        return picture
    if policy == "stretch":
        return picture.resize((width, height), Resampling.LANCZOS)
    if policy == "crop":
        return picture.resize((width, height), Resampling.LANCZOS, box=_crop_box(picture.size, height, width))
    return _pad(picture, height, width)


def enlargement(height: int, width: int, target: tuple[int, int], policy: Resize) -> float:
    """Return by how much `fit` magnifies a picture of height x width (its stronger axis where it stretches)."""
    ratios = target[0] / height, target[1] / width
    return min(ratios) if policy == "pad" else max(ratios)


def _crop_box(size: tuple[int, int], height: int, width: int) -> tuple[float, float, float, float]:
    scale = min(size[0] / width, size[1] / height)
    wide, high = min(width * scale, size[0]), min(height * scale, size[1])
    left, top = (size[0] - wide) / 2, (size[1] - high) / 2
    return left, top, min(left + wide, size[0]), min(top + high, size[1])


def _pad(picture: Image.Image, height: int, width: int) -> Image.Image:
    from PIL import Image

    scale = min(width / picture.width, height / picture.height)
    wide, high = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    canvas = Image.new(picture.mode, (width, height))
    inner = picture.resize((wide, high), Image.Resampling.LANCZOS)
    canvas.paste(inner, ((width - wide) // 2, (height - high) // 2))
    return canvas
