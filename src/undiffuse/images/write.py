"""Writing PNG files that carry the recipe that made them, and reading the recipe back."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.errors import DataError
from undiffuse.files import write_whole
from undiffuse.images.read import UnreadablePicture

RECIPE_KEY = "undiffuse"


def write_image(path: str | PathLike[str], array: np.ndarray, recipe: dict[str, Any] | None = None) -> None:
    """Write a PNG file, whole or not at all; missing folders are made.

    Args:
        path: Target, ending in .png. The bytes depend on `array` and `recipe` alone.
        array: uint8 (H, W) or (H, W, C) with C = 1 (grey), 3 (RGB) or 4 (RGBA).
        recipe: Stored as JSON in a text chunk named "undiffuse".

    Raises:
        ValueError: Another suffix, dtype or shape; a recipe that JSON cannot hold.
        OSError: The file cannot be written; a former file of that name is then unharmed.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"cannot write {target}: images are written as PNG; end the name in .png.")
    picture = Image.fromarray(_check_pixels(array))
    info = PngInfo()
    if recipe is not None:
        info.add_text(RECIPE_KEY, _as_json(recipe))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, lambda file: picture.save(file, format="PNG", pnginfo=info))


def read_recipe(path: str | PathLike[str]) -> dict[str, Any] | None:
    """Return the recipe stored in a PNG file; None where there is none.

    Raises:
        DataError: The file is not a PNG file, or its recipe is not JSON.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            text = image.info.get(RECIPE_KEY)
    except Exception as error:  # see images.read: the parser raises anything on damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a readable PNG file"
        raise UnreadablePicture(str(path), reason) from error
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"the recipe in {path} is damaged: it is not JSON ({error}).") from error


def _check_pixels(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype != np.uint8:
        raise ValueError(f"array has dtype {array.dtype}; write_image takes uint8 0..255 (image_grid makes one).")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))):
        raise ValueError(f"array has shape {array.shape}; expected (H, W) or (H, W, C) with C = 1, 3 or 4.")
    return np.ascontiguousarray(array)


def _as_json(recipe: dict[str, Any]) -> str:
    try:
        return json.dumps(recipe, sort_keys=True)
    except TypeError as error:
        raise ValueError(
            f"the recipe cannot be stored as JSON: {error}; give plain numbers, strings, lists."
        ) from error
