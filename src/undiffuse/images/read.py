"""Reading pictures of any depth, mode and orientation into arrays of 0..255.

Grey, RGB, palette, alpha, CMYK and 16-bit grey files are read; 16-bit grey keeps its precision as fractions of the
8-bit scale. Colour files of 16 bits per channel are reduced to 8 by Pillow (`Header.reduced` tells). Of an
animation the first frame counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from os import PathLike
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np

from undiffuse.errors import DataError

if TYPE_CHECKING:
    from PIL import Image, ImageFile

Channels = Literal["auto", "grey", "rgb", "rgba"]

# What a file name must end with to be taken for a picture; the reader itself looks only at the content.
PICTURE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .bmp .dib .gif .tif .tiff .webp .avif .jp2 .ppm .pgm .pbm .pnm".split()  # noqa: SIM905
)
# Formats whose parsers run no other program and know their own files by a signature.
_FORMATS = ("PNG", "JPEG", "MPO", "BMP", "DIB", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
_MODES = {"grey": "L", "rgb": "RGB", "rgba": "RGBA"}
_GREY_MODES = frozenset({"1", "L", "LA", "La", "F"})
_DEEP_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_ORIENTATION = 0x0112  # EXIF tag; the values 2..8 name how the stored picture must be turned.
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class UnreadablePicture(DataError):
    """A file that should be a picture cannot be read; `path` and `reason` say which and why, in one line."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"cannot read the picture {path}: {reason}")


@dataclass(frozen=True)
class Header:
    """What the head of a picture file says, before any pixel is decoded.

    Sizes are in pixels after turning the picture upright.
    """

    height: int
    width: int
    colour: bool
    alpha: bool
    deep: bool  # 16-bit grey, kept
    reduced: bool  # 16-bit colour, read as 8-bit


def read_image(
    source: str | PathLike[str] | BinaryIO, channels: Channels = "auto", background: int = 255
) -> np.ndarray:
    """Read a picture into float32 (H, W, C) with values in 0..255, upright by its EXIF orientation.

    Args:
        source: A path or an open binary file.
        channels: "grey" (C = 1), "rgb" (3), "rgba" (4), or "auto" for what the file holds: alpha is kept where
            there is some, else grey or RGB.
        background: Grey level, 0..255, under transparent pixels when `channels` has no alpha.

    Raises:
        UnreadablePicture: (a `DataError`) Missing, empty, truncated, corrupt, not a picture, or so large that it
            must be taken for a decompression bomb.
    """
    name = str(source) if isinstance(source, str | PathLike) else str(getattr(source, "name", "<open file>"))
    with without_bomb_warnings(), _trouble(name), _as_file(source) as file:
        return to_array(load_picture(file, name, channels, background), channels).astype(np.float32)


def read_header(file: BinaryIO, name: str) -> Header:
    """Read the size and the mode of a picture; `name` stands for it in errors.

    Raises:
        UnreadablePicture: As for `read_image`, as far as the head of the file tells.
    """
    with _trouble(name), _open(file, name) as image:
        _check_mode(image, name)
        width, height = image.size
        # Pillow reports a TIFF upright already, and decodes a PNG to find its orientation: a turned PNG keeps its
        # stored size here.
        if image.format not in ("PNG", "TIFF") and image.getexif().get(_ORIENTATION, 1) >= 5:
            width, height = height, width
        return Header(
            height=height,
            width=width,
            colour=image.mode not in _GREY_MODES | _DEEP_MODES,
            alpha=image.has_transparency_data,
            deep=image.mode in _DEEP_MODES,
            reduced=image.mode not in _DEEP_MODES and ";16" in _raw_mode(image),
        )


def load_picture(
    file: BinaryIO,
    name: str,
    channels: Channels = "auto",
    background: int = 255,
    side: int | None = None,
) -> Image.Image:
    """Decode a picture into a Pillow image of mode L, RGB, RGBA, or F (16-bit grey, values 0..255).

    Args:
        file: An open binary file.
        name: Stands for the picture in errors.
        channels: As for `read_image`.
        background: As for `read_image`.
        side: Where the picture is about to be shrunk to this many pixels, a JPEG may be decoded at a
            fraction of its size, never below twice `side`.

    Raises:
        UnreadablePicture: As for `read_image`.
    """
    with _trouble(name), _open(file, name) as image:
        _check_mode(image, name)
        if side is not None:
            image.draft(None, (2 * side, 2 * side))
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
        picture = _spread_deep(image) if image.mode in _DEEP_MODES else _convert(image, channels, background)
        return _turn(picture, orientation)


