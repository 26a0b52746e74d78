"""Models that are damaged, dangerous, or not there."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.e2e.command import TINY, Command


@pytest.fixture
def model(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of a model that a test may damage."""
    return Path(shutil.copytree(digits_run, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints")))


def test_a_model_that_is_not_there_is_refused(undiffuse: Command):
    assert undiffuse("sample", "nothing").refuses("'nothing'", "give a run's folder or a built-in model")


def test_data_given_as_a_model_lead_to_the_run_on_them(undiffuse: Command, digits_run: Path, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    shutil.copytree(digits_run, tmp_path / "runs" / "photos")
    assert undiffuse("sample", "photos").refuses("photos holds no config.json", "Did you mean runs/photos?")


def test_a_truncated_file_is_refused(undiffuse: Command, model: Path):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert undiffuse("sample", "model").refuses("model.safetensors", "truncated", "copy it again")


def test_a_pickle_by_another_name_is_refused_and_not_run(undiffuse: Command, model: Path, tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    (model / "model.safetensors").write_bytes(pickle.dumps(Trap(), protocol=4))
    assert undiffuse("sample", "model").refuses("is a pickle", "Convert it")
    assert not (tmp_path / "sprung").exists()


def test_weights_of_another_shape_are_refused(undiffuse: Command, model: Path):
    tensors = load_file(model / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    save_file(tensors | {name: tensors[name][:1].contiguous()}, model / "model.safetensors")
    assert undiffuse("sample", "model").refuses(name, "has shape", "Put the two files of one model together")


def test_missing_weights_are_refused(undiffuse: Command, model: Path):
    (model / "model.safetensors").unlink()
    assert undiffuse("sample", "model").refuses("model.safetensors is missing")


def test_a_newer_schema_is_refused(undiffuse: Command, model: Path):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"schema": 99}))
    assert undiffuse("sample", "model").refuses("schema 99", "update undiffuse")


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "undiffuse", "schema": 1}'])
def test_a_damaged_description_is_refused(undiffuse: Command, model: Path, text: str):
    (model / "config.json").write_text(text)
    assert undiffuse("sample", "model").refuses("config.json")


def test_a_damaged_checkpoint_is_refused_with_the_way_back(undiffuse: Command, tmp_path: Path):
    assert undiffuse("train", "digits", *TINY, "--out", "run").code == 0
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    state = checkpoint / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    assert undiffuse("train", "digits", *TINY, "--out", "run").refuses(checkpoint.name, "delete this folder")
