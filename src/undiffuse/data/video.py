"""Video as clips of equal length: from video files, GIFs, and folders of numbered pictures.

An item is (video, first frame): `data.frames` frames, every `data.stride`-th, brought to one size. A look through all
files counts their frames; what fits in memory is decoded once, the rest clip by clip while training.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from undiffuse.data.clips import (
    Files,
    Windows,
    attempt,
    cut_windows,
    file_classes,
    find_files,
    gather,
    keeps_on_disk,
    passed_over,
    refuse_other_kind,
)
from undiffuse.data.dataset import IndexedDataset, refuse_bad
from undiffuse.data.lazy import Item
from undiffuse.data.options import DataOptions
from undiffuse.errors import DataError
from undiffuse.images.fit import Resize, fit
from undiffuse.images.movies import MOVIE_SUFFIXES, MovieHeader, read_frames, read_movie_header
from undiffuse.images.read import PICTURE_SUFFIXES, Channels, UnreadablePicture, load_picture, read_header
from undiffuse.spec import DataSpec

if TYPE_CHECKING:
    from PIL import Image

_LARGEST_AUTO_SIDE = 64  # pixels, as for pictures
_CHANNELS: dict[int, Channels] = {1: "grey", 3: "rgb", 4: "rgba"}
_COUNTS = {name: count for count, name in _CHANNELS.items()}
_OPTIONS = ("layout", "size", "channels", "resize", "flip", "lazy", "frames", "stride", "overlap")
_EXPECTED = "videos (.mp4, .webm, .mov, .mkv, .avi), .gif files, or folders of numbered pictures"


@dataclass(frozen=True)
class ClipSource:
    """Clips of videos, as a `Source`.

    Args:
        files: Where the videos are.
        names: The videos.
        headers: What is known of each.
        windows: The clips.
        shape: Of an item: (F, C, H, W).
        stride: Frames from one to the next in a clip.
        resize: How other proportions are brought to the size.
    """

    files: Files
    names: Sequence[str]
    headers: Sequence[MovieHeader]
    windows: Windows
    shape: tuple[int, int, int, int]
    stride: int
    resize: Resize

    def __len__(self) -> int:
        return len(self.windows)

    def read(self, row: int) -> Item:
        """Decode one clip: "x", uint8 (F, C, H, W)."""
        first = int(self.windows.first[row])
        numbers = range(first, first + self.shape[0] * self.stride, self.stride)
        return {"x": np.stack(list(self._decode(int(self.windows.file[row]), numbers)))}

    def all(self) -> tuple[np.ndarray, dict[str, str]]:
        """Decode every video once; return the clips (N, F, C, H, W), and the reasons of videos that broke."""
        clips: np.ndarray = np.zeros((len(self), *self.shape), dtype=np.uint8)
        rows_of: dict[int, list[int]] = {}
        for row, file in enumerate(self.windows.file.tolist()):
            rows_of.setdefault(file, []).append(row)
        numbers = {self.names[file]: file for file in rows_of}

        def decode(name: str) -> None:
            rows = rows_of[numbers[name]]
            wanted: dict[int, list[tuple[int, int]]] = {}
            for row in rows:
                for place in range(self.shape[0]):
                    wanted.setdefault(int(self.windows.first[row]) + place * self.stride, []).append((row, place))
            order = sorted(wanted)
            for number, pixels in zip(order, self._decode(numbers[name], order), strict=True):
                for row, place in wanted[number]:
                    clips[row, place] = pixels

        return clips, attempt(decode, numbers)[1]

    def _decode(self, file: int, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield the pixels (C, H, W) of the frames of these numbers, which rise."""
        channels = _CHANNELS[self.shape[1]]
        path, name = self.files.path(self.names[file]), self.names[file]
        read = _folder_frames if path.is_dir() else read_frames
        for frame in read(path, name, self.headers[file], numbers, channels):
            pixels = np.asarray(fit(frame, self.shape[2], self.shape[3], self.resize))
            yield (pixels[..., None] if pixels.ndim == 2 else pixels).transpose(2, 0, 1)


