"""Photographs to try things on: the public-domain ones that scikit-image brings along, found, not copied."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from undiffuse.errors import DataError

PHOTOGRAPHS = {
    "astronaut": "png",
    "brick": "png",
    "camera": "png",
    "chelsea": "png",
    "coffee": "png",
    "coins": "png",
    "grass": "png",
    "gravel": "png",
    "hubble_deep_field": "jpg",
    "moon": "png",
    "rocket": "jpg",
}
"""Name -> suffix; 427 to 1000 pixels wide but for coins (384), five of them in colour."""

SHELF = "photographs"
"""What stands for the folder of them, as in photographs/chelsea."""


def photograph(name: str) -> Path:
    """Return the file of a photograph in `PHOTOGRAPHS`, such as chelsea, a cat.

    Raises:
        DataError: The name is unknown, or scikit-image is not installed or holds no such file.
    """
    if name not in PHOTOGRAPHS:
        near = get_close_matches(name, PHOTOGRAPHS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise DataError(f"there is no photograph {name!r}; {hint}There are {', '.join(PHOTOGRAPHS)}.")
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise DataError("the photographs come with scikit-image; install it with: pip install scikit-image")
    file = Path(package.origin).parent / "data" / f"{name}.{PHOTOGRAPHS[name]}"
    if not file.is_file():
        raise DataError(f"this scikit-image has no {file.name}; install another: pip install -U scikit-image")
    return file


def on_shelf(path: Path) -> list[str]:
    """Return the names that a path means: all for photographs, one for photographs/chelsea; none for other paths.

    A file or folder that is really there is never taken for the shelf.
    """
    if path.parts[:1] != (SHELF,) or len(path.parts) > 2 or path.exists() or Path(SHELF).exists():
        return []
    return list(PHOTOGRAPHS) if len(path.parts) == 1 else [path.stem]
