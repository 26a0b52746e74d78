"""Arrays of token ids: what they are read as, what a model of them reads and writes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import undiffuse as ud
from undiffuse.cli.main import run
from undiffuse.data import DataOptions, decode_text, encode_text, open_data
from undiffuse.errors import DataError

TOKENS = DataOptions(layout="tokens")
SMALL = ["model.width=16", "model.depth=1", "model.heads=2", "train.steps=3", "train.batch_size=4"]
IDS = np.random.default_rng(0).integers(0, 12, (30, 6))


def saved(folder: Path, values: np.ndarray, name: str = "ids.npy") -> str:
    np.save(folder / name, values)
    return str(folder / name)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32])
def test_sequences_have_one_vocabulary_for_all_places(tmp_path: Path, dtype: type) -> None:
    data = open_data(saved(tmp_path, IDS.astype(dtype)), TOKENS)
    assert (data.spec.kind, data.spec.shape, data.spec.categories, data.spec.grid) == ("tokens", (6,), 12, ())
    assert np.array_equal(data.batch(torch.arange(30))["x"].numpy(), IDS)
    assert data.summary()[0] == "30 rows of 6 tokens, 12 values in all"
    assert "12 of the ids 0 to 11 occur; the mask of the process is 12" in data.summary()
    row = decode_text(torch.tensor([3, 11, 12]), data.spec)
    assert row == "#3#11_"
    assert encode_text("#3 #11#0", data.spec).tolist() == [3, 11, 0]


def test_grids_labels_and_limits_are_read_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "codes.npz", data=IDS.reshape(30, 2, 3), labels=np.arange(30) % 3)
    data = open_data(str(tmp_path / "codes.npz"), DataOptions(layout="tokens", limit=20))
    assert data.spec.grid == (2, 3) and data.spec.shape == (6,) and len(data.spec.classes) == 3 and len(data) == 20
    again = open_data(str(tmp_path / "codes.npz"), spec=data.spec)
    assert np.array_equal(again.batch(torch.arange(30))["x"].numpy(), IDS)


def test_a_model_of_ids_is_trained_sampled_completed_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, IDS)
    assert run(["train", "ids.npy", "data.layout=tokens", *SMALL, "--out", "run"]) == 0
    capsys.readouterr()
    assert run(["sample", "run", "-n", "3", "--prefix", "#3#11", "--out", "drawn", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {Path(name).suffix for name in said["files"]} == {".npy", ".txt", ".json"}
    drawn = np.load(said["main"])
    assert drawn.shape == (3, 6) and drawn.dtype == np.int64 and (drawn[:, :2] == [3, 11]).all() and drawn.max() < 12
    model = ud.load("run")
    done = ud.inpaint(model, "#3__#5", samples=2)
    assert (done.samples[..., [0, 3]] == torch.tensor([3, 5])).all()
    names = [row.name for row in ud.evaluate(model, "ids.npy", n=8).rows]
    assert {"held-out text", "unigram entropy"} <= set(names)
    with pytest.raises(DataError, match=r"names no ids.*#3#11#2"):
        model.sample(1, prefix="abc")
    with pytest.raises(DataError, match="names the id 12; the model knows 0 to 11"):
        model.sample(1, prefix="#12")
    with pytest.raises(DataError, match=r"ids from 0 to 12; the model knows 0 to 11. A mask is no data"):
        open_data(saved(tmp_path, np.where(IDS == 11, 12, IDS), "masked.npy"), spec=model.spec)
    with pytest.raises(DataError, match=r"rows of \(5,\) ids but the model works on \(6,\)"):
        open_data(saved(tmp_path, IDS[:, :5], "short.npy"), spec=model.spec)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (IDS - 1, "ids from -1 to 10"),
        (IDS + 0.5, "not whole"),
        (IDS * 100_000, "expected 0 to 131071 at most"),
        (IDS[:, 0], r"of shape \(30,\); token ids are whole numbers"),
    ],
)
def test_what_are_no_ids_is_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(saved(tmp_path, values), TOKENS)


def test_ids_are_not_mirrored(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.flip mirrors images and video"):
        open_data(saved(tmp_path, IDS), DataOptions(layout="tokens", flip=True))
