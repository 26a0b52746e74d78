"""`train` from end to end, in seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from undiffuse.config import load_yaml
from undiffuse.data import TensorDataset
from undiffuse.errors import CheckpointError, ConfigError, DataError, TrainingError
from undiffuse.events import Finished, Message, Started
from undiffuse.images import read_recipe
from undiffuse.models import Model
from undiffuse.spec import DataSpec
from undiffuse.training import run as run_module
from undiffuse.training.lock import locked
from undiffuse.training.run import train

SHORT = {
    "steps": 4,
    "batch_size": 8,
    "log_every": 2,
    "checkpoint_every": 2,
    "preview_every": 4,
    "previews": 4,
    "warmup": 1,
}
SMALL = ["model.channels=8", "model.multipliers=1,", "model.blocks=1", "sample.steps=3"]


def test_images_leave_a_model_a_log_and_pictures(tmp_path):
    events = []
    run = train("digits", out=tmp_path / "run", listener=events.append, overrides=SMALL, **SHORT)
    assert (run.step, run.finished, len(run.losses)) == (4, True, 2)
    assert load_yaml(tmp_path / "run" / "recipe.yaml")["data"]["source"] == "digits"
    made_by = read_recipe(tmp_path / "run" / "samples" / "step-00000004.png")
    assert made_by["step"] == 4 and made_by["recipe"]["model"]["channels"] == 8
    assert run.model.sample(2, cond={"label": 3}).shape == (2, 1, 8, 8)
    assert run.model.defaults["steps"] == 3
    kinds = [type(event) for event in events]
    assert kinds.index(Message) < kinds.index(Started) and kinds[-1] is Finished
    assert any("parameters" in event.text for event in events if isinstance(event, Message))


def test_text_and_vectors_choose_their_recipes(tmp_path):
    text = train(
        "prose", out=tmp_path / "text", overrides=["model.width=16", "model.depth=1", "data.length=16"], **SHORT
    )
    assert (tmp_path / "text" / "samples" / "step-00000004.txt").read_text().count("----") == 3
    assert text.model.sample(1).shape == (1, 16)
    vector = train("moons", out=tmp_path / "vector", overrides=["model.width=16", "data.limit=200"], **SHORT)
    assert vector.model.sample(3).shape == (3, 2)


def test_tokens_that_changed_their_meaning_are_refused(tmp_path):
    """Two texts of as many characters: the networks are of one shape, and a number is another character."""
    text, small = tmp_path / "text.txt", ["model.width=16", "model.depth=1", "data.length=16"]
    text.write_text("abba" * 100)
    train(text, out=tmp_path / "run", overrides=small, **SHORT)
    text.write_text("cddc" * 100)
    with pytest.raises(CheckpointError, match="tokens of another vocabulary"):
        train(text, out=tmp_path / "run", overrides=small, **{**SHORT, "steps": 6})
    with pytest.raises(CheckpointError, match="2 other tokens"):
        train(text, out=tmp_path / "other", overrides=small, init=str(tmp_path / "run"), **SHORT)
    text.write_text("baab" * 100)
    assert train(text, out=tmp_path / "run", overrides=small, **{**SHORT, "steps": 6}).step == 6


def test_the_same_call_resumes_and_another_recipe_is_refused(tmp_path):
    first = train("moons", out=tmp_path, overrides=["model.width=16", "data.limit=200"], **SHORT)
    again = train("moons", out=tmp_path, overrides=["model.width=16", "data.limit=200"], **{**SHORT, "keep": 1})
    assert again.losses == first.losses
    with pytest.raises(ConfigError, match=r"train.lr: 0.002 -> 0.1.*another out folder"):
        train("moons", out=tmp_path, overrides=["model.width=16", "data.limit=200"], **SHORT, lr=0.1)


def test_a_run_that_never_reached_a_checkpoint_may_start_again_with_another_recipe(tmp_path):
    with pytest.raises(TrainingError, match="are free"):
        train("moons", out=tmp_path, overrides=["model.width=4_000_000"], **SHORT)
    assert train("moons", out=tmp_path, overrides=["model.width=16", "data.limit=200"], **SHORT).finished


def test_a_recipe_file_names_its_data(tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {source: moons, limit: 200}\nmodel: {kind: mlp, width: 16}\n")
    run = train(tmp_path / "mine.yaml", out=tmp_path / "run", **SHORT)
    assert load_yaml(run.folder / "recipe.yaml")["data"]["limit"] == 200


def test_the_network_may_run_in_bfloat16(tmp_path):
    run = train("moons", out=tmp_path, overrides=["model.width=16", "data.limit=200"], **SHORT, precision="bfloat16")
    assert all(loss == loss for loss in run.losses)
    assert next(run.model.denoiser.parameters()).dtype == torch.float32


def test_two_equal_runs_are_equal_bit_for_bit(tmp_path):
    runs = [
        train("moons", out=tmp_path / name, overrides=["model.width=16", "data.limit=200"], **SHORT)
        for name in ("a", "b")
    ]
    assert runs[0].losses == runs[1].losses
    for a, b in zip(*(run.model.denoiser.parameters() for run in runs), strict=True):
        assert torch.equal(a, b)


def test_a_folder_in_use_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(TrainingError, match="another run"):
        train("moons", out=tmp_path, overrides=["data.limit=200"], **SHORT)


def test_an_out_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot make the out folder"):
        train("moons", out=tmp_path / "file" / "run", overrides=["data.limit=200"], **SHORT)


def test_a_run_without_data_is_refused():
    with pytest.raises(ConfigError, match="no data were named"):
        train(recipe="vector", **SHORT)


MOONS = {"overrides": ["model.width=16", "data.limit=200"], **SHORT}


def test_the_model_says_what_it_was_made_by(tmp_path):
    run = train("moons", out=tmp_path, **MOONS)
    info = run.model.info
    assert (info["step"], info["seed"]) == (4, 0) and f"torch {torch.__version__}" in info["versions"]
    assert info["recipe"]["data"]["source"] == "moons"
    assert "step: 4" in (tmp_path / "README.md").read_text()


def test_a_finished_run_whose_model_could_not_be_written_writes_it_when_called_again(tmp_path, monkeypatch):
    save = Model.save

    def full_disk(model: Model, folder):
        if model.info["step"] == 4:
            raise OSError(28, "No space left on device")
        return save(model, folder)

    with monkeypatch.context() as patch, pytest.raises(TrainingError, match="No space left"):
        patch.setattr(Model, "save", full_disk)
        train("moons", out=tmp_path, **MOONS)
    assert json.loads((tmp_path / "config.json").read_text())["info"]["step"] == 2
    again = train("moons", out=tmp_path, **MOONS)
    whole = train("moons", out=tmp_path / "whole", **MOONS)
    assert again.model.info["step"] == 4
    for a, b in zip(again.model.denoiser.parameters(), whole.model.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_folder_in_use_is_refused_before_the_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "open_data", lambda *of: pytest.fail("the data were read"))
    with locked(tmp_path), pytest.raises(TrainingError, match="another run"):
        train("moons", out=tmp_path, **MOONS)


def test_a_finished_run_may_be_made_longer_and_where_is_kept(tmp_path):
    heard = []
    steady = {**MOONS, "overrides": [*MOONS["overrides"], "train.decay=constant"]}
    train("moons", out=tmp_path / "a", **steady)
    longer = train("moons", out=tmp_path / "a", **{**steady, "steps": 8}, listener=heard.append)
    assert longer.step == 8 and longer.finished
    assert any("8 steps instead of 4" in event.text for event in heard if isinstance(event, Message))
    train("moons", out=tmp_path / "a", **{**steady, "steps": 8})
    assert json.loads((tmp_path / "a" / "run.json").read_text())["lengths"] == [{"at": 4, "from": 4, "to": 8}]
    assert load_yaml(tmp_path / "a" / "recipe.yaml")["train"]["steps"] == 8
    straight = train("moons", out=tmp_path / "b", **{**steady, "steps": 8})
    assert longer.losses == straight.losses  # at a constant rate the length changes nothing
    for a, b in zip(longer.model.denoiser.parameters(), straight.model.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ConfigError, match=r"made 8 steps already, but train\.steps=6"):
        train("moons", out=tmp_path / "a", **{**steady, "steps": 6})


def test_another_run_begins_with_the_weights_of_a_first(tmp_path):
    first = train("moons", out=tmp_path / "a", **MOONS)
    still = {**MOONS, "lr": 1e-30, "init": str(tmp_path / "a")}
    second = train("moons", out=tmp_path / "b", **still)
    for a, b in zip(first.model.denoiser.parameters(), second.model.denoiser.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)  # the average of equal numbers rounds
    misfit = {**still, "overrides": ["model.width=32", "data.limit=200"]}
    with pytest.raises(CheckpointError, match="does not fit"):
        train("moons", out=tmp_path / "c", **misfit)
    with pytest.raises(CheckpointError, match=r"process\.prediction"):
        train("moons", out=tmp_path / "d", **{**still, "overrides": [*MOONS["overrides"], "process.prediction=noise"]})


def points(n: int = 100) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 3)) * 5


def test_of_data_too_few_to_share_all_are_trained_on_and_nothing_is_held_out(tmp_path):
    train(points(4), out=tmp_path, **{**MOONS, "overrides": ["model.width=16"]})
    facts = json.loads((tmp_path / "run.json").read_text())
    assert (facts["items"], facts["held_out"]) == (4, 0)
    with pytest.raises(DataError, match="too few to hold out"):
        train(points(4), out=tmp_path / "b", **{**MOONS, "overrides": ["model.width=16", "data.holdout=0.1"]})


def test_the_folder_of_shards_has_a_plain_name():
    assert run_module.folder_name("a/shards-{000..002}.tar") == "shards-000-002"
    assert run_module.folder_name("hf://owner/name:train") == "name-train"


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, lambda x: torch.from_numpy(x).bfloat16()])
def test_arrays_and_tensors_are_data(tmp_path, convert):
    small = {"overrides": ["model.width=16"], **SHORT}
    run = train(convert(points()), out=tmp_path, **small)
    assert run.model.spec.shape == (3,) and 3 < run.model.spec.std[0] < 7
    assert train(convert(points()), out=tmp_path, **small).losses == run.losses
    with pytest.raises(DataError, match="the same call"):
        train(tmp_path / "recipe.yaml", out=tmp_path)


def test_a_data_set_is_data(tmp_path):
    spec = DataSpec(kind="image", shape=(1, 8, 8), classes=("a", "b"))
    data = TensorDataset(data=torch.rand(40, 1, 8, 8), spec=spec, labels=torch.arange(40) % 2)
    run = train(data, out=tmp_path, overrides=SMALL, **SHORT)
    assert run.model.sample(1, cond={"label": "b"}).shape == (1, 1, 8, 8)
    with pytest.raises(DataError, match=r"data\.limit"):
        train(data, out=tmp_path / "b", overrides=[*SMALL, "data.limit=5"], **SHORT)


def test_other_objects_are_refused_with_what_would_do(tmp_path):
    with pytest.raises(DataError, match=r"a list; .*numpy array"):
        train([1, 2, 3], out=tmp_path, **SHORT)
    with pytest.raises(DataError, match="given array"):
        train(np.array(["a", "b"]), out=tmp_path, **SHORT)
