"""Training on data that stay on disk: the same bits as from memory, and after any stop."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data import tables
from tests.data.files import encoded, pixels, save, write_shards, write_tar
from tests.training.tiny import vectors
from undiffuse.data import DataOptions, open_data, split
from undiffuse.errors import DataError
from undiffuse.events import Advanced, Event, Message
from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint
from undiffuse.training.run import train
from undiffuse.training.share import Share
from undiffuse.training.stream import BatchStream

TINY = ("model.channels=8", "model.multipliers=[1]", "model.attention=[]", "train.batch_size=4")


def fit(source: object, out: Path, *overrides: str, steps: int = 7, listener: Any = None) -> dict[str, torch.Tensor]:
    hear = {} if listener is None else {"listener": listener}
    train(str(source), out=out, overrides=(*TINY, "train.preview_every=0", f"train.steps={steps}", *overrides), **hear)
    return read_checkpoint(checkpoints_in(out / "checkpoints")[-1]).tensors


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


class StopAt:
    """Presses Ctrl-C when a step is done."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.pressed = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Advanced) and event.done == self.step and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), signal.SIGINT)


def test_lazy_data_train_to_the_same_bits(tmp_path: Path):
    for i in range(12):
        save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", pixels(8, 8, seed=i))
    held = fit(tmp_path / "photos", tmp_path / "held", "data.flip=true", steps=3)
    lazy = fit(tmp_path / "photos", tmp_path / "lazy", "data.flip=true", "data.lazy=true", steps=3)
    assert_same(held, lazy)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("undiffuse-read")]


STREAM = ("data.stream=true", "data.shuffle=8", "data.holdout=5", "train.log_every=1")


@pytest.mark.parametrize("how", ["shards", pytest.param("parquet", marks=pytest.mark.slow)])
def test_a_stopped_stream_goes_on_with_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str):
    if how == "shards":
        source = write_shards(tmp_path)
    else:
        datasets = tables.library(monkeypatch, tmp_path / "cache")
        source = str(tmp_path / "set.parquet")
        tables.pictures(datasets, 30).to_parquet(source)
    whole = fit(source, tmp_path / "whole", *STREAM, steps=12)  # 48 items of a stream of 25: almost two passes
    cut = fit(source, tmp_path / "cut", *STREAM, steps=12, listener=StopAt(7))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("undiffuse-read")]
    assert any(not torch.equal(cut[name], whole[name]) for name in whole)  # it did stop on the way
    assert_same(whole, fit(source, tmp_path / "cut", *STREAM, steps=12))


def seen(dataset: Any, share: Share, steps: int, batch_size: int = 4, seed: int = 0) -> list[torch.Tensor]:
    """Return the stable numbers of the items that a process sees, by step."""
    stream = BatchStream.__new__(BatchStream)
    stream.batch_size, stream.share, stream.rows = batch_size, share, batch_size // share.size
    from undiffuse.training.order import make_order

    order = make_order(dataset, seed, batch_size)
    return [dataset.batch(order.positions(stream.items(step, 1)))["index"] for step in range(steps)]


def test_processes_share_the_rows_of_a_stream(tmp_path: Path):
    source = write_shards(tmp_path)

    def training() -> Any:
        return split(open_data(source, DataOptions(stream=True, shuffle=8)), 6)[0]

    whole = seen(training(), Share(), 12)
    parts = [seen(training(), Share(rank, 2), 12) for rank in range(2)]
    for step, rows in enumerate(whole):
        assert torch.equal(torch.cat([parts[0][step], parts[1][step]]), rows)
    assert sorted(torch.cat(whole).tolist()) == list(range(48))


def test_another_seed_shuffles_a_stream_otherwise(tmp_path: Path):
    dataset = split(open_data(write_shards(tmp_path), DataOptions(stream=True, shuffle=8)), 6)[0]
    a, b = (torch.cat(seen(dataset, Share(), 6, seed=seed)) for seed in (0, 1))
    assert not torch.equal(a, b) and sorted(a.tolist()) == sorted(b.tolist())
    dataset.close()


def test_items_found_unreadable_while_training_are_told(tmp_path: Path):
    members = [(f"{i:03}.png", encoded(pixels(4, 4, seed=i))[: 60 if i == 280 else None]) for i in range(300)]
    told: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Message) and event.level == "warning":
            told.append(event.text)

    source = write_tar(tmp_path / "a.tar", members)
    fit(source, tmp_path / "run", "data.stream=true", "data.holdout=200", listener=hear, steps=1)
    assert (
        len(told) == 1 and f"1 item(s) could not be read and were replaced by others: item 280 of {source}" in told[0]
    )


def test_too_many_unreadable_items_end_the_run_and_its_threads(tmp_path: Path):
    for i in range(12):
        save(tmp_path / "photos" / f"{i}.png", pixels(8, 8, seed=i))
    for i in range(4):  # whole headers, so that they are found while training
        path = tmp_path / "photos" / f"{i}.png"
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="turned out to be unreadable"):
        fit(tmp_path / "photos", tmp_path / "run", "data.lazy=true", "data.holdout=0")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("undiffuse-read")]


def test_data_in_memory_know_nothing_of_reading_ahead():
    assert not hasattr(vectors(), "prefetch") and not hasattr(vectors(), "close")
