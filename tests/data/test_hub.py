"""Tables of `datasets`: on disk, as parquet, from the hub (which is never asked here)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data import tables
from tests.data.files import pixels
from undiffuse.data import DataOptions, TensorDataset, open_data, split
from undiffuse.data.lazy import LazyDataset
from undiffuse.errors import DataError


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return tables.library(monkeypatch, tmp_path / "cache")


def saved(datasets: Any, folder: Path, how: str, table: Any) -> Path:
    folder.mkdir()
    if how == "disk":
        table.save_to_disk(folder / "set")
    elif how == "splits":
        datasets.DatasetDict({"train": table, "test": table.select([0, 1])}).save_to_disk(folder / "set")
    elif how == "parquet":
        table.to_parquet(folder / "set.parquet")
    else:
        (folder / "set" / "data").mkdir(parents=True)
        for part in range(2):
            chosen = table.select(range(part * len(table) // 2, (part + 1) * len(table) // 2))
            chosen.to_parquet(folder / "set" / "data" / f"train-0000{part}-of-00002.parquet")
        table.select([0]).to_parquet(folder / "set" / "data" / "test-00000-of-00001.parquet")
    return next(folder.iterdir())


@pytest.mark.parametrize("how", ["disk", "splits", "parquet", "folder"])
def test_pictures_of_a_table(datasets: Any, tmp_path: Path, how: str):
    source = saved(datasets, tmp_path / "data", how, tables.pictures(datasets))
    dataset = open_data(str(source), DataOptions(label="kind"))
    assert isinstance(dataset, TensorDataset)
    assert dataset.spec.classes == ("z", "y", "x")  # in the order of the table
    assert {name: part.kind for name, part in dataset.spec.cond.items()} == {"caption": "text", "age": "vector"}
    batch = dataset.batch(torch.arange(20))
    expected = np.stack([pixels(8, 8, seed=i).transpose(2, 0, 1) for i in range(20)]) / 127.5 - 1
    np.testing.assert_allclose(batch["x"], expected, atol=1e-6)
    assert batch["cond"]["label"].tolist() == [i % 3 for i in range(20)]
    assert bytes(batch["cond"]["caption"][12].tolist()) == b"picture 12"
    assert any("columns not used: id" in line for line in dataset.summary())


def test_a_lazy_table_gives_the_same_batches(datasets: Any, tmp_path: Path):
    source = saved(datasets, tmp_path / "data", "disk", tables.pictures(datasets))
    held, lazy = (open_data(str(source), DataOptions(lazy=choice, limit=15, pair="edges")) for choice in (False, True))
    assert isinstance(lazy, LazyDataset) and len(lazy) == 15
    for a, b in zip(split(held), split(lazy), strict=True):
        one, other = a.batch(torch.arange(len(a))), b.batch(torch.arange(len(b)))
        assert torch.equal(one["x"], other["x"]) and one["cond"].keys() == other["cond"].keys()
        assert all(torch.equal(one["cond"][name], other["cond"][name]) for name in one["cond"])
        assert one["cond"]["source"].shape[1:] == (1, 8, 8)


def test_splits_and_columns_that_are_not_there_are_refused(datasets: Any, tmp_path: Path):
    source = str(saved(datasets, tmp_path / "data", "splits", tables.pictures(datasets)))
    assert len(open_data(source, DataOptions(split="test"))) == 2
    for options, message in (
        ({"split": "valid"}, "has the splits train, test"),
        ({"key": "photo"}, r"no column data.key='photo' .*image \(picture\)"),
        ({"pair": "caption"}, "no column data.pair='caption' of pictures"),
        ({"units": "bytes"}, "data.units=bytes has no use"),
    ):
        with pytest.raises(DataError, match=message):
            open_data(source, DataOptions(**options))
    folder = str(saved(datasets, tmp_path / "folder", "folder", tables.pictures(datasets)))
    assert len(open_data(folder, DataOptions(split="test"))) == 1
    with pytest.raises(DataError, match=r"no file .* is named after"):
        open_data(folder, DataOptions(split="valid"))


def test_unreadable_pictures_of_a_table_are_counted(datasets: Any, tmp_path: Path):
    source = str(saved(datasets, tmp_path / "data", "disk", tables.pictures(datasets, broken=(3,))))
    dataset = open_data(source)
    assert len(dataset) == 19 and str(dataset.problems[0]).startswith("row 3: it is not a picture")
    with pytest.raises(DataError, match="1 of 20"):
        open_data(source, DataOptions(max_bad=0.0))


def test_columns_of_numbers_are_features(datasets: Any, tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(30, 2))
    table = datasets.Dataset.from_dict({"a": x[:, 0], "label": ["p", "q"] * 15, "b": x[:, 1], "c": list(range(30))})
    source = str(saved(datasets, tmp_path / "data", "parquet", table))
    dataset = open_data(source, DataOptions(cond="c:vector"))
    assert dataset.spec.shape == (2,) and dataset.spec.classes == ("p", "q") and list(dataset.spec.cond) == ["c"]
    batch = dataset.batch(torch.arange(30))
    np.testing.assert_allclose(dataset.spec.from_model(batch["x"]), x, atol=1e-6)
    assert open_data(source, DataOptions(limit=10)).spec.shape == (3,)


def test_arrays_of_a_table_are_items(datasets: Any, tmp_path: Path):
    x = np.random.default_rng(0).integers(0, 255, size=(12, 6, 6), dtype=np.uint8)
    features = datasets.Features({"x": datasets.Array2D((6, 6), "uint8"), "age": datasets.Value("float32")})
    table = datasets.Dataset.from_dict({"x": x, "age": [float(i) / 2 for i in range(12)]}, features=features)
    dataset = open_data(str(saved(datasets, tmp_path / "data", "disk", table)))
    assert dataset.spec.kind == "image" and dataset.spec.shape == (1, 6, 6) and list(dataset.spec.cond) == ["age"]
    np.testing.assert_array_equal(dataset.data[:, 0], x)


def test_a_name_on_the_hub_is_taken_apart(datasets: Any, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def load(name: str, config: str | None, **options: Any) -> Any:
        asked.append((name, config, options["split"]))
        return tables.pictures(datasets)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(open_data("hf://owner/na-me.x")) == 20
    open_data("hf://owner/name:some config@train[:10%]")
    open_data("hf://name@test")
    open_data("hf://name", DataOptions(split="valid"))
    assert asked == [
        ("owner/na-me.x", None, None),
        ("owner/name", "some config", "train[:10%]"),
        ("name", None, "test"),
        ("name", None, "valid"),
    ]
    with pytest.raises(DataError, match="is no name on the hub"):
        open_data("hf://a/b/c")


def test_no_network_is_one_line(datasets: Any, monkeypatch: pytest.MonkeyPatch):
    def load(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"^cannot load hf://a/b: Couldn't reach the Hub .*network\.$"):
        open_data("hf://a/b")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pip install 'undiffuse\[data\]'"):
        open_data(str(tmp_path / "a.parquet"))


def test_a_damaged_table_is_one_line(datasets: Any, tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"cannot load .*a\.parquet: [^\n]*$"):
        open_data(str(tmp_path / "a.parquet"))