def to_array(picture: Image.Image, channels: Channels = "auto") -> np.ndarray:
    """Return the pixels of `load_picture`'s result: uint8 (H, W, C), float32 where the mode is F."""
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if picture.mode != "F":
        return pixels
    pixels = pixels.clip(0.0, 255.0)  # resizing overshoots at edges
    if channels in ("rgb", "rgba"):
        pixels = np.repeat(pixels, 3, axis=-1)
    if channels == "rgba":
        pixels = np.concatenate((pixels, np.full_like(pixels[..., :1], 255.0)), axis=-1)
    return pixels


@contextmanager
def without_bomb_warnings() -> Iterator[None]:
    """Silence Pillow's warning about large pictures: here they are errors. Not for use in threads."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@contextmanager
def _trouble(name: str) -> Iterator[None]:
    """Turn whatever a Pillow parser raises on a broken file into `UnreadablePicture`."""
    try:
        yield
    except (UnreadablePicture, MemoryError):
        raise
    except Exception as error:  # parsers raise anything: OSError, SyntaxError, struct.error, IndexError, zlib.error
        raise UnreadablePicture(name, _reason(error)) from error


def _as_file(source: str | PathLike[str] | BinaryIO) -> AbstractContextManager[BinaryIO]:
    """Open a path ourselves: given a path, Pillow maps uncompressed TIFF files into memory, and then scrambles
    those that lie on their side (seen with Pillow 13)."""
    return open(source, "rb") if isinstance(source, str | PathLike) else nullcontext(source)


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is not a picture in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split())
    return text or f"the file is damaged ({type(error).__name__})"


@cache
def _known_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(file: BinaryIO, name: str) -> ImageFile.ImageFile:
    """Open without decoding; refuse empty files and more pixels than Pillow's own limit."""
    from PIL import Image

    try:
        image = Image.open(file, formats=_known_formats())
    except Image.UnidentifiedImageError:
        file.seek(0)
        if not file.read(1):
            raise UnreadablePicture(name, "the file is empty") from None
        raise
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise UnreadablePicture(
            name, f"{image.width} x {image.height} pixels is over the limit of {limit} (a decompression bomb?)"
        )
    return image


def _check_mode(image: Image.Image, name: str) -> None:
    if image.mode == "F":
        raise UnreadablePicture(name, "pixels are floats without a known range; save them as a .npy array")


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Name the pixel layout in the file, such as "RGB;16B"; empty where the format has no such notion."""
    for tile in image.tile:
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        return str(args[0]) if args else ""
    return ""


def _spread_deep(image: Image.Image) -> Image.Image:
    """Map 16-bit grey 0..65535 to floats 0..255 (mode F): 65535 = 257 * 255."""
    from PIL import Image

    pixels = np.asarray(image).astype(np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or high > 65535:
        raise ValueError(f"grey levels {low:.0f}..{high:.0f} do not fit 16 bits; save them as a .npy array")
    return Image.fromarray(pixels / 257.0)


def _convert(image: Image.Image, channels: Channels, background: int) -> Image.Image:
    """Bring any 8-bit mode to L, RGB or RGBA, laying transparent pixels over `background`."""
    from PIL import Image

    alpha = image.has_transparency_data
    if channels == "auto":
        mode = "RGBA" if alpha else "L" if image.mode in _GREY_MODES else "RGB"
    else:
        mode = _MODES[channels]
    if alpha and mode != "RGBA":
        under = Image.new("RGBA", image.size, (background, background, background, 255))
        image = Image.alpha_composite(under, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _turn(picture: Image.Image, orientation: int) -> Image.Image:
    from PIL import Image

    turn = _UPRIGHT.get(orientation)
    return picture if turn is None else picture.transpose(Image.Transpose[turn])
