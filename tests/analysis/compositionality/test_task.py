"""Tasks on disk: what is written is read, and what is wrong is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.analysis.compositionality.labelled import DOMAINS, labelled_task, moved_task
from undiffuse.analysis.compositionality.pictures import load_pictures
from undiffuse.analysis.compositionality.task import Item, Picture, Task, read_task, write_task
from undiffuse.errors import DataError
from undiffuse.images.write import write_image
from undiffuse.spec import DataSpec

SPEC = DataSpec(kind="image", shape=(1, 4, 4), range=(0.0, 16.0))


def test_a_task_comes_back_as_it_was(tmp_path: Path):
    data = torch.arange(48.0).reshape(3, 1, 4, 4) / 3
    items = (
        Item(images=(2,), texts=({"left": "3", "right": "5"}, {"left": "5", "right": "3"}), answer=1, tag="swap"),
        Item(images=(0,), texts=({"left": "1", "right": "2"}, {"left": "2", "right": "1"})),
    )
    task = Task(name="order", items=items, group="order", data=data)
    again = read_task(write_task(task, tmp_path / "a" / "order").parent)
    assert (again.name, again.group, again.answers, again.items[0].tag) == ("order", "order", [1, 0], "swap")
    assert [item.texts for item in again.items] == [item.texts for item in items]
    torch.testing.assert_close(load_pictures(again, again.items[0].images, SPEC), data[2:], atol=0, rtol=0)
    write_task(again.take([1]), tmp_path / "a" / "beside")
    (tmp_path / "a").rename(tmp_path / "b")
    moved = read_task(tmp_path / "b" / "beside")
    torch.testing.assert_close(load_pictures(moved, moved.items[0].images, SPEC), data[:1], atol=0, rtol=0)


def test_pictures_are_cut_and_fitted(tmp_path: Path):
    write_image(tmp_path / "a.png", (np.arange(24, dtype=np.uint8) * 10).reshape(4, 6))
    (tmp_path / "task.json").write_text(
        json.dumps({"items": [{"images": [{"file": "a.png", "box": [1, 0, 5, 4]}], "texts": ["x", "y"]}]})
    )
    task = read_task(tmp_path)
    (cut,) = load_pictures(task, task.items[0].images, SPEC)
    expected = (np.arange(24) * 10).reshape(4, 6)[:, 1:5] * 16 / 255
    np.testing.assert_allclose(cut[0].numpy(), expected, atol=1e-5)
    with pytest.warns(UserWarning, match="other proportions than the model's 4 x 4; resize=pad"):
        assert load_pictures(task, [Picture("a.png")], SPEC, "pad").shape == (1, 1, 4, 4)
    with pytest.raises(DataError, match=r"names .*b\.png, which is not there"):
        load_pictures(task, [Picture("b.png")], SPEC)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"images": ["a.png"], "texts": []}, r"item 0: an item of type image_to_text has 1 picture\(s\) and 0 text"),
        ({"images": ["a.png"], "texts": ["x", "y"], "answer": 2}, "answer=2 is out of range; the item has 2"),
        ({"images": ["a.png"], "texts": ["x", "y"], "answer": -1}, "answer=-1 is out of range"),
        ({"images": ["a.png"], "texts": ["x", "y"], "type": "pairs"}, "Did you mean 'pair'"),
        ({"images": ["a.png"], "texts": ["x", "y"], "type": "pair"}, "it needs 2 pictures and 2 texts"),
        ({"images": ["a.png", "b.png"], "texts": ["x", "y"], "type": "bias"}, "it needs one number per picture"),
        ({"images": ["a.png"], "captions": ["x", "y"]}, "it needs images and texts"),
        ({"images": [3], "texts": ["x", "y"]}, "names picture 3; there are 0"),
        ("x", "item 0"),
    ],
)
def test_what_is_no_item_is_named(tmp_path: Path, item: object, message: str):
    (tmp_path / "task.json").write_text(json.dumps({"name": "t", "items": [item]}))
    with pytest.raises(DataError, match=message):
        read_task(tmp_path)


def test_what_is_no_task_is_said(tmp_path: Path):
    with pytest.raises(DataError, match="there is no task at"):
        read_task(tmp_path)
    (tmp_path / "task.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_task(tmp_path)
    (tmp_path / "task.json").write_text('{"items": []}')
    with pytest.raises(DataError, match="has no items"):
        read_task(tmp_path)
    with pytest.raises(ValueError, match="mixes items of types image_to_text, pair"):
        texts = ("x", "y")
        Task(
            name="t",
            items=(
                Item(images=(Picture("a"),), texts=texts),
                Item(images=(Picture("a"),) * 2, texts=texts, type="pair"),
            ),
        )


def test_domains_do_what_their_names_say():
    data = torch.zeros(40, 1, 4, 4)
    data[:, 0, 1, 1] = 16.0
    task = labelled_task(data, torch.zeros(40, dtype=torch.int64), ("a", "b"))
    moved = {name: moved_task(task, SPEC, name).data for name in DOMAINS}
    shifted = moved["shifted by a pixel"]
    assert shifted is not None and moved["inverted"] is not None
    places = {tuple(one[0].nonzero()[0].tolist()) for one in shifted}
    assert places == {(0, 1), (2, 1), (1, 0), (1, 2)}
    torch.testing.assert_close(shifted.sum((1, 2, 3)), torch.full((40,), 16.0))
    torch.testing.assert_close(moved["inverted"], 16.0 - data)
    torch.testing.assert_close(moved["half contrast"], data / 2)
    torch.testing.assert_close(moved["rotated by 90 degrees"], data.rot90(1, (-2, -1)))
    blurred = moved["3 x 3 blur"]
    assert blurred is not None
    torch.testing.assert_close(blurred[0, 0, :3, :3], torch.full((3, 3), 16 / 9))
    noisy = moved["noise 0.5"]
    assert noisy is not None
    assert float((noisy - data).std()) == pytest.approx(0.5 * 8, rel=0.15)  # model units are 8 of these; 640 numbers
    with pytest.raises(ValueError, match="domain 'fog' is unknown"):
        moved_task(task, SPEC, "fog")
