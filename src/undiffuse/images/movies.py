"""Moving pictures: looking at GIF and video files, reading frames by number, writing GIF and MP4.

Video files are read by PyAV; where it is missing, by imageio-ffmpeg, which knows no exact seeking and decodes from the
start. Frames are numbered as they are shown, from 0, whatever their times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from undiffuse.errors import DataError
from undiffuse.files import write_whole
from undiffuse.images.read import (
    Channels,
    UnreadablePicture,
    _check_mode,
    _convert,
    _open,
    _trouble,
)

if TYPE_CHECKING:
    from PIL import Image

GIF_SUFFIXES = frozenset((".gif",))
VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi"))
MOVIE_SUFFIXES = GIF_SUFFIXES | VIDEO_SUFFIXES
_LEAST_SPREAD = 1.5  # largest over smallest distance of frames from which a rate counts as variable
_DEFAULT_RATE = 10.0  # frames per second of a GIF that names no delay, as browsers show it
_GIF_TICK = 10  # milliseconds: the unit of delays


class MissingReader(DataError):
    """Neither library that reads videos is installed."""


@dataclass(frozen=True)
class MovieHeader:
    """What a look through a file says, before any frame is decoded. Sizes are in pixels, upright.

    Args:
        frames: Number of frames.
        height, width: Of each frame.
        rate: Frames per second, on average; 0 where unknown.
        colour: Whether there is colour.
        alpha: Whether there is transparency.
        variable: Whether the distances of frames in time differ.
        turned: Degrees, counter-clockwise, by which frames are turned to stand upright: 0, 90, 180, 270.
        times: Video files: time stamp of each frame.
    """

    frames: int
    height: int
    width: int
    rate: float
    colour: bool = True
    alpha: bool = False
    variable: bool = False
    turned: int = 0
    times: tuple[int, ...] = ()


def read_movie_header(path: Path, name: str) -> MovieHeader:
    """Look through a file without decoding its frames; `name` stands for it in errors.

    Raises:
        UnreadablePicture: Missing, empty, damaged, or without frames.
        MissingReader: A video, and nothing that reads it is installed.
    """
    _require_reader(path)
    with _trouble(name), _plain_reasons(name):
        if not path.stat().st_size:
            raise UnreadablePicture(name, "the file is empty")
        if path.suffix.lower() in GIF_SUFFIXES:
            return _gif_header(path, name)
        return _video_header(path, name) if _has_av() else _fallback_header(path, name)


def read_frames(
    path: Path, name: str, header: MovieHeader, numbers: Sequence[int], channels: Channels = "auto"
) -> Iterator[Image.Image]:
    """Yield the frames of these numbers, which rise, as upright Pillow images of mode L, RGB or RGBA.

    Transparent pixels lie over white unless `channels` is "rgba".

    Raises:
        UnreadablePicture: A frame cannot be decoded.
    """
    _require_reader(path)
    with _trouble(name), _plain_reasons(name):
        if path.suffix.lower() in GIF_SUFFIXES:
            frames = _gif_frames(path, name, numbers, channels)
        elif _has_av():
            frames = _video_frames(path, header, numbers)
        else:
            frames = _fallback_frames(path, numbers)
        found = 0
        for frame in frames:
            yield frame if frame.mode == "F" else _convert(frame, channels, 255)
            found += 1
        if found < len(numbers):
            raise UnreadablePicture(name, f"frame {numbers[found]} is missing (the file is cut off?)")


def write_movie(path: str | PathLike[str], frames: np.ndarray, rate: float = 0.0) -> None:
    """Write frames as a GIF that repeats, or as an MP4 (H.264, or MPEG-4 where there is no encoder for it).

    Args:
        path: Ends in .gif or .mp4; its folder is made if missing.
        frames: uint8 (F, H, W, C), C = 1, 3 or 4 (transparency is left out).
        rate: Frames per second; 0 for 10.

    Raises:
        ValueError: Another suffix, dtype or shape.
        MissingReader: MP4 without PyAV.
        OSError: The file cannot be written; a former file of that name is then unharmed.
    """
    target = Path(path)
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or 0 in frames.shape or frames.shape[-1] not in (1, 3, 4):
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (F, H, W, C) with C = 1, 3 or 4.")
    if target.suffix.lower() not in (".gif", ".mp4"):
        raise ValueError(f"cannot write {target}: moving pictures are written as .gif or .mp4.")
    target.parent.mkdir(parents=True, exist_ok=True)
    write = _write_gif if target.suffix.lower() == ".gif" else _write_mp4
    write_whole(target, lambda part: write(part, frames[..., :3], rate or _DEFAULT_RATE))


@contextmanager
def _plain_reasons(name: str) -> Iterator[None]:
    """Say what FFmpeg says, without its error number and the path that the message has already."""
    try:
        yield
    except ValueError as error:  # PyAV's errors of damaged data are ValueErrors with the text in `strerror`
        reason = getattr(error, "strerror", None)
        if not reason:
            raise
        raise UnreadablePicture(name, f"{str(reason).lower()} (the file is damaged or cut off)") from error


# -- GIF ------------------------------------------------------------------------------------------


def _gif_header(path: Path, name: str) -> MovieHeader:
    with open(path, "rb") as file, _open(file, name) as image:
        _check_mode(image, name)
        delays, colour = [], False
        alpha = image.has_transparency_data
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            delays.append(float(image.info.get("duration", 0)))
            colour = colour or _has_colour(image)
        known = [delay for delay in delays if delay > 0]
        rate = 1000.0 * len(known) / sum(known) if known else _DEFAULT_RATE
        return MovieHeader(
            frames=len(delays),
            height=image.height,
            width=image.width,
            rate=rate,
            colour=colour,
            alpha=alpha,
            variable=bool(known) and max(known) > _LEAST_SPREAD * min(known),
        )


def _has_colour(image: Image.Image) -> bool:
    """Whether a frame has a pixel that is not grey: palettes of grey pictures look like any other."""
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels != pixels[..., :1]).any())


def _gif_frames(path: Path, name: str, numbers: Sequence[int], channels: Channels) -> Iterator[Image.Image]:
    with open(path, "rb") as file, _open(file, name) as image:
        for number in numbers:
            if number >= getattr(image, "n_frames", 1):
                return
            image.seek(number)
            image.load()
            yield image.copy()


def _write_gif(path: Path, frames: np.ndarray, rate: float) -> None:
    from PIL import Image

    pictures = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in frames]
    delay = max(_GIF_TICK * 2, round(1000.0 / rate / _GIF_TICK) * _GIF_TICK)  # viewers slow shorter ones down
    rest = pictures[1:]
    pictures[0].save(path, format="GIF", save_all=True, append_images=rest, duration=delay, loop=0, disposal=1)


# -- video files, by PyAV -------------------------------------------------------------------------


def _has_av() -> bool:
    from importlib.util import find_spec

    return find_spec("av") is not None


def _has_fallback() -> bool:
    from importlib.util import find_spec

    return find_spec("imageio") is not None and find_spec("imageio_ffmpeg") is not None


def _video_header(path: Path, name: str) -> MovieHeader:
    import av

    with av.open(str(path)) as container:
        stream = _first_stream(container, name)
        times = sorted(p.pts for p in container.demux(stream) if p.size and p.pts is not None and not p.is_discard)
        if not times:
            raise UnreadablePicture(name, "it holds no frames")
        context = stream.codec_context
        pixel = context.format
        turned = _rotation(path)
        sideways = turned % 180 == 90
        steps = [after - before for before, after in pairwise(times)]
        tick = float(stream.time_base or 0)
        span = (times[-1] - times[0]) * tick
        return MovieHeader(
            frames=len(times),
            height=context.width if sideways else context.height,
            width=context.height if sideways else context.width,
            rate=(len(times) - 1) / span if span > 0 else float(stream.average_rate or 0),
            colour=pixel is None or not pixel.name.startswith("gray"),
            alpha=pixel is not None and any(part.is_alpha for part in pixel.components),
            variable=bool(steps) and max(steps) > _LEAST_SPREAD * max(1, min(steps)),
            turned=turned,
            times=tuple(times),
        )


def _first_stream(container: Any, name: str) -> Any:
    if not container.streams.video:
        raise UnreadablePicture(name, "it holds no video")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1  # items are read by several threads already
    return stream


def _rotation(path: Path) -> int:
    """Return the turn that the first frame asks for, in degrees counter-clockwise."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for frame in container.decode(stream):
            return round(getattr(frame, "rotation", 0) / 90.0) * 90 % 360
    return 0


