"""Data of every form through the command: tables, shards, pairs, captions, streams."""

from __future__ import annotations

import io
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data import tables
from tests.data.files import make_zip, pixels, save, write_shards
from tests.e2e.command import TINY, Command, finish, start
from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return tables.pictures(tables.library(monkeypatch, tmp_path / "cache"))


def says(answer: Any, *parts: str) -> None:
    assert answer.code == 0, answer
    missing = [part for part in parts if part not in answer.out]
    assert not missing, (missing, answer.out)


@pytest.mark.parametrize("how", ["set.parquet", pytest.param("set", marks=pytest.mark.slow)])
def test_a_table_trains_and_its_model_samples(undiffuse: Command, table: Any, how: str):
    table.to_parquet(how) if how.endswith("parquet") else table.save_to_disk(how)
    says(
        undiffuse("train", how, *TINY),
        "images of 8 x 8 pixels, RGB",
        "3 classes: z (",
        "condition caption: text",
        "condition age: 1 number(s)",
        "columns not used: id",
    )
    answer = undiffuse("sample", "runs/set", "-n", 2, "--steps", 2, "--label", "x", "--cond", "caption=picture 3")
    assert answer.code == 0, answer


def test_lazy_shards_train_and_are_evaluated(undiffuse: Command, tmp_path: Path):
    write_shards(tmp_path)
    says(
        undiffuse("train", "part-{00..02}.tar", *TINY, "data.lazy=true", "--out", "run"),
        "samples of 3 shard(s); .png is learnt",
        "read from disk while training",
        "held out 3 items",
    )
    assert undiffuse("info", "run").code == 0


def test_captions_beside_pictures_train(undiffuse: Command, tmp_path: Path):
    for i in range(12):
        save(tmp_path / "photos" / f"{i}.png", pixels(8, 8, seed=i))
        (tmp_path / "photos" / f"{i}.txt").write_text(f"picture {i}")
    says(undiffuse("train", "photos", *TINY), "condition caption: text of 10 bytes at most")


def test_pairs_train(undiffuse: Command, tmp_path: Path):
    for i in range(12):
        save(tmp_path / "photos" / "target" / f"{i}.png", pixels(8, 8, seed=i))
        save(tmp_path / "photos" / "input" / f"{i}.png", pixels(8, 8, 1, seed=i))
    says(undiffuse("train", "photos", *TINY), "pairs: target of the folder photos is learnt, given input")


def test_what_cannot_be_fed_is_one_line(undiffuse: Command, tmp_path: Path):
    save(tmp_path / "photos" / "0.png", pixels(8, 8))
    assert undiffuse("train", "part-{0..3}.tar", *TINY).refuses("4 of 4 shard(s) are not there", "part-0.tar")
    assert undiffuse("train", "photos", *TINY, "data.stream=true").refuses("cannot be read as a stream")
    assert undiffuse("train", "digits", *TINY, "data.stream=true").refuses("data.stream=True has no use")
    assert undiffuse("train", "photos", *TINY, "data.cond=age").refuses("no column 'age'")
    assert undiffuse("train", "photos", *TINY, "data.cond=age:colour").refuses("data.cond has the part 'age:colour'")
    (tmp_path / "a.parquet").write_bytes(b"nothing")
    pytest.importorskip("datasets")
    assert undiffuse("train", "a.parquet", *TINY).refuses("cannot load a.parquet", "check the files")


SMALL = ("model.channels=8", "model.multipliers=[1]", "model.attention=[]", "model.blocks=1")
STREAM = ("data.stream=true", "data.holdout=6", "data.shuffle=16", "train.batch_size=4", *SMALL)


@pytest.mark.slow
def test_a_stream_that_was_killed_ends_with_the_same_weights(tmp_path: Path):
    write_shards(tmp_path)
    words = ("train", "part-{00..02}.tar", *STREAM, "train.steps=60", "train.preview_every=0")
    steps = ("train.checkpoint_every=5", "train.log_every=5")
    assert finish(start(*words, *steps, "--out", "whole", cwd=tmp_path)).code == 0
    process = start(*words, *steps, "--out", "cut", cwd=tmp_path)
    deadline = time.monotonic() + 100
    while not checkpoints_in(tmp_path / "cut" / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    finish(process)
    last = read_checkpoint(checkpoints_in(tmp_path / "cut" / "checkpoints")[-1]).facts["step"]
    assert 5 <= last < 60
    answer = finish(start(*words, *steps, "--out", "cut", cwd=tmp_path))
    assert answer.code == 0 and f"resuming at step {last} of 60" in answer.out
    whole, cut = (
        read_checkpoint(checkpoints_in(tmp_path / run / "checkpoints")[-1]).tensors for run in ("whole", "cut")
    )
    assert [name for name in whole if not (whole[name] == cut[name]).all()] == []


@pytest.mark.slow
def test_a_zip_with_a_table_of_captions_trains(undiffuse: Command, tmp_path: Path):
    def png(i: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels(8, 8, seed=i)).save(buffer, "PNG")
        return buffer.getvalue()

    rows = "\n".join(f"{i}.png,photo no. {i},{i}.5" for i in range(12))
    files = {f"{i}.png": png(i) for i in range(12)} | {"metadata.csv": f"file_name,caption,size\n{rows}".encode()}
    make_zip(tmp_path / "photos.zip", files)
    says(undiffuse("train", "photos.zip", *TINY), "conditions read from metadata.csv", "condition size: 1 number(s)")
