"""`--label` and `--cond`: what is asked for by words, and by files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.cli.conditions import load_conditions, of_sample, read_conditions
from undiffuse.cli.main import run
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.images import read_recipe
from undiffuse.models import Model
from undiffuse.models.conditions import fit_conditions
from undiffuse.networks import UNetOptions, build_network
from undiffuse.process import GaussianProcess, make_schedule
from undiffuse.spec import ConditionSpec, DataSpec

SPEC = DataSpec(
    kind="image",
    shape=(3, 4, 6),
    range=(0, 255),
    classes=("cat", "dog"),
    cond={
        "colour": ConditionSpec(kind="label", classes=("red", "green", "none")),
        "caption": ConditionSpec(kind="text", length=20),
        "pose": ConditionSpec(kind="vector", width=2),
        "clip": ConditionSpec(kind="embedding", length=3, width=2),
        "depth": ConditionSpec(kind="map", width=1),
    },
)


def test_labels_take_turns_in_all_combinations_where_nothing_is_asked_for():
    assert read_conditions([], [], 4, SPEC) == {"label": [0, 1, 0, 1], "colour": [0, 0, 1, 1]}


def test_what_is_asked_for_several_times_takes_turns():
    words = ["caption=a cat, red", "caption=x=1", "pose=1,2", "pose=3,4", "colour=red,none"]
    assert read_conditions([], words, 3, SPEC) == {
        "caption": ["a cat, red", "x=1", "a cat, red"],
        "pose": [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]],
        "colour": ["red", "none", "red"],
    }
    assert read_conditions(["none"], ["caption=a cat"], 2, SPEC) == {"caption": "a cat"}


def test_each_sample_is_told_its_own_conditions():
    cond = {"label": ["cat", 1], "caption": "a", "pose": [1.0, 2.0], "depth": ["a.png", "b.png"]}
    assert of_sample(cond, 1, SPEC) == {"label": 1, "caption": "a", "pose": [1.0, 2.0], "depth": "b.png"}
    assert of_sample({"pose": [[1.0, 2.0], [3.0, 4.0]]}, 1, SPEC) == {"pose": [3.0, 4.0]}
    assert of_sample(None, 1, SPEC) == {}


def test_pictures_and_arrays_become_maps_and_embeddings(tmp_path: Path):
    picture, array, clip = (str(tmp_path / name) for name in ("a.png", "b.npy", "c.npy"))
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    Image.fromarray(grey).save(picture)
    np.save(array, np.full((1, 4, 6), 0.25, dtype=np.float32))
    np.save(clip, np.ones((2, 2)))
    cond = read_conditions([], [f"depth={picture}", f"depth={array}", f"clip={clip}"], 3, SPEC)
    fitted = fit_conditions(load_conditions(cond, SPEC), 3, SPEC, torch.device("cpu"))
    expected = torch.from_numpy(grey.astype(np.float32)) / 127.5 - 1
    torch.testing.assert_close(fitted["depth"][0, 0], expected)
    assert torch.equal(fitted["depth"][2], fitted["depth"][0]) and (fitted["depth"][1] == 0.25).all()
    assert fitted["clip"].shape == (3, 3, 2)


def test_a_picture_of_another_size_is_brought_to_that_of_the_data(tmp_path: Path):
    Image.new("RGB", (60, 60), (255, 255, 255)).save(tmp_path / "white.png")
    loaded = load_conditions({"depth": str(tmp_path / "white.png")}, SPEC)
    assert loaded is not None and torch.equal(loaded["depth"], torch.ones(1, 4, 6))


@pytest.mark.parametrize(
    ("name", "file", "match"),
    [
        ("depth", "missing.png", "there is no such file"),
        ("depth", "broken.npy", "cannot be read as an array"),
        ("depth", "broken.png", "broken.png"),
        ("clip", "broken.png", "cannot be this condition, which is embedding data"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path: Path, name: str, file: str, match: str):
    for broken in ("broken.npy", "broken.png"):
        (tmp_path / broken).write_bytes(b"nothing")
    with pytest.raises(Exception, match=match):
        load_conditions({name: str(tmp_path / file)}, SPEC)


def test_the_command_samples_with_every_kind_of_condition(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = UNetOptions(channels=8, multipliers=(1,), blocks=1, heads=2)
    denoiser = NetworkDenoiser(build_network(options, SPEC), GaussianProcess(make_schedule("rf")), spec=SPEC)
    Model(denoiser, SPEC).save(tmp_path / "m")
    Image.new("L", (6, 4), 200).save(tmp_path / "d.png")
    words = ["caption=a red square", "pose=1,2", "colour=green", f"depth={tmp_path / 'd.png'}", "label=dog,cat"]
    asked = [word for text in words for word in ("--cond", text)]
    where = ["--out", str(tmp_path / "out"), "--steps", "2", "-n", "2"]
    assert run(["sample", str(tmp_path / "m"), *asked, *where, "--guidance", "2"]) == 0
    recipe = read_recipe(tmp_path / "out" / "seed0-00001.png")
    assert recipe is not None and recipe["label"] == "cat"
    told = {"caption": "a red square", "pose": [1.0, 2.0], "colour": "green", "depth": str(tmp_path / "d.png")}
    assert recipe["cond"] == told
    assert run(["sample", str(tmp_path / "m"), "--cond", "captoin=a", *where]) == 1
    assert "'captoin' is unknown" in capsys.readouterr().err
