"""Pairs of pictures with points that correspond: SPair-71k, PF-Pascal and TSS, read from their own folders.

Points are (x, y) in pixels of the original pictures, float64.
"""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from undiffuse.errors import DataError

Points = NDArray[np.float64]

LAYOUTS = {
    "spair": "SPair-71k/PairAnnotation/SPLIT/*.json, JPEGImages/CATEGORY/*.jpg (and Layout/large/SPLIT.txt)",
    "pf-pascal": "PF-dataset-PASCAL/JPEGImages/*.jpg, SPLIT_pairs.csv or SPLIT_pairs_pf_pascal.csv with the columns "
    "source_image, target_image, class, XA, YA, XB, YB (without the last four: Annotations/CATEGORY/*.mat)",
    "tss": "TSS_CVPR2016/GROUP/PAIR/image1.png, image2.png, flow1.flo, flow2.flo, mask1.png, mask2.png",
}
"""Data set -> how its folder looks."""
_PASCAL = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]
_FLO_MAGIC = 202021.25
_FLO_UNKNOWN = 1e9  # larger flow is none


@dataclass(frozen=True, kw_only=True)
class KeypointPair:
    """Two pictures with labelled points.

    Args:
        name: Of the pair.
        src: File of the source.
        dst: File of the target.
        category: What both show.
        src_points: (n, 2).
        dst_points: (n, 2); point i is the same part in both.
        dst_box: Left, top, right, bottom of the object in the target; None where unknown.
    """

    name: str
    src: Path
    dst: Path
    category: str
    src_points: Points
    dst_points: Points
    dst_box: tuple[float, float, float, float] | None = None

    dense: ClassVar[bool] = False

    def truth(self) -> tuple[Points, Points]:
        """Return the points that are visible in both pictures, in the source and in the target, (n, 2) each."""
        seen = np.isfinite(self.src_points).all(axis=1) & np.isfinite(self.dst_points).all(axis=1)
        return self.src_points[seen], self.dst_points[seen]


@dataclass(frozen=True, kw_only=True)
class FlowPair:
    """Two pictures of which it is known where every pixel of an object goes.

    Args:
        name: Of the pair, with its direction.
        src: File of the source.
        dst: File of the target.
        category: Group of the data set.
        flow: Its .flo file, from the source to the target.
        mask: The object in the source, a picture.
    """

    name: str
    src: Path
    dst: Path
    category: str
    flow: Path
    mask: Path

    dense: ClassVar[bool] = True
    dst_box: ClassVar[None] = None

    def truth(self) -> tuple[Points, Points]:
        """Return the object's pixels whose flow is known, and where they go, (n, 2) each.

        Raises:
            DataError: A file cannot be read, or flow and mask have different sizes.
        """
        from undiffuse.images.read import read_image

        flow, mask = read_flow(self.flow), read_image(self.mask, "grey")[..., 0] > 127.5
        if flow.shape[:2] != mask.shape:
            raise DataError(f"{self.flow} is of {flow.shape[:2]} pixels and {self.mask} of {mask.shape}.")
        rows, columns = np.nonzero(mask & (np.abs(flow) < _FLO_UNKNOWN).all(axis=2))
        points = np.stack([columns, rows], axis=1).astype(np.float64)
        return points, points + flow[rows, columns]


Pair = KeypointPair | FlowPair


def open_pairs(folder: str | Path, layout: str = "auto", split: str = "test") -> tuple[str, list[Pair]]:
    """Return the name of the layout and the pairs of a data set's folder, in its own order.

    Args:
        folder: The folder of the data set, or the one it lies in.
        layout: "spair", "pf-pascal", "tss", or "auto" to see.
        split: "test", "val" or "trn", where the data set has them.

    Raises:
        ValueError: An unknown layout.
        DataError: There is no such folder, or no pairs in it; the message tells the layout.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown; choose auto or one of {', '.join(LAYOUTS)}.")
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}. {_expected(layout)}")
    for name in LAYOUTS if layout == "auto" else (layout,):
        for place in (root, *sorted(path for path in root.iterdir() if path.is_dir())):
            pairs: list[Pair] = list(_READERS[name](place, split))
            if pairs:
                return name, pairs
    raise DataError(f"{root} holds no pairs of the split {split!r}. {_expected(layout)}")


def read_flow(path: Path) -> NDArray[np.float64]:
    """Return a .flo file (Middlebury), (H, W, 2): x and y in pixels.

    Raises:
        DataError: It is missing, damaged, or something else.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the flow {path}: {error.strerror}.") from error
    head = struct.unpack("<fii", raw[:12]) if len(raw) >= 12 else (0.0, 0, 0)
    magic, width, height = head
    if magic != _FLO_MAGIC or min(width, height) < 1 or len(raw) != 12 + 8 * width * height:
        raise DataError(f"{path} is no .flo file, or a damaged one; expected the Middlebury format.")
    return np.frombuffer(raw, "<f4", offset=12).reshape(height, width, 2).astype(np.float64)


