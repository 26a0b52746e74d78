"""Items read from disk: the same batches as from memory, whatever the threads do."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.files import pixels, save
from undiffuse.data import DataOptions, TensorDataset, open_data, split
from undiffuse.data.dataset import Problem
from undiffuse.data.lazy import LazyDataset, Reader
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec


class Numbers:
    """Item i is the number i; some cannot be read."""

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.count

    def read(self, row: int) -> dict[str, np.ndarray]:
        self.reads.append(row)
        if row in self.bad:
            raise DataError(f"item {row} is bad")
        return {"x": np.full((1, 1, 1), row, dtype=np.float32)}


def numbers(count: int, bad: tuple[int, ...] = (), **options) -> LazyDataset:
    spec = DataSpec(kind="image", shape=(1, 1, 1), range=(-1.0, 1.0))
    return LazyDataset(reader=Reader(Numbers(count, bad), workers=2), spec=spec, **options)


def everything(dataset) -> dict:
    return dataset.batch(torch.arange(len(dataset)))


def folder_of(path: Path, count: int = 12) -> Path:
    for i in range(count):
        save(path / "ab"[i % 2] / f"{i:03}.png", pixels(9, 7, seed=i))
    return path


def test_lazy_pictures_are_those_in_memory(tmp_path: Path):
    folder = folder_of(tmp_path)
    lazy, held = (open_data(str(folder), DataOptions(lazy=choice, flip=True)) for choice in (True, False))
    assert isinstance(lazy, LazyDataset) and isinstance(held, TensorDataset)
    assert lazy.spec == held.spec
    for one, other in zip(split(lazy), split(held), strict=True):
        a, b = everything(one), everything(other)
        assert torch.equal(a["x"], b["x"]) and torch.equal(a["index"], b["index"])
        assert a["x"].stride() == b["x"].stride()  # else convolutions round differently
        assert torch.equal(a["cond"]["label"], b["cond"]["label"])
    assert "read from disk" in lazy.summary()[-1]


def test_pictures_beyond_the_memory_stay_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = folder_of(tmp_path)
    monkeypatch.setattr("undiffuse.data.memory.free_bytes", lambda: 1000)
    dataset = open_data(str(folder))
    assert isinstance(dataset, LazyDataset)
    assert len(everything(dataset)["x"]) == 12


def test_reading_ahead_reads_every_item_once():
    dataset = numbers(50)
    for start in range(0, 50, 10):
        dataset.prefetch(torch.arange(start, min(start + 20, 50)))
        assert dataset.batch(torch.arange(start, start + 10))["x"].flatten().tolist() == list(range(start, start + 10))
    assert sorted(dataset.reader.source.reads) == list(range(50))
    dataset.close()


def test_what_is_kept_is_bounded_in_bytes():
    reader = Reader(Numbers(10), cache_bytes=3 * 4)
    for row in range(10):
        reader.get(row)
    reader.source.reads.clear()
    for row in (9, 8, 7, 6):
        reader.get(row)
    assert reader.source.reads == [6]


def test_an_unreadable_item_is_replaced_by_the_next_of_its_part():
    dataset = numbers(10, bad=(3, 4, 9), max_bad=0.3, labels=torch.arange(10))
    assert everything(dataset)["x"].flatten().tolist() == [0, 1, 2, 5, 5, 5, 6, 7, 8, 0]
    assert everything(dataset)["cond"]["label"].tolist() == [0, 1, 2, 5, 5, 5, 6, 7, 8, 0]
    assert str(dataset.found_late()[0]) == "item 3: item 3 is bad"
    part = replace(numbers(10, bad=(3,), max_bad=0.3), rows=torch.tensor([1, 3, 8]))
    assert everything(part)["x"].flatten().tolist() == [1, 8, 8]


def test_too_many_unreadable_items_end_the_run():
    dataset = numbers(10, bad=(3, 4), max_bad=0.1)
    dataset.batch(torch.tensor([3]).new_tensor([0, 1, 2]))
    with pytest.raises(DataError, match=r"2 item\(s\) turned out.*max_bad=0.1 of 10"):
        everything(dataset)
    with pytest.raises(DataError):
        everything(numbers(3, bad=(0, 1, 2), max_bad=1.0))


def test_an_error_of_the_system_counts_as_unreadable(tmp_path: Path):
    class Gone(Numbers):
        def read(self, row: int) -> dict[str, np.ndarray]:
            raise FileNotFoundError(2, "No such file", "gone.png")

    assert Reader(Gone(1)).get(0) == Problem("gone.png", "no such file")


def test_closing_stops_the_threads_and_reading_can_go_on():
    dataset = numbers(20)
    dataset.prefetch(torch.arange(20))
    dataset.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("undiffuse-read")]
    assert len(everything(dataset)["x"]) == 20
    dataset.close()


def test_what_is_no_longer_wanted_is_dropped():
    dataset = numbers(20)
    dataset.prefetch(torch.arange(10))
    dataset.prefetch(torch.arange(10, 20))
    assert set(dataset.reader._coming) == set(range(10, 20))
    dataset.close()
