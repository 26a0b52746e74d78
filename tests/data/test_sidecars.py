"""Conditions from files beside pictures, in folders and in archives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.data.files import encoded, make_zip, pixels, save
from undiffuse.data import DataOptions, open_data
from undiffuse.errors import DataError


def photos(folder: Path, count: int = 4) -> Path:
    for i in range(count):
        save(folder / f"{i}.png", pixels(8, 8, seed=i))
    return folder


def caption(row: torch.Tensor) -> str:
    return bytes(row[row >= 0].tolist()).decode()


def captions(dataset) -> list[str]:
    return [caption(row) for row in dataset.batch(torch.arange(len(dataset)))["cond"]["caption"]]


def test_a_text_beside_a_picture_is_its_caption(tmp_path: Path):
    photos(tmp_path)
    for i in (0, 1, 3):
        (tmp_path / f"{i}.txt").write_text(f"  number\n{i} é ", encoding="utf-8")
    (tmp_path / "other.txt").write_text("no picture")
    dataset = open_data(str(tmp_path), DataOptions(cond="auto"))
    assert captions(dataset) == ["number 0 é", "number 1 é", "", "number 3 é"]
    assert dataset.spec.cond["caption"].length == len("number 0 é".encode())
    lines = "\n".join(dataset.summary())
    assert "1 of 4 are empty" in lines and "1 other file(s) passed over: other.txt" in lines
    assert open_data(str(tmp_path), DataOptions(cond="none")).spec.cond == {}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_beside_pictures_gives_conditions(tmp_path: Path, kind: str, packed: bool):
    rows = [{"file_name": f"{i}.png", "age": 2.5 * i, "shape": "ab"[i % 2], "text": f"no. {i}"} for i in range(12)]
    if kind == "csv":
        table = "\n".join(["file_name,age,shape,text"] + [",".join(map(str, row.values())) for row in rows])
    else:
        table = "\n".join(map(json.dumps, rows))
    files = {f"{i}.png": encoded(pixels(8, 8, seed=i)) for i in range(12)}
    if packed:
        source = make_zip(tmp_path / "a.zip", files | {f"metadata.{kind}": table.encode()})
    else:
        source = photos(tmp_path, 12)
        (tmp_path / f"metadata.{kind}").write_text(table, encoding="utf-8")
    dataset = open_data(str(source))
    assert {name: spec.kind for name, spec in dataset.spec.cond.items()} == {
        "age": "vector",
        "shape": "label",
        "text": "text",
    }
    batch = dataset.batch(torch.tensor([0, 1, 10]))  # in order of names: 0, 1, 8
    age = dataset.spec.cond["age"]
    torch.testing.assert_close(batch["cond"]["age"][:, 0] * age.std[0] + age.mean[0], torch.tensor([0, 2.5, 20.0]))
    assert batch["cond"]["shape"].tolist() == [0, 1, 0]
    assert [caption(row) for row in batch["cond"]["text"]] == ["no. 0", "no. 1", "no. 8"]


def test_fields_of_json_files_become_columns(tmp_path: Path):
    photos(tmp_path)
    for i in range(4):
        (tmp_path / f"{i}.json").write_text(json.dumps({"at.x": [i, 0.5], "label": f"c{i % 2}", "deep": {"a": 1}}))
    dataset = open_data(str(tmp_path))
    assert dataset.spec.classes == ("c0", "c1")
    assert dataset.spec.cond["at_x"].width == 2 and list(dataset.spec.cond) == ["at_x"]


def test_a_picture_without_a_number_counts_as_unreadable(tmp_path: Path):
    photos(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,age\n0.png,1.5\n1.png,\n2.png,2.5\n3.png,x")
    with pytest.raises(DataError, match=r"2 of 4 file\(s\).*1.png: its age: it is missing"):
        open_data(str(tmp_path), DataOptions(cond="age:vector"))
    dataset = open_data(str(tmp_path), DataOptions(cond="age:vector", max_bad=0.5))
    assert dataset.batch(torch.arange(2))["index"].tolist() == [0, 2]
    assert len(dataset.problems) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.csv", "name,age\n0.png,1", "no column 'file_name'"),
        ("metadata.csv", "file_name,age\nz.png,1", "none of which is there"),
        ("metadata.jsonl", "{", "is not JSON"),
        ("0.json", "[1]", "no JSON object"),
        ("metadata.csv", b"file_name,a\n\xff", "not UTF-8"),
    ],
)
def test_what_cannot_be_read_beside_pictures_is_refused(tmp_path: Path, name: str, content: str | bytes, message: str):
    photos(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        open_data(str(tmp_path))
