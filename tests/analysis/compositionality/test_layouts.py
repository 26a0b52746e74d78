"""Published layouts: of each two items as the authors' files have them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undiffuse.analysis.compositionality.layouts.order import _permutation
from undiffuse.analysis.compositionality.layouts.table import LAYOUTS, open_layout
from undiffuse.analysis.compositionality.pictures import load_pictures
from undiffuse.analysis.compositionality.task import Picture, Task
from undiffuse.errors import DataError
from undiffuse.images.write import write_image
from undiffuse.spec import DataSpec

SPEC = DataSpec(kind="image", shape=(1, 4, 6), range=(0.0, 1.0))
Files = dict[str, Any]


def box(**more: Any) -> Files:
    return {"bbox_x": 1, "bbox_y": 0, "bbox_w": 4, "bbox_h": 3, "true_caption": "t", "false_caption": "f", **more}


def captions(a: str, b: str) -> list[Files]:
    return [{"image": a, "caption": ["one two three four", "five six"]}, {"image": b, "caption": ["seven eight"]}]


def pair(image: str, text: str) -> list[Files]:
    return [
        {image.format(0): f"{i}0.png", image.format(1): f"{i}1.png", text.format(0): "x", text.format(1): "y"}
        for i in (0, 1)
    ]


FOUR = [f"{i}{j}.png" for i in (0, 1) for j in (0, 1)]
# Layout -> files by path (text, JSON, or None for a picture), and for each task: name, group, type, items, answers.
CASES: dict[str, tuple[Files, list[tuple[str, str, str, int, list[int]]]]] = {
    "vg-relation": (
        {
            "visual_genome_relation.json": [
                box(image_path="1.png", relation_name="on"),
                box(image_path="2.png", relation_name="under"),
            ],
            "images/1.png": None,
            "images/2.png": None,
        },
        [("vg-relation", "position", "image_to_text", 2, [0, 0])],
    ),
    "vg-attribution": (
        {
            "visual_genome_attribution.json": [box(image_path="1.png", attributes=["a", "b"])] * 2,
            "images/1.png": None,
        },
        [("vg-attribution", "attribute", "image_to_text", 2, [0, 0])],
    ),
    "coco-order": (
        {
            "coco_karpathy_test.json": captions("val2014/1.png", "val2014/2.png"),
            "val2014/1.png": None,
            "val2014/2.png": None,
        },
        [("coco-order", "order", "image_to_text", 3, [0, 0, 0])],
    ),
    "flickr-order": (
        {
            "flickr30k_order.json": [
                {"image_path": "flickr30k-images/1.png", "caption_options": ["a b", "b a"]},
                {"image_path": "flickr30k-images/1.png", "caption_options": ["c d", "d c"]},
            ],
            "flickr30k-images/1.png": None,
        },
        [("flickr30k-order", "order", "image_to_text", 2, [0, 0])],
    ),
    "sugarcrepe": (
        {
            "data/swap_obj.json": {
                str(i): {"filename": f"{i}.png", "caption": "c", "negative_caption": "n"} for i in (0, 1)
            },
            "val2017/0.png": None,
            "val2017/1.png": None,
        },
        [("sugarcrepe/swap_obj", "position", "image_to_text", 2, [0, 0])],
    ),
    "winoground": (
        {
            "data/examples.jsonl": "\n".join(
                json.dumps(
                    {
                        "id": i,
                        "image_0": f"ex_{i}_img_0",
                        "image_1": f"ex_{i}_img_1",
                        "caption_0": "x",
                        "caption_1": "y",
                    }
                )
                for i in (0, 1)
            ),
            **{f"data/images/ex_{i}_img_{j}.png": None for i in (0, 1) for j in (0, 1)},
        },
        [("winoground", "complex", "pair", 2, [0, 0])],
    ),
    "cola": (
        {
            "data/COLA_multiobjects_matching_benchmark.json": [
                [f"https://example.org/{i}0.png", "x", f"https://example.org/{i}1.png", "y"] for i in (0, 1)
            ],
            **{f"images/{name}": None for name in FOUR},
        },
        [("cola/multi", "attribute", "pair", 2, [0, 0])],
    ),
    "cola-single": (
        {
            "data/COLA_singleobjects_benchmark_CLEVR.json": {
                "labels": ["red cube", "blue cube", "blue ball"],
                "data": [
                    ["clevr/val/1.png", {}, [1, 0, 0], [1, 1, 0]],
                    ["clevr/val/2.png", {}, [0, 1, 0], [1, 1, 1]],
                ],
            },
            "images/1.png": None,
            "images/2.png": None,
        },
        [("cola/single-clevr", "attribute", "image_to_text", 2, [0, 0])],
    ),
    "eqben": (
        {
            "eqben_subset_10percent_final.json": pair("image{}", "caption{}"),
            **{f"image_subset/{name}": None for name in FOUR},
        },
        [("eqben", "complex", "pair", 2, [0, 0])],
    ),
    "valse": (
        {
            "data/existence.json": {
                f"e{i}": {"image_file": f"{i}.png", "caption": "c", "foil": "f", "mturk": {"caption": 3, "foil": 0}}
                for i in (0, 1)
            },
            "images/0.png": None,
            "images/1.png": None,
        },
        [("valse/existence", "object", "image_to_text", 2, [0, 0])],
    ),
    "vl-checklist": (
        {
            "corpus/Attribute/color/vg.yaml": 'ANNO_PATH: "data/Attribute/vg/color.json"\nIMG_ROOT: "vg"',
            "data/Attribute/vg/color.json": [[f"{i}.png", {"POS": ["red car"], "NEG": ["blue car"]}] for i in (0, 1)],
            "vg/0.png": None,
            "vg/1.png": None,
        },
        [("vl-checklist/Attribute/color/vg", "attribute", "image_to_text", 2, [0, 0])],
    ),
    "whats-up": (
        {
            "controlled_images_dataset.json": [
                {"image_path": f"data/controlled_images/{i}.png", "caption_options": ["l", "r", "o", "u"]}
                for i in (0, 1)
            ],
            "coco_qa_one_obj.json": [[7, "left", "right"], [8, "top", "bottom"]],
            "controlled_images/0.png": None,
            "controlled_images/1.png": None,
            "val2017/000000000007.jpg": None,
            "val2017/000000000008.jpg": None,
        },
        [
            ("whats-up-a", "position", "image_to_text", 2, [0, 0]),
            ("coco-qa-one", "position", "image_to_text", 2, [0, 0]),
        ],
    ),
    "spec": (
        {
            "count/image2text.json": [{"query": f"image/{i}.png", "keys": ["1", "2", "3"], "label": i} for i in (0, 1)],
            "count/text2image.json": [
                {"query": "2", "keys": ["image/0.png", "image/1.png"], "label": i} for i in (0, 1)
            ],
            "count/image/0.png": None,
            "count/image/1.png": None,
        },
        [
            ("spec/count/image2text", "counting", "image_to_text", 2, [0, 1]),
            ("spec/count/text2image", "counting", "text_to_image", 2, [0, 1]),
        ],
    ),
    "countbench": (
        {
            "CountBench.json": [
                {"image_url": "https://example.org/a.png", "text": "Three owls", "number": 3},
                {"image_url": "https://example.org/gone.png", "text": "a set of ten cups", "number": 10},
            ],
            "images/a.png": None,
            "images/1.png": None,
        },
        [("countbench", "counting", "image_to_text", 2, [1, 8])],
    ),
    "mmvp": (
        {
            "Questions.csv": "Question ID,Type,Statement\n1,Color and Appearance,x\n2,Color and Appearance,y\n"
            "3,Quantity and Count,x\n4,Quantity and Count,y\n",
            **{f"MLLM_VLM Images/Color and Appearance/{i}.jpg": None for i in (1, 2)},
            **{f"MLLM_VLM Images/Quantity and Count/{i}.jpg": None for i in (3, 4)},
        },
        [
            ("mmvp/Color and Appearance", "attribute", "pair", 1, [0]),
            ("mmvp/Quantity and Count", "counting", "pair", 1, [0]),
        ],
    ),
    "naturalbench": (
        {"metadata.json": pair("image_{}", "caption_{}"), **{f"images/{name}": None for name in FOUR}},
        [("naturalbench", "complex", "pair", 2, [0, 0])],
    ),
    "vismin": (
        {
            "vismin.json": [row | {"category": "counting"} for row in pair("image_{}", "text_{}")],
            **{f"images/{name}": None for name in FOUR},
        },
        [("vismin/counting", "counting", "pair", 2, [0, 0])],
    ),
    "clevr": (
        {
            "captions/pair_binding_color.json": {
                "1.png": [["a red cube and a blue ball", "a blue cube and a red ball"]]
            },
            "captions/spatial.json": {"1.png": [["left", "a cube left of a ball", "a ball left of a cube"]]},
            "images/1.png": None,
        },
        [
            ("clevr/pair_binding_color", "attribute", "image_to_text", 1, [0]),
            ("clevr/spatial", "position", "image_to_text", 1, [0]),
        ],
    ),
    "svo": (
        {
            "svo_probes.csv": "sentence,pos_triplet,neg_triplet,pos_image_id,neg_image_id,subj_neg,verb_neg,obj_neg\n"
            '"A man sits.","man,sit,x","man,stand,x",1,2,False,True,False\n'
            '"A man sits.","man,sit,x","dog,sit,x",1,2,True,False,False\n',
            "images/1.jpg": None,
            "images/2.jpg": None,
        },
        [("svo/verb", "complex", "text_to_image", 1, [0]), ("svo/subj", "object", "text_to_image", 1, [0])],
    ),
    "mmbias": (
        {
            "textual_phrases.txt": {"pleasant_phrases": ["joy"], "unpleasant_phrases": ["war"]},
            **{f"data/Images/Kind/{group}/{i}.png": None for group in ("A", "B") for i in (0, 1)},
        },
        [("mmbias/Kind", "complex", "bias", 1, [0])],
    ),
}


def lay_out(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            drawn = path.with_suffix(".png")
            write_image(drawn, np.arange(24, dtype=np.uint8).reshape(4, 6))
            drawn.rename(path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_every_layout_has_a_case():
    assert set(CASES) == set(LAYOUTS)


@pytest.mark.parametrize("name", sorted(CASES))
def test_two_items_are_read_with_their_pictures(name: str, tmp_path: Path):
    files, expected = CASES[name]
    lay_out(tmp_path, files)
    tasks = open_layout(name, tmp_path)
    assert [(t.name, t.group, t.type, len(t), t.answers) for t in tasks] == expected
    for task in tasks:
        images = [image for item in task.items for image in item.images]
        boxed = any(image.box for image in images if isinstance(image, Picture))  # a part of 4 x 3, stretched
        with pytest.warns(UserWarning, match="other proportions") if boxed else nullcontext():
            assert load_pictures(task, images, SPEC, "stretch").shape == (len(images), 1, 4, 6)


def read(name: str, tmp_path: Path) -> list[Task]:
    lay_out(tmp_path, CASES[name][0])
    return open_layout(name, tmp_path)


def test_what_the_items_say(tmp_path: Path):
    at: Callable[[str], Path] = lambda name: tmp_path / name  # noqa: E731
    (relation,) = read("vg-relation", at("vg-relation"))
    assert relation.items[0].images == (Picture("images/1.png", (1, 0, 5, 3)),)
    assert relation.items[0].texts == ("t", "f") and relation.items[1].tag == "under"
    cut = load_pictures(relation, relation.items[0].images, DataSpec(kind="image", shape=(1, 3, 4), range=(0.0, 255.0)))
    np.testing.assert_allclose(cut[0, 0].numpy(), np.arange(24).reshape(4, 6)[:3, 1:5], atol=1e-4)
    (order,) = read("coco-order", at("coco-order"))
    assert order.items[0].texts[0] == "one two three four" and len(set(order.items[0].texts)) == 4
    assert all(sorted(str(t).split()) == ["four", "one", "three", "two"] for t in order.items[0].texts)
    assert order.items[2].texts == ("seven eight", "eight seven")
    (single,) = read("cola-single", at("cola-single"))
    assert single.items[0].texts == ("red cube", "blue cube")
    assert single.items[1].texts == ("blue cube", "red cube", "blue ball")
    (owls,) = read("countbench", at("countbench"))
    assert owls.items[0].texts[:2] == ("two owls", "three owls") and owls.items[1].texts[8] == "a set of ten cups"
    (bias,) = read("mmbias", at("mmbias"))
    assert bias.items[0].image_groups == (0, 0, 1, 1) and bias.items[0].text_groups == (0, 1)
    assert bias.items[0].tag == "A, B"
    spatial = read("clevr", at("clevr"))[1]
    assert spatial.items[0].texts == ("a cube left of a ball", "a ball left of a cube")


def test_no_shuffle_leaves_the_words_where_they_are():
    assert all(_permutation(3, item, 0) != [0, 1, 2] for item in range(50))


def test_what_is_not_there_tells_the_layout(tmp_path: Path):
    with pytest.raises(DataError, match=r"no folder .*gone; winoground needs one with: data/examples.jsonl"):
        open_layout("winoground", tmp_path / "gone")
    with pytest.raises(DataError, match=r"has no metadata.json; naturalbench needs: metadata.json, images/"):
        open_layout("naturalbench", tmp_path)
    for name in LAYOUTS:
        with pytest.raises(DataError, match=f"{name} needs"):
            open_layout(name, tmp_path)
    with pytest.raises(ValueError, match="Did you mean 'sugarcrepe'"):
        open_layout("sugar-crepe", tmp_path)
    (tmp_path / "metadata.json").write_text('[{"image_0": "a.png"}]')
    with pytest.raises(DataError, match="not laid out as naturalbench is"):
        open_layout("naturalbench", tmp_path)


def test_items_that_annotators_refused_are_left_out_and_told(tmp_path: Path):
    files = json.loads(json.dumps(CASES["valse"][0]))
    files["data/existence.json"]["e1"]["mturk"]["caption"] = 1
    lay_out(tmp_path, files)
    with pytest.warns(UserWarning, match="1 of 2 items are left out"):
        (task,) = open_layout("valse", tmp_path)
    assert len(task) == 1
