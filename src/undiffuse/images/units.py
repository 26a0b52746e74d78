"""One picture from a file as an item of a model's data: its size, channels and units."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from undiffuse.errors import DataError
from undiffuse.images.fit import Resize, fit
from undiffuse.images.read import Channels, load_picture, to_array
from undiffuse.spec import DataSpec

if TYPE_CHECKING:
    from torch import Tensor

_CHANNELS: dict[int, Channels] = {1: "grey", 3: "rgb", 4: "rgba"}


def picture_item(
    path: Path, spec: DataSpec, resize: Resize = "crop", box: tuple[int, int, int, int] | None = None
) -> Tensor:
    """Return a picture in data units (C, H, W).

    Args:
        path: The file.
        spec: What the model takes.
        resize: How a picture of another size is made to fit; where its proportions differ a warning tells of it.
        box: The part to take: left, top, right, bottom in pixels; None: all.

    Raises:
        DataError: The picture cannot be read, or the model's data are no pictures.
        ValueError: An unknown way to resize.
    """
    import torch

    if resize not in get_args(Resize):
        raise ValueError(f"resize={resize!r} is unknown; use {', '.join(get_args(Resize))}.")
    channels = _CHANNELS.get(spec.channels)
    if spec.kind != "image" or channels is None:
        raise DataError(f"{path} is a picture, and the model's data are of kind {spec.kind} {spec.shape}.")
    height, width = spec.shape[1:]
    with open(path, "rb") as file:
        picture = load_picture(file, str(path), channels)
    if box is not None:
        picture = picture.crop(box)
    if picture.size != (width, height):
        if picture.width * height != picture.height * width:
            said = (
                f"some pictures have other proportions than the model's {width} x {height}; resize={resize} fits them"
            )
            warnings.warn(said, stacklevel=2)
        picture = fit(picture, height, width, resize)
    pixels = torch.from_numpy(np.array(to_array(picture, channels))).permute(2, 0, 1).float()
    stored = replace(spec, range=(0.0, 255.0), mean=(), std=())
    return spec.from_model(stored.to_model(pixels[None]))[0]
