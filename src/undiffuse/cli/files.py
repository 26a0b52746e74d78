"""Which files a command works on: those that are named, and those of folders; and names for what it makes of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from undiffuse.spec import DataSpec


def find_files(paths: Sequence[Path], suffixes: Collection[str], what: str) -> list[tuple[Path, str]]:
    """Return files in order, each with a name: its place in its folder without the suffix; see `different`.

    Args:
        paths: Files, taken as they are, and folders, searched through for files that end in `suffixes`; photographs,
            and photographs/chelsea, stand for those of scikit-image.
        suffixes: In lower case.
        what: What is looked for, for people.

    Raises:
        DataError: A path is missing, or a folder has nothing of the kind.
    """
    from undiffuse.images.photographs import on_shelf, photograph

    found: list[tuple[Path, str]] = []
    for path in paths:
        if shelf := on_shelf(path):
            found.extend((photograph(name), name) for name in shelf)
            continue
        if not path.exists():
            raise DataError(f"there is no file or folder {path}.")
        if not path.is_dir():
            found.append((path, path.stem))
            continue
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in suffixes)
        if not files:
            raise DataError(f"the folder {path} has no {what}.")
        found.extend((file, str(file.relative_to(path).with_suffix(""))) for file in files)
    return found


def different(names: Sequence[str]) -> list[str]:
    """Return names of which no two are equal, so that no result overwrites another: the second x is x-2."""
    taken, found = set(names), []
    seen: set[str] = set()
    for name in names:
        other, count = name, 1
        while other in seen or (count > 1 and other in taken):
            count += 1
            other = f"{name}-{count}"
        seen.add(other)
        found.append(other)
    return found


def read_picture(path: Path, spec: DataSpec) -> Tensor:
    """Return a picture as it is, of its own size, with the channels and in the units of a model's data, (C, H, W)."""
    import torch

    from undiffuse.images import read_image
    from undiffuse.images.photographs import on_shelf, photograph

    for name in on_shelf(path):
        path = photograph(name)
    channels: Any = {1: "grey", 3: "rgb", 4: "rgba"}.get(spec.channels, "auto")
    low, high = spec.range or (-1.0, 1.0)
    return torch.from_numpy(read_image(path, channels)).permute(2, 0, 1) * ((high - low) / 255.0) + low
