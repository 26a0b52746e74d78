"""Which reader suits a file or folder of videos, volumes or signals."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from undiffuse.data.clips import _suffix
from undiffuse.data.dataset import IndexedDataset
from undiffuse.data.listing import _walk
from undiffuse.data.options import DataOptions
from undiffuse.data.signals import SIGNAL_SUFFIXES, WAV_SUFFIXES, open_signals
from undiffuse.data.video import open_videos
from undiffuse.data.volumes import NIFTI_SUFFIXES, open_volumes
from undiffuse.errors import DataError
from undiffuse.images.movies import VIDEO_SUFFIXES
from undiffuse.images.read import PICTURE_SUFFIXES
from undiffuse.spec import DataSpec

Media = Literal["video", "volume", "signal"]
_READERS = {"video": open_videos, "volume": open_volumes, "signal": open_signals}
_TELLING: tuple[tuple[Media, frozenset[str]], ...] = (
    ("video", VIDEO_SUFFIXES),
    ("volume", NIFTI_SUFFIXES),
    ("signal", WAV_SUFFIXES),
)
_ARRAYS = frozenset((".npy", ".npz", ".csv", ".tsv"))  # one file of which holds many items
MEDIA_SUFFIXES = frozenset().union(*(suffixes for _, suffixes in _TELLING))


def open_media(path: Path, options: DataOptions, spec: DataSpec | None = None) -> IndexedDataset | None:
    """Read what a path holds as video, volumes or signals; None where it holds something else.

    `data.layout` decides; without it, the suffix of a file, and in a folder without pictures those of its files.

    Raises:
        DataError: See the readers; or a folder of numbers without `data.layout`.
    """
    kind = _kind(path, options.layout)
    return None if kind is None else _READERS[kind](path, options, spec)


def _kind(path: Path, layout: str) -> Media | None:
    if path.is_file():
        if _suffix(path.name) in _ARRAYS:
            return None
        told = layout if layout in _READERS and _suffix(path.name) != ".zip" else None
        return told or next((kind for kind, own in _TELLING if _suffix(path.name) in own), None)  # type: ignore[return-value]
    if layout in _READERS:
        return layout  # type: ignore[return-value]
    return _kind_of_folder(path) if path.is_dir() and layout == "auto" else None


def _kind_of_folder(folder: Path) -> Media | None:
    """Return what the files of a folder without pictures are."""
    seen: set[str] = set()
    for file in _walk(folder):
        suffix = _suffix(file.name)
        if suffix in PICTURE_SUFFIXES:
            return None
        seen.add(suffix)
    found = [kind for kind, own in _TELLING if seen & own]
    if len(found) > 1:
        raise DataError(f"the folder {folder} holds {' and '.join(found)} files; say which by data.layout.")
    if not found and seen and seen <= SIGNAL_SUFFIXES:
        raise DataError(
            f"the folder {folder} holds {', '.join(sorted(seen))} files; say what they are by data.layout=signal or "
            "volume."
        )
    return found[0] if found else None