def _spair(root: Path, split: str) -> Iterator[Pair]:
    folder = root / "PairAnnotation" / split
    if not folder.is_dir():
        return
    listed = root / "Layout" / "large" / f"{split}.txt"
    names = listed.read_text(encoding="utf-8").split() if listed.is_file() else []
    files = [_first(folder / f"{name}.json", folder / f"{name.replace(':', '_')}.json") for name in names]
    for path in files or sorted(folder.glob("*.json")):
        found = _read_json(path)
        try:
            pictures = root / "JPEGImages" / found["category"]
            left, top, right, bottom = map(float, found["trg_bndbox"])
            yield KeypointPair(
                name=path.stem,
                src=pictures / found["src_imname"],
                dst=pictures / found["trg_imname"],
                category=found["category"],
                src_points=_points(found["src_kps"]),
                dst_points=_points(found["trg_kps"]),
                dst_box=(left, top, right, bottom),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is no annotation of SPair-71k ({type(error).__name__}: {error}).") from error


def _pf_pascal(root: Path, split: str) -> Iterator[Pair]:
    table = _first(root / f"{split}_pairs.csv", root / f"{split}_pairs_pf_pascal.csv")
    if not table.is_file():
        return
    with open(table, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, 2):
        try:
            src, dst = (_pascal_picture(root, row[f"{end}_image"]) for end in ("source", "target"))
            category = _category(row.get("class", ""))
            given = "XA" in row
            ends = [
                _columns(row[f"X{end}"], row[f"Y{end}"]) if given else _annotated(root, category, picture)
                for end, picture in (("A", src), ("B", dst))
            ]
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(f"line {number} of {table}: {type(error).__name__}: {error}.") from error
        if ends[0].shape != ends[1].shape:
            raise DataError(f"line {number} of {table}: {len(ends[0])} and {len(ends[1])} points do not correspond.")
        name = f"{src.stem}-{dst.stem}"
        yield KeypointPair(name=name, src=src, dst=dst, category=category, src_points=ends[0], dst_points=ends[1])


def _tss(root: Path, split: str) -> Iterator[Pair]:
    """All pairs in both directions: the data set is one test set."""
    for first in sorted(root.glob("*/*/flow1.flo")) if split == "test" else ():
        folder = first.parent
        for a, b in ((1, 2), (2, 1)):
            yield FlowPair(
                name=f"{folder.parent.name}/{folder.name} {a}to{b}",
                src=folder / f"image{a}.png",
                dst=folder / f"image{b}.png",
                category=folder.parent.name,
                flow=folder / f"flow{a}.flo",
                mask=folder / f"mask{a}.png",
            )


_READERS: dict[str, Callable[[Path, str], Iterator[Pair]]] = {"spair": _spair, "pf-pascal": _pf_pascal, "tss": _tss}


def _annotated(root: Path, category: str, picture: Path) -> Points:
    """Return the points of a picture of PF-Pascal from its .mat file; those that are not seen are NaN."""
    from scipy.io import loadmat

    path = root / "Annotations" / category / f"{picture.stem}.mat"
    try:
        return _points(loadmat(path)["kps"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"cannot read the key points {path}: {error}.") from error


def _pascal_picture(root: Path, name: str) -> Path:
    places = (root / name, root.parent / name, root / "JPEGImages" / Path(name).name)
    return next((place for place in places if place.is_file()), places[-1])


def _category(given: str) -> str:
    """Return the name of a class, of which the tables hold the number, from 1."""
    number = given.removesuffix(".0")
    return _PASCAL[int(number) - 1] if number.isdigit() and 1 <= int(number) <= len(_PASCAL) else given


def _columns(x: str, y: str) -> Points:
    """Return points of two lists "1.5;2;..."."""
    values = [[float(part) for part in text.split(";") if part.strip()] for text in (x, y)]
    return _points(np.array(values).T)


def _points(given: Any) -> Points:
    found = np.array(given, dtype=np.float64)
    if found.ndim != 2 or found.shape[1] != 2:
        raise ValueError(f"points of shape {found.shape}; expected (n, 2)")
    return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}.") from error


def _first(*paths: Path) -> Path:
    """Return the first path that exists, else the first."""
    return next((path for path in paths if path.is_file()), paths[0])


def _expected(layout: str) -> str:
    known = LAYOUTS if layout == "auto" else {layout: LAYOUTS[layout]}
    return "Expected: " + "; ".join(f"{name}: {text}" for name, text in known.items()) + "."
