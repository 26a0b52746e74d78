"""Streams: items in order, the first held out, the rest by position without end."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data import tables
from tests.data.files import encoded, pixels, write_shards, write_tar
from undiffuse.data import DataOptions, open_data, split
from undiffuse.data.streams import StreamDataset
from undiffuse.errors import DataError


def stream(source: object, **options: Any) -> StreamDataset:
    dataset = open_data(str(source), DataOptions(stream=True, **options))
    assert isinstance(dataset, StreamDataset)
    return dataset


def batch(dataset: Any, *positions: int) -> dict[str, Any]:
    found = dataset.batch(torch.tensor(positions))
    if hasattr(dataset, "close"):
        dataset.close()
    return found


def seeds(*numbers: int) -> torch.Tensor:
    arrays = np.stack([pixels(8, 8, seed=number).transpose(2, 0, 1) for number in numbers])
    return torch.from_numpy(arrays).float() * (2 / 255) - 1


def lines(path: Path, count: int = 40, **more: Any) -> Path:
    rows = [{"v": [float(i), -float(i), 0.5], "label": "ab"[i % 2], **more} for i in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def check_same_as_in_memory(source: object, monkeypatch: pytest.MonkeyPatch) -> None:
    held, streamed = open_data(str(source)), stream(source, shuffle=8)
    one, other = batch(held, *range(20)), batch(streamed, *range(20))
    torch.testing.assert_close(other["x"], one["x"])
    assert streamed.spec.classes == held.spec.classes
    assert other["cond"].keys() == one["cond"].keys()
    assert torch.equal(other["cond"]["label"], one["cond"]["label"])
    length = one["cond"]["caption"].shape[1]
    assert torch.equal(other["cond"]["caption"][:, :length], one["cond"]["caption"])


def test_streamed_shards_hold_what_indexed_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_same_as_in_memory(write_shards(tmp_path, 2), monkeypatch)


@pytest.mark.parametrize("how", ["disk", "parquet"])
def test_streamed_tables_hold_what_tables_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str):
    datasets = tables.library(monkeypatch, tmp_path / "cache")
    table = tables.pictures(datasets).rename_column("kind", "label")
    path = tmp_path / ("set" if how == "disk" else "set.parquet")
    table.save_to_disk(path) if how == "disk" else table.to_parquet(path)
    check_same_as_in_memory(path, monkeypatch)


def test_the_first_items_are_held_out_and_the_rest_is_repeated(tmp_path: Path):
    training, held_out = split(stream(write_shards(tmp_path), shuffle=4), 7)
    assert torch.equal(batch(held_out, *range(7))["x"], seeds(*range(7)))
    assert len(held_out) == 7 and held_out.spec == training.spec
    found = batch(training, 0, 1, 22, 23, 24, 45, 46, 1000)
    assert torch.equal(found["x"], seeds(7, 8, 29, 7, 8, 29, 7, 7 + 1000 % 23))
    assert found["index"].tolist() == [0, 1, 22, 23, 24, 45, 46, 1000]
    assert len(training) == 23 and not training.endless


def test_a_stream_is_endless_until_it_has_ended(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    assert datasets
    training, _ = split(stream(lines(tmp_path / "a.jsonl", 300), shuffle=4), 10)
    assert training.endless and training.default_holdout == 256
    batch(training, 295)
    assert not training.endless and len(training) == 290
    short = stream(lines(tmp_path / "b.jsonl", 40))
    assert not short.endless and short.default_holdout == 4
    with pytest.raises(DataError, match=r"data.holdout=0.1 is a share, but nobody knows"):
        split(stream(lines(tmp_path / "c.jsonl", 300)), 0.1)
    assert len(split(short, 0.1)[1]) == 4
    for holdout in (40, 50):
        with pytest.raises(DataError, match="hold out"):
            split(stream(lines(tmp_path / "b.jsonl", 40)), holdout)


def test_vectors_are_standardised_by_the_first_rows(tmp_path: Path):
    pytest.importorskip("datasets")
    dataset = stream(lines(tmp_path / "a.jsonl"))
    assert dataset.spec.kind == "vector" and dataset.spec.classes == ("a", "b")
    x = batch(dataset, *range(40))["x"]
    torch.testing.assert_close(x[:, :2].mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(dataset.spec.from_model(x)[5], torch.tensor([5.0, -5.0, 0.5]))


def test_a_limit_takes_the_first_items(tmp_path: Path):
    dataset = stream(write_shards(tmp_path), limit=12)
    assert torch.equal(batch(dataset, 11, 12, 13)["x"], seeds(11, 0, 1))


def test_compressed_shards_can_be_streamed(tmp_path: Path):
    write_shards(tmp_path, 1)
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "part-00.tar").read_bytes()))
    assert torch.equal(batch(stream(packed), 4)["x"], seeds(4))


def test_an_unreadable_item_is_replaced_by_the_next(tmp_path: Path):
    members = [(f"{i}.png", b"no" if i in (3, 4) else encoded(pixels(8, 8, seed=i))) for i in range(60)]
    source = write_tar(tmp_path / "a.tar", members)
    dataset = stream(source, shuffle=64)
    assert torch.equal(batch(dataset, 2, 3, 4, 5)["x"], seeds(2, 5, 5, 5))
    assert [problem.path for problem in dataset.found_late()] == [f"item {i} of {source}" for i in (3, 4)]
    with pytest.raises(DataError, match="2 of the first 60 pictures"):
        stream(source, max_bad=0.02)


def test_too_many_unreadable_items_end_a_stream(tmp_path: Path):
    good = encoded(pixels(2, 2))
    members = [(f"{i}.png", b"no" if 270 <= i < 290 else good) for i in range(300)]
    dataset = stream(write_tar(tmp_path / "a.tar", members), shuffle=64)
    assert len(batch(dataset, 0, 269)["x"]) == 2
    with pytest.raises(DataError, match=r"\d+ item\(s\) turned out to be unreadable, more than data.max_bad=0.05"):
        batch(dataset, 270)


def test_what_a_row_lacks_makes_it_unreadable(tmp_path: Path):
    pytest.importorskip("datasets")
    rows = [{"v": [1.0 * i, 2.0], "age": 0.5 * i} for i in range(300)]
    rows[280]["age"] = None
    rows[281]["v"] = [1.0]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    dataset = stream(path)
    assert torch.equal(batch(dataset, 280)["x"], batch(dataset, 282)["x"])
    assert "its age: it is missing" in str(dataset.found_late()[0])


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.jsonl", '{"a": "x"}', {}, "no column of pictures or lists of numbers; it has a"),
        ("a.jsonl", '{"v": [1, 2]}', {"flip": True}, "data.flip=True has no use for streams"),
        ("a.jsonl", '{"v": [1, 2]}\n{"v', {}, r"cannot load .*a\.jsonl: [^\n]*check the files"),
        ("a.png", "x", {}, "cannot be read as a stream"),
        ("none.jsonl", None, {}, "cannot be read as a stream"),
        ("a.tar", "nothing", {}, "cannot be read to its end"),
    ],
)
def test_what_is_no_stream_is_refused(tmp_path: Path, name: str, content: str | None, options: Any, message: str):
    pytest.importorskip("datasets")
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        stream(tmp_path / name, **options)