def _video_frames(path: Path, header: MovieHeader, numbers: Sequence[int]) -> Iterator[Image.Image]:
    import av

    wanted = [header.times[number] for number in numbers if number < len(header.times)]
    if not wanted:
        return
    with av.open(str(path)) as container:
        stream = _first_stream(container, path.name)
        if wanted[0] > header.times[0]:
            container.seek(wanted[0], stream=stream, backward=True)
        left = iter(wanted)
        next_time = next(left)
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts < next_time:
                continue
            if frame.pts > next_time:
                return  # a frame that the index knows was not decoded; the caller misses it
            picture = frame.to_image()
            yield picture.rotate(header.turned, expand=True) if header.turned else picture
            following = next(left, None)
            if following is None:
                return
            next_time = following


def _write_mp4(path: Path, frames: np.ndarray, rate: float) -> None:
    from fractions import Fraction

    if not _has_av():
        raise MissingReader("writing .mp4 needs PyAV: pip install 'undiffuse[data]'; or write a .gif (--format gif).")
    import av

    # 4:2:0 needs even sides: the last row and column are doubled where they are odd.
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    frames = np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "12"}
        else:
            stream.bit_rate = 8_000_000
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        container.mux(stream.encode())


# -- video files, by imageio-ffmpeg ---------------------------------------------------------------


def _require_reader(path: Path) -> None:
    """Refuse a video where nothing installed reads it."""
    if path.suffix.lower() not in GIF_SUFFIXES and not _has_av() and not _has_fallback():
        raise MissingReader(f"reading the video {path} needs PyAV or imageio-ffmpeg: pip install 'undiffuse[data]'.")


def _fallback_reader(path: Path) -> Any:
    import imageio

    return imageio.get_reader(str(path), format="FFMPEG")  # type: ignore[arg-type]


def _fallback_header(path: Path, name: str) -> MovieHeader:
    with _fallback_reader(path) as reader:
        facts = reader.get_meta_data()
        frames = int(reader.count_frames())
        if frames < 1:
            raise UnreadablePicture(name, "it holds no frames")
        width, height = facts["size"]
        return MovieHeader(frames=frames, height=height, width=width, rate=float(facts.get("fps", 0)))


def _fallback_frames(path: Path, numbers: Sequence[int]) -> Iterator[Image.Image]:
    from PIL import Image

    wanted = set(numbers)
    with _fallback_reader(path) as reader:
        for number, pixels in enumerate(reader):
            if number in wanted:
                yield Image.fromarray(np.asarray(pixels))
            if number >= numbers[-1]:
                return
