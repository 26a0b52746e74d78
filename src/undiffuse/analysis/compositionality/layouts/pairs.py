"""Benchmarks of two pictures and two texts, of one text and several pictures, and of bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from undiffuse.analysis.compositionality.layouts.files import (
    Missing,
    base,
    by_key,
    choice,
    need,
    pair,
    picture,
    rows,
    task,
)
from undiffuse.analysis.compositionality.task import Item, Picture, Task, read_json
from undiffuse.images.read import PICTURE_SUFFIXES

_SPEC = {
    "absolute_size": "attribute",
    "relative_size": "attribute",
    "absolute_spatial": "position",
    "relative_spatial": "position",
    "absolute_position": "position",
    "relative_position": "position",
    "existence": "object",
    "count": "counting",
}
_MMVP = {
    "Orientation and Direction": "position",
    "Presence of Specific Features": "object",
    "Quantity and Count": "counting",
    "Positional and Relational Context": "position",
    "Color and Appearance": "attribute",
}
_VISMIN = {"object": "object", "attribute": "attribute", "counting": "counting", "relation": "position"}


def winoground(folder: Path) -> list[Task]:
    """Winoground: the same words in another order."""
    file = need(folder, "data/examples.jsonl", "examples.jsonl", "data.json")
    items = [
        _pair(folder, row, "image_{}", "caption_{}", ("data/images", "images"), row.get("collapsed_tag") or "")
        for row in (_with_images(row) for row in rows(file))
    ]
    return [task("winoground", items, "complex", folder)]


def _with_images(row: dict[str, Any]) -> dict[str, Any]:
    """Add the names of pictures, which follow from the number where the file leaves them out."""
    names = {f"image_{i}": row.get(f"image_{i}", f"ex_{row['id']}_img_{i}") for i in (0, 1)}
    return row | {key: name if Path(name).suffix else f"{name}.png" for key, name in names.items()}


def cola_multi(folder: Path) -> list[Task]:
    """COLA, several objects: attributes swapped between two pictures."""
    file = need(folder, "data/COLA_multiobjects_matching_benchmark.json", "COLA_multiobjects_matching_benchmark.json")
    places = ("images", "cola-multi-obj-images", ".")
    items = [
        pair((picture(folder, base(a), places), picture(folder, base(b), places)), (text_a, text_b))
        for a, text_a, b, text_b in rows(file)
    ]
    return [task("cola/multi", items, "attribute", folder)]


def eqben(folder: Path) -> list[Task]:
    """EqBen, the published tenth: neighbouring frames and rendered pictures that differ in little."""
    file = need(folder, "eqben_subset_10percent_final.json")
    items = [_pair(folder, row, "image{}", "caption{}", ("image_subset",)) for row in rows(file)]
    return [task("eqben", items, "complex", folder)]


def natural_bench(folder: Path) -> list[Task]:
    """NaturalBench-Retrieval: natural pictures that CLIP confuses."""
    items = [_pair(folder, row, "image_{}", "caption_{}", ("images",)) for row in rows(need(folder, "metadata.json"))]
    return [task("naturalbench", items, "complex", folder)]


def vismin(folder: Path) -> list[Task]:
    """VisMin: pictures edited in one object, attribute, number or place."""
    entries = rows(need(folder, "vismin.json", "metadata.jsonl"))
    return [
        task(
            f"vismin/{kind}",
            [_pair(folder, row, "image_{}", "text_{}", ("images", ".")) for row in part],
            _VISMIN.get(kind, "complex"),
            folder,
        )
        for kind, part in by_key(entries, "category").items()
    ]


def mmvp(folder: Path) -> list[Task]:
    """MMVP-VLM: nine visual patterns; rows follow each other in pairs."""
    entries = rows(need(folder, "Questions.csv"))
    found = []
    for kind, part in by_key(entries, "Type").items():
        ordered = sorted(part, key=lambda row: int(row["Question ID"]))
        if len(ordered) % 2:
            raise Missing(f"Questions.csv has {len(ordered)} rows of {kind}, an odd number")
        items = [
            pair((_mmvp(folder, kind, a), _mmvp(folder, kind, b)), (a["Statement"], b["Statement"]))
            for a, b in zip(ordered[::2], ordered[1::2], strict=True)
        ]
        found.append(task(f"mmvp/{kind}", items, _MMVP.get(kind, "complex"), folder))
    return found


def _mmvp(folder: Path, kind: str, row: Any) -> Picture:
    return picture(folder, f"{row['Question ID']}.jpg", (f"MLLM_VLM Images/{kind}",))


def spec(folder: Path) -> list[Task]:
    """SPEC: synthesised pictures that differ in size, place, existence or number; both directions."""
    found = []
    for kind, group in _SPEC.items():
        for direction in ("image2text", "text2image"):
            file = folder / kind / f"{direction}.json"
            if file.exists():
                items = [_spec_item(folder, kind, row, direction) for row in rows(file)]
                found.append(task(f"spec/{kind}/{direction}", items, group, folder))
    if not found:
        raise Missing(f"{folder} has none of its files, such as count/image2text.json")
    return found


def _spec_item(folder: Path, kind: str, row: dict[str, Any], direction: str) -> Item:
    if direction == "image2text":
        return choice(picture(folder, row["query"], (kind,)), row["keys"], int(row["label"]))
    images = tuple(picture(folder, name, (kind,)) for name in row["keys"])
    return Item(images=images, texts=(row["query"],), type="text_to_image", answer=int(row["label"]))


def svo(folder: Path) -> list[Task]:
    """SVO-Probes: a sentence, its picture, and one with another subject, verb or object."""
    file = need(folder, "svo.json", "svo_probes.csv")
    entries = rows(file)
    if file.suffix == ".csv":
        kinds = {"subj_neg": "subj", "verb_neg": "verb", "obj_neg": "obj"}
        entries = [
            {"pos_id": f"{row['pos_image_id']}.jpg", "neg_id": f"{row['neg_image_id']}.jpg", **row, "neg_type": kind}
            for row in entries
            for column, kind in kinds.items()
            if row[column].strip().lower() == "true"
        ]
    return [
        task(
            f"svo/{kind}",
            [
                Item(
                    images=(picture(folder, str(row["pos_id"])), picture(folder, str(row["neg_id"]))),
                    texts=(row["sentence"],),
                    type="text_to_image",
                )
                for row in part
            ],
            "complex" if kind == "verb" else "object",
            folder,
        )
        for kind, part in by_key(entries, "neg_type").items()
    ]


def mm_bias(folder: Path) -> list[Task]:
    """MMBias: groups of people against pleasant and unpleasant phrases; an item per kind of group."""
    phrases = read_json(need(folder, "textual_phrases.txt"))
    pleasant, unpleasant = phrases["pleasant_phrases"], phrases["unpleasant_phrases"]
    texts, sets = (*pleasant, *unpleasant), (0,) * len(pleasant) + (1,) * len(unpleasant)
    found = []
    for kind in sorted(path for path in need(folder, "data/Images", "Images").iterdir() if path.is_dir()):
        groups = sorted(path for path in kind.iterdir() if path.is_dir())
        files = [sorted(p for p in group.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES) for group in groups]
        images = tuple(Picture(path.relative_to(folder).as_posix()) for part in files for path in part)
        numbers = tuple(number for number, part in enumerate(files) for _ in part)
        tag = ", ".join(group.name for group in groups)
        item = Item(images=images, texts=texts, type="bias", image_groups=numbers, text_groups=sets, tag=tag)
        found.append(task(f"mmbias/{kind.name}", [item], "complex", folder))
    return found


def _pair(folder: Path, row: Any, image: str, text: str, places: tuple[str, ...], tag: str = "") -> Item:
    images = tuple(picture(folder, row[image.format(i)], places) for i in (0, 1))
    return pair((images[0], images[1]), (row[text.format(0)], row[text.format(1)]), tag)
