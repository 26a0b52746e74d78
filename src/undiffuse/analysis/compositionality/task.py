"""A task of matching: items of pictures and texts, which belong together, and where the pictures lie.

On disk a task is a folder with `task.json` and the pictures that it names:

    {"name": "swap", "group": "order", "items": [
      {"type": "image_to_text", "images": ["0.png"], "texts": ["a 3 left of a 5", "a 5 left of a 3"], "answer": 0}]}

A text is a caption or the name of a class, or conditions by name such as {"left": "3", "right": "5"}. A picture is a
file name, or {"file": name, "box": [left, top, right, bottom]} in pixels; a `.npy` file holds one item in data units.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import Tensor

from undiffuse.errors import DataError
from undiffuse.files import write_whole
from undiffuse.words import did_you_mean

TYPES = ("image_to_text", "text_to_image", "pair", "bias")
GROUPS = ("object", "attribute", "position", "counting", "order", "complex")
FILE = "task.json"
Text = str | Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture on disk.

    Args:
        file: Its path, relative to the folder of the task, or absolute.
        box: (left, top, right, bottom) in pixels, where only a part of it counts.

    Raises:
        ValueError: A box without an inside.
    """

    file: str
    box: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.box is not None and not _has_inside(self.box):
            raise ValueError(f"the box {self.box} of {self.file} is not left, top, right and bottom in whole pixels.")

    def to_json(self) -> Any:
        """Return it as the task's file has it."""
        return self.file if self.box is None else {"file": self.file, "box": list(self.box)}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question of a task.

    Args:
        type: What is asked:

            image_to_text   1 picture, which of the texts belongs to it
            text_to_image   1 text, which of the pictures belongs to it
            pair            2 pictures and 2 texts; picture i belongs to text i
            bias            pictures of two or more groups, texts of two sets: do the groups differ in what fits them?

        images: Pictures on disk, or rows of the task's own `data`.
        texts: The texts.
        answer: Number of the text, or of the picture, that is right.
        image_groups: Of "bias": the group of each picture, from 0.
        text_groups: Of "bias": the set of each text, 0 or 1.
        tag: A finer name of what is asked; kept, not read.

    Raises:
        ValueError: Numbers of pictures and texts that do not fit the type, an answer out of range, groups missing.
    """

    images: tuple[Picture | int, ...]
    texts: tuple[Text, ...]
    type: str = "image_to_text"
    answer: int = 0
    image_groups: tuple[int, ...] = ()
    text_groups: tuple[int, ...] = ()
    tag: str = ""

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise ValueError(f"type={self.type!r} is unknown; use {', '.join(TYPES)}.{did_you_mean(self.type, TYPES)}")
        images, texts = len(self.images), len(self.texts)
        expected = {
            "image_to_text": (images == 1 and texts >= 2, "1 picture and 2 texts or more"),
            "text_to_image": (texts == 1 and images >= 2, "1 text and 2 pictures or more"),
            "pair": (images == texts == 2, "2 pictures and 2 texts"),
            "bias": (images >= 2 and texts >= 2, "2 pictures and 2 texts, or more"),
        }
        strange = next((text for text in self.texts if not isinstance(text, str | Mapping)), None)
        if strange is not None:
            raise ValueError(f"{strange!r} is no text; a text is a string, or conditions by name.")
        fits, words = expected[self.type]
        if not fits:
            raise ValueError(
                f"an item of type {self.type} has {images} picture(s) and {texts} text(s); it needs {words}."
            )
        if self.type != "bias" and not (isinstance(self.answer, int) and 0 <= self.answer < self.candidates):
            raise ValueError(
                f"answer={self.answer!r} is out of range; the item has {self.candidates} candidates, from 0."
            )
        if self.type == "bias":
            self._check_groups()

    def _check_groups(self) -> None:
        fits = len(self.image_groups) == len(self.images) and len(self.text_groups) == len(self.texts)
        if not fits or len(set(self.image_groups)) < 2 or set(self.text_groups) != {0, 1}:
            raise ValueError(
                f"a bias item has image_groups={self.image_groups} and text_groups={self.text_groups}; it needs one "
                "number per picture, of two groups or more, and one per text, 0 or 1."
            )

    @property
    def candidates(self) -> int:
        """Among how many is chosen: pictures of "text_to_image", else texts."""
        return len(self.images if self.type == "text_to_image" else self.texts)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, without what is left at its default."""
        images = [image.to_json() if isinstance(image, Picture) else image for image in self.images]
        found: dict[str, Any] = {"type": self.type, "images": images, "texts": list(self.texts), "answer": self.answer}
        more = {"image_groups": list(self.image_groups), "text_groups": list(self.text_groups), "tag": self.tag}
        return found | {key: value for key, value in more.items() if value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Item:
        """Read what `to_json` returned.

        Raises:
            ValueError: A field is missing, unknown or of another kind.
        """
        known = {"type", "images", "texts", "answer", "image_groups", "text_groups", "tag"}
        if not isinstance(fields, Mapping) or not {"images", "texts"} <= set(fields) <= known:
            raise ValueError(f"an item has {sorted(fields)}; it needs images and texts, and may have {sorted(known)}.")
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        values["images"] = tuple(_picture(image) for image in fields["images"])
        return cls(**values)


def _has_inside(box: Sequence[Any]) -> bool:
    return len(box) == 4 and all(isinstance(edge, int) for edge in box) and box[0] < box[2] and box[1] < box[3]


def _picture(given: Any) -> Picture | int:
    if isinstance(given, int | str):
        return given if isinstance(given, int) else Picture(given)
    if not isinstance(given, Mapping) or not {"file"} <= set(given) <= {"file", "box"}:
        raise ValueError(f"{given!r} is no picture; expected a file name, or an object with file and box.")
    return Picture(given["file"], tuple(given["box"]) if given.get("box") else None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Items of one kind of question.

    Args:
        name: Its name.
        items: The questions, at least one.
        group: What is asked about, of `GROUPS`.
        folder: Where the pictures lie.
        data: Pictures (n, *shape) in data units, for items that name rows instead of files.

    Raises:
        ValueError: No items, items of several types, an unknown group, or a row that `data` lacks.
    """

    name: str
    items: tuple[Item, ...]
    group: str = "complex"
    folder: Path | None = None
    data: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.items:
            raise ValueError(f"task {self.name} has no items.")
        types = sorted({item.type for item in self.items})
        if len(types) > 1:
            raise ValueError(f"task {self.name} mixes items of types {', '.join(types)}; make a task of each.")
        if self.group not in GROUPS:
            raise ValueError(f"task {self.name} has group={self.group!r}; use {', '.join(GROUPS)}.")
        rows = 0 if self.data is None else len(self.data)
        for number, item in enumerate(self.items):
            outside = [image for image in item.images if isinstance(image, int) and not 0 <= image < rows]
            if outside:
                raise ValueError(
                    f"item {number} of {self.name} names picture {outside[0]}; there are {rows} in its data."
                )

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    @property
    def type(self) -> str:
        """The type of its items."""
        return self.items[0].type

    @property
    def shares_candidates(self) -> bool:
        """Whether all items choose among the same texts, as classification does."""
        return self.type == "image_to_text" and all(item.texts == self.items[0].texts for item in self.items)

    @property
    def answers(self) -> list[int]:
        """The right candidate of each item."""
        return [item.answer for item in self.items]

    def take(self, positions: Sequence[int]) -> Task:
        """Return the items at some positions."""
        return replace(self, items=tuple(self.items[position] for position in positions))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; pictures in memory are not part of it."""
        return {"name": self.name, "group": self.group, "items": [item.to_json() for item in self.items]}


def write_task(task: Task, folder: Path) -> Path:
    """Write `task.json` into `folder`, whole or not at all, and return it. Pictures in memory go to `.npy` files.

    Raises:
        OSError: The folder or a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = sorted({image for item in task.items for image in item.images if isinstance(image, int)})
    names = {row: f"{row:05d}.npy" for row in rows}
    for row in rows:
        assert task.data is not None
        array = task.data[row].cpu().numpy()
        write_whole(folder / names[row], partial(save_array, array=array))
    base = task.folder

    def on_disk(image: Picture | int) -> Picture:
        if isinstance(image, int):
            return Picture(names[image])
        if base is None or base.resolve() == folder.resolve() or Path(image.file).is_absolute():
            return image
        place, above = (base / image.file).resolve(), folder.resolve().parent
        beside = place.is_relative_to(above)  # such as a Self-Bench, which may be moved as a whole
        return replace(image, file=f"../{place.relative_to(above).as_posix()}" if beside else str(place))

    items = tuple(replace(item, images=tuple(map(on_disk, item.images))) for item in task.items)
    text = json.dumps(replace(task, items=items, data=None).to_json(), indent=1) + "\n"
    write_whole(folder / FILE, lambda part: part.write_text(text, encoding="utf-8"))
    return folder / FILE


def text_key(text: Text) -> str:
    """Return what tells a text from others, whatever the order of its conditions."""
    return text if isinstance(text, str) else json.dumps(dict(text), sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def task_digest(task: Task) -> str:
    """Return a hash of what a task asks: items, texts, and the content of the pictures, wherever they lie."""
    found, known = blake2b(digest_size=16), dict[Any, str]()
    for item in task.items:
        for image in item.images:
            name = image.file if isinstance(image, Picture) else image
            known[name] = known.get(name) or _content(task, name)
        shown = [
            (known[image.file], image.box) if isinstance(image, Picture) else (known[image], None)
            for image in item.images
        ]
        groups = (item.image_groups, item.text_groups)
        asked = (item.type, shown, [text_key(text) for text in item.texts], item.answer, groups)
        found.update(json.dumps(asked).encode())
    return found.hexdigest()


def _content(task: Task, name: str | int) -> str:
    if isinstance(name, int):
        assert task.data is not None
        return blake2b(task.data[name].cpu().double().numpy().tobytes(), digest_size=16).hexdigest()
    path = Path(name) if task.folder is None else task.folder / name
    return blake2b(path.read_bytes(), digest_size=16).hexdigest() if path.is_file() else name


def save_array(path: Path, array: Any) -> None:
    """Write an array as `.npy` under exactly this name."""
    import numpy as np

    with path.open("wb") as file:  # given a name, numpy would append its own suffix
        np.save(file, array)


def read_task(path: str | Path) -> Task:
    """Read a task: a folder with `task.json`, or such a file.

    Raises:
        DataError: Nothing there, or no task; the message says where.
    """
    target = Path(path)
    file = target / FILE if target.is_dir() else target
    if not file.is_file():
        raise DataError(f"there is no task at {path}; expected a folder with {FILE}, or such a file.")
    found = read_json(file)
    try:
        if not isinstance(found, dict) or not isinstance(found.get("items"), list):
            raise ValueError("it needs a name and a list of items")
        name, group = str(found.get("name") or file.parent.name), str(found.get("group", "complex"))
        items = [_numbered(number, fields) for number, fields in enumerate(found["items"])]
        return Task(name=name, items=tuple(items), group=group, folder=file.parent)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} holds no task: {error}") from error


def _numbered(number: int, fields: Any) -> Item:
    try:
        return Item.from_json(fields)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"item {number}: {error}") from error


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: It cannot be read, or is no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