def open_videos(path: Path, options: DataOptions, spec: DataSpec | None = None) -> IndexedDataset:
    """Read clips from the videos in a folder, or from one video.

    Args:
        path: A video, a folder of them (folders in it are classes), or of folders of numbered pictures.
        options: Frames, stride, overlap, size, channels, resize policy, limits.
        spec: Units of a model: clips are brought to its shape and its classes.

    Raises:
        DataError: No videos, too many unreadable ones, all shorter than a clip, or not the model's kind of data.
    """
    options.refuse_others("video", _OPTIONS)
    files = _find(path)
    refuse_other_kind(spec, "video", files.where)
    frames = spec.shape[0] if spec else options.frames
    if options.overlap >= frames:
        raise DataError(f"data.overlap={options.overlap} leaves nothing new in clips of {frames} frames; lower it.")
    headers, unread = attempt(lambda name: _look(files, name), files.names)
    refuse_bad(unread, len(files.names), options.max_bad, files.where)
    names = tuple(headers)
    lengths = [headers[name].frames for name in names]
    span = (frames - 1) * options.stride + 1
    windows = cut_windows(lengths, span, (frames - options.overlap) * options.stride)
    if not len(windows):
        raise DataError(
            f"none of {len(names)} video(s) in {files.where} has the {span} frames of a clip (the longest has "
            f"{max(lengths)}); lower data.frames or data.stride."
        )
    windows = windows.limited(options.limit)
    known = [headers[name] for name in names]
    shape = spec.shape if spec else (frames, *_choose_size(known, options))
    if shape[1] not in _CHANNELS:
        raise DataError(f"the model's videos have {shape[1]} channels; files give 1, 3 or 4. Give a .npy array.")
    source = ClipSource(files, names, known, windows, shape, options.stride, options.resize)  # type: ignore[arg-type]
    return _assemble(source, unread, options, spec)


def _assemble(
    source: ClipSource, unread: dict[str, str], options: DataOptions, spec: DataSpec | None
) -> IndexedDataset:
    files, windows = source.files, source.windows
    row_names = [source.names[file] for file in windows.file.tolist()]
    labels, classes, notes = file_classes(source.names, files.where, spec)
    needed = len(source) * int(np.prod(source.shape))
    rate = statistics.median(header.rate for header in source.headers) / source.stride
    stored = DataSpec(kind="video", shape=source.shape, range=(0.0, 255.0), classes=classes, rate=round(rate, 3))
    common = {
        "spec": spec or stored,
        "stored": stored,
        "labels": None if labels is None else labels[windows.file],
        "notes": (*_notes(source, options), *notes, *passed_over(files)),
    }
    return gather(
        source,
        source.all,
        row_names,
        common,
        lazy=keeps_on_disk(needed, options, f"decoding {len(source)} clip(s) of shape {source.shape}"),
        options=options,
        unread=unread,
        files=files,
    )


def _choose_size(headers: Sequence[MovieHeader], options: DataOptions) -> tuple[int, int, int]:
    """Return channels, height and width: a common small size, else a square of the median short side, 64 at most."""
    channels = options.channels
    if channels == "auto":
        channels = "rgb" if any(header.colour for header in headers) else "grey"
    if options.size:
        return _COUNTS[channels], options.size, options.size
    sizes = {(header.height, header.width) for header in headers}
    if len(sizes) == 1 and max(next(iter(sizes))) <= _LARGEST_AUTO_SIDE:
        return (_COUNTS[channels], *next(iter(sizes)))
    side = min(_LARGEST_AUTO_SIDE, int(statistics.median_low(min(h.height, h.width) for h in headers)))
    return _COUNTS[channels], side, side


