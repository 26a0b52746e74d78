"""Benchmarks that ask which text fits a picture: ARO, SugarCrepe, VALSE, VL-CheckList, What's Up, CLEVR, CountBench."""

from __future__ import annotations

import re
from pathlib import Path

from undiffuse.analysis.compositionality.layouts.files import (
    Missing,
    base,
    choice,
    need,
    picture,
    rows,
    task,
    tell_left_out,
)
from undiffuse.analysis.compositionality.task import Item, Picture, Task, read_json

_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SUGAR = {
    "add_obj": "object",
    "add_att": "attribute",
    "replace_obj": "object",
    "replace_att": "attribute",
    "replace_rel": "position",
    "swap_obj": "position",
    "swap_att": "attribute",
}
_VALSE = {
    "existence": "object",
    "plurals": "counting",
    "counting-small-quant": "counting",
    "counting-hard": "counting",
    "counting-adversarial": "counting",
    "relations": "position",
    "action-replacement": "complex",
    "actant-swap": "order",
    "coreference-standard": "complex",
    "coreference-hard": "complex",
    "foil-it": "object",
}
_WHATS_UP = {
    "controlled_images_dataset.json": ("whats-up-a", "controlled_images"),
    "controlled_clevr_dataset.json": ("whats-up-b", "controlled_clevr"),
    "coco_qa_one_obj.json": ("coco-qa-one", "val2017"),
    "coco_qa_two_obj.json": ("coco-qa-two", "val2017"),
    "vg_qa_one_obj.json": ("vg-qa-one", "vg_images"),
    "vg_qa_two_obj.json": ("vg-qa-two", "vg_images"),
}
_VALID_VOTES = 2  # of 3 annotators, as VALSE's own evaluation asks


def vg_relation(folder: Path) -> list[Task]:
    """ARO: relations of Visual Genome, each in its box."""
    return [_visual_genome(folder, "visual_genome_relation.json", "vg-relation", "position")]


def vg_attribution(folder: Path) -> list[Task]:
    """ARO: attributes of two objects, swapped."""
    return [_visual_genome(folder, "visual_genome_attribution.json", "vg-attribution", "attribute")]


def _visual_genome(folder: Path, file: str, name: str, group: str) -> Task:
    def one(row: dict) -> Item:
        left, top = row["bbox_x"], row["bbox_y"]
        image = picture(folder, row["image_path"], box=(left, top, left + row["bbox_w"], top + row["bbox_h"]))
        return choice(image, (row["true_caption"], row["false_caption"]), tag=str(row.get("relation_name", "")))

    return task(name, map(one, rows(need(folder, file))), group, folder)


def sugar_crepe(folder: Path) -> list[Task]:
    """SugarCrepe: seven files of a caption and a fluent negative."""
    found = []
    for kind, group in _SUGAR.items():
        file = next(
            (path for path in (folder / "data" / f"{kind}.json", folder / f"{kind}.json") if path.exists()), None
        )
        if file is not None:
            items = (
                choice(
                    picture(folder, row["filename"], ("val2017", "images")), (row["caption"], row["negative_caption"])
                )
                for row in rows(file)
            )
            found.append(task(f"sugarcrepe/{kind}", items, group, folder))
    return _some(found, folder, "data/add_obj.json")


def valse(folder: Path) -> list[Task]:
    """VALSE: captions and foils; only items that two of three annotators found valid."""
    found = []
    for kind, group in _VALSE.items():
        file = folder / "data" / f"{kind}.json"
        if not file.exists():
            continue
        entries = rows(file)
        valid = [row for row in entries if row.get("mturk", {}).get("caption", _VALID_VOTES) >= _VALID_VOTES]
        tell_left_out(f"valse/{kind}", len(entries) - len(valid), len(entries), "annotators did not find them valid")
        items = (choice(picture(folder, row["image_file"]), (row["caption"], row["foil"])) for row in valid)
        found.append(task(f"valse/{kind}", items, group, folder))
    return _some(found, folder, "data/existence.json")


def vl_checklist(folder: Path) -> list[Task]:
    """VL-CheckList: the YAML files of `corpus` say where annotations and pictures lie."""
    import yaml

    groups = {"Object": "object", "Attribute": "attribute", "Relation": "position"}
    found = []
    for config in sorted(need(folder, "corpus").rglob("*.yaml")):
        where = config.relative_to(folder / "corpus").with_suffix("")
        given = yaml.safe_load(config.read_text(encoding="utf-8"))
        annotations = folder / given["ANNO_PATH"]
        if not annotations.exists():
            continue
        items = (
            choice(picture(folder, name, (given["IMG_ROOT"],)), (texts["POS"][0], texts["NEG"][0]))
            for name, texts in read_json(annotations)
        )
        group = next((groups[part] for part in where.parts if part in groups), "complex")
        found.append(task(f"vl-checklist/{where.as_posix()}", items, group, folder))
    return _some(found, folder, "corpus/Attribute/color/vg.yaml with its ANNO_PATH")


