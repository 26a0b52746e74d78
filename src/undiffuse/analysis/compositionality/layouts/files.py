"""What the readers of published layouts share: finding files, and errors that tell the layout."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from undiffuse.analysis.compositionality.task import Item, Picture, Task, Text, read_json
from undiffuse.errors import DataError


class Missing(DataError):
    """A file of a layout is not there; `open_layout` adds what the layout is."""


def need(folder: Path, *names: str) -> Path:
    """Return the first of some files or folders that is there.

    Raises:
        Missing: None is.
    """
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise Missing(f"{folder} has no {' or '.join(names)}")


def rows(path: Path) -> list[Any]:
    """Return the rows of a .json list, a .jsonl file or a .csv file.

    Raises:
        DataError: It is something else.
    """
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    found = read_json(path)
    if isinstance(found, list):
        return found
    if isinstance(found, dict):
        return list(found.values())
    raise DataError(f"{path} holds a {type(found).__name__}; expected a list or an object.")


def picture(
    folder: Path, name: str, places: Sequence[str] = ("images",), box: Sequence[float] | None = None
) -> Picture:
    """Return a picture in the first of some places that holds it; in the first of all, where none does."""
    found = [Path(place, name) for place in places if (folder / place / name).exists()]
    file = found[0] if found else Path(places[0], name)
    corners = None if box is None else (round(box[0]), round(box[1]), round(box[2]), round(box[3]))
    return Picture(file.as_posix(), corners)


def base(name: str) -> str:
    """Return the file name at the end of a path or an address."""
    return name.rstrip("/").split("/")[-1]


def choice(image: Picture, texts: Sequence[Text], answer: int = 0, tag: str = "") -> Item:
    """Return an item of one picture and several texts."""
    return Item(images=(image,), texts=tuple(texts), answer=answer, tag=tag)


def pair(images: tuple[Picture, Picture], texts: tuple[Text, Text], tag: str = "") -> Item:
    """Return an item of two pictures and two texts."""
    return Item(images=images, texts=texts, type="pair", tag=tag)


def task(name: str, items: Iterable[Item], group: str, folder: Path) -> Task:
    """Return a task of a folder."""
    return Task(name=name, items=tuple(items), group=group, folder=folder)


def by_key(entries: Iterable[Mapping[str, Any]], key: str) -> dict[str, list[Mapping[str, Any]]]:
    """Return entries by the value of a field, in the order of their first appearance."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        found.setdefault(str(entry[key]), []).append(entry)
    return found


def tell_left_out(name: str, count: int, total: int, why: str) -> None:
    """Warn of items that a task leaves out.

    Raises:
        DataError: None are left.
    """
    if count == total:
        raise DataError(f"{name}: all {total} items are left out: {why}.")
    if count:
        warnings.warn(f"{name}: {count} of {total} items are left out: {why}", stacklevel=3)