def _notes(source: ClipSource, options: DataOptions) -> Iterator[str]:
    headers, windows = source.headers, source.windows
    every = f", every {source.stride} frames" if source.stride > 1 else ""
    rate = statistics.median(header.rate for header in headers)
    lasting = f" ({source.shape[0] * source.stride / rate:.3g} s)" if rate else ""
    yield f"clips of {source.shape[0]} frames{every}{lasting} from {len(headers)} video(s)"
    if windows.short:
        shown = ", ".join(source.names[file] for file in windows.short[:5])
        yield f"warning: {len(windows.short)} video(s) are shorter than one clip and were left out: {shown}"
    rates = {round(header.rate, 1) for header in headers}
    if len(rates) > 1:
        yield f"warning: frame rates differ, {min(rates):g} to {max(rates):g} per second; frames are taken by number"
    variable = sum(header.variable for header in headers)
    if variable:
        yield f"warning: {variable} video(s) have a variable frame rate; frames are taken by number, not by time"
    turned = sum(header.turned != 0 for header in headers)
    if turned:
        yield f"{turned} video(s) were turned upright as they ask"
    if any(header.alpha for header in headers) and source.shape[1] != 4:
        yield "transparent pixels were laid over white; data.channels=rgba keeps them"
    sizes = {(header.height, header.width) for header in headers}
    if sizes != {source.shape[2:]}:
        yield f"frames of {len(sizes)} size(s) were brought to {source.shape[2]} x {source.shape[3]} by {source.resize}"
    if options.overlap:
        yield "warning: neighbouring clips share frames, and so may clips to train on and clips held out"


def _look(files: Files, name: str) -> MovieHeader:
    path = files.path(name)
    return _folder_header(path, name) if path.is_dir() else read_movie_header(path, name)


def _find(path: Path) -> Files:
    """Return video files, else the folders that hold pictures and no folders."""
    if path.is_file():
        if path.suffix.lower() not in MOVIE_SUFFIXES:
            raise DataError(f"{path} is no video; expected {_EXPECTED}.")
        return Files(str(path), path.parent, (path.name,))
    folders = sorted({found.parent for found in path.rglob("*") if _is_frame(found)})
    movies = [found for found in path.rglob("*") if found.suffix.lower() in MOVIE_SUFFIXES and found.is_file()]
    if movies or not folders:
        return find_files(path, MOVIE_SUFFIXES, _EXPECTED)
    if folders == [path]:
        return Files(f"the folder {path}", path.parent, (path.name,))
    names = tuple(folder.relative_to(path).as_posix() for folder in folders if folder != path)
    loose = tuple(found.name for found in path.iterdir() if _is_frame(found))
    return Files(f"the folder {path}", path, names, loose)


# -- folders of frames ----------------------------------------------------------------------------


def _is_frame(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES - MOVIE_SUFFIXES and not path.name.startswith(".")


def _frame_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder in the order of the numbers in their names: 2.png before 10.png."""

    def order(path: Path) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"(\d+)", path.stem)
        return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts], path.name

    return sorted((path for path in folder.iterdir() if _is_frame(path)), key=order)


def _folder_header(folder: Path, name: str) -> MovieHeader:
    files = _frame_files(folder)
    with open(files[0], "rb") as file:
        first = read_header(file, f"{name}/{files[0].name}")
    return MovieHeader(
        frames=len(files), height=first.height, width=first.width, rate=0.0, colour=first.colour, alpha=first.alpha
    )


def _folder_frames(
    folder: Path, name: str, header: MovieHeader, numbers: Sequence[int], channels: Channels
) -> Iterator[Image.Image]:
    files = _frame_files(folder)
    for number in numbers:
        if number >= len(files):
            raise UnreadablePicture(name, f"picture {number} is missing")
        with open(files[number], "rb") as file:
            frame = load_picture(file, f"{name}/{files[number].name}", channels)
        if frame.mode == "F":
            raise UnreadablePicture(name, "frames of 16 bits are not read; save them with 8")
        yield frame