def whats_up(folder: Path) -> list[Task]:
    """What's Up: controlled pictures with four prepositions, COCO and GQA questions with two."""
    found = []
    for file, (name, place) in _WHATS_UP.items():
        if (folder / file).exists():
            items = (_preposition(row, folder, place) for row in rows(folder / file))
            found.append(task(name, items, "position", folder))
    return _some(found, folder, "controlled_images_dataset.json")


def _preposition(row: object, folder: Path, place: str) -> Item:
    if isinstance(row, dict):
        return choice(picture(folder, base(row["image_path"]), (place,)), row["caption_options"])
    assert isinstance(row, list)
    name = f"{str(row[0]).zfill(12) if place == 'val2017' else row[0]}.jpg"
    return choice(picture(folder, name, (place,)), (row[1], row[2]))


def clevr(folder: Path) -> list[Task]:
    """CLEVR captions of DiffusionITM: per picture lists whose last two texts are a right and a wrong one."""
    groups = {"recognition_color": "attribute", "recognition_shape": "object", "spatial": "position"}
    found = []
    for file in sorted(need(folder, "captions").glob("*.json")):
        given = read_json(file)
        if not isinstance(given, dict) or not all(isinstance(texts, list) for texts in given.values()):
            continue  # the questions and scenes of CLEVR lie beside
        items = [
            choice(picture(folder, name), [str(text) for text in texts[-2:]])
            for name, lists in given.items()
            for texts in lists
        ]
        found.append(task(f"clevr/{file.stem}", items, groups.get(file.stem, "attribute"), folder))
    return _some(found, folder, "captions/spatial.json")


def count_bench(folder: Path) -> list[Task]:
    """CountBench: the number in a caption against the other eight; pictures by the name at the end of their address."""
    entries = rows(need(folder, "CountBench.json"))
    items = []
    for number, row in enumerate(entries):
        names = (base(row["image_url"]), f"{number}.jpg", f"{number}.png")
        image = next((picture(folder, name) for name in names if (folder / "images" / name).exists()), None)
        texts = _counts(row["text"], int(row["number"]))
        if image is not None and texts:
            items.append(choice(image, texts, answer=int(row["number"]) - 2))
    why = "the picture is not in images, or the caption does not spell the number"
    tell_left_out("countbench", len(entries) - len(items), len(entries), why)
    return [task("countbench", items, "counting", folder)]


def _counts(text: str, number: int) -> list[str]:
    """Return the caption with each number from two to ten in its place; nothing where the number is not spelled out."""
    word = re.compile(rf"\b{_NUMBERS[number - 2]}\b", re.IGNORECASE)
    return [word.sub(other, text, count=1) for other in _NUMBERS] if word.search(text) else []


def cola_single(folder: Path) -> list[Task]:
    """COLA, single objects: each class that a picture shows against its hard negatives."""
    found = []
    for kind in ("GQA", "CLEVR", "PACO"):
        file = folder / "data" / f"COLA_singleobjects_benchmark_{kind}.json"
        if not file.exists():
            continue
        given = read_json(file)
        labels, data = (given["labels"], given["data"]) if isinstance(given, dict) else given
        items = [item for row in data for item in _shown(row, labels, folder)]
        found.append(task(f"cola/single-{kind.lower()}", items, "attribute", folder))
    return _some(found, folder, "data/COLA_singleobjects_benchmark_CLEVR.json")


def _shown(row: list, labels: list[str], folder: Path) -> list[Item]:
    """Return an item per class in the picture; the last two entries of a row are its classes and its hard ones."""
    present, hard = row[-2], row[-1]
    wrong = [name for name, here, near in zip(labels, present, hard, strict=True) if near and not here]
    image: Picture = picture(folder, base(row[0]))
    return [choice(image, (name, *wrong)) for name, here in zip(labels, present, strict=True) if here and wrong]


def _some(found: list[Task], folder: Path, example: str) -> list[Task]:
    if not found:
        raise Missing(f"{folder} has none of its files, such as {example}")
    return found
