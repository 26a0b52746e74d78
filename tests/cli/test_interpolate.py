"""`undiffuse interpolate`: files of pictures, lines of texts, and one line for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tasks.test_completion import continuous, letters, network, pictures
from undiffuse.cli.main import run
from undiffuse.images import read_recipe
from undiffuse.models import Model
from undiffuse.process.categorical import CategoricalProcess


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one", "other")):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8)).astype(np.uint8)).save(f"{name}.png")


def test_pictures_stand_beside_each_other_and_texts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    pictures("absorbing").save(Path("codes"))
    words = ["codes", "one.png", "other.png", "--shares", "0,0.5,1", "--start", "0.3", "--samples", "2", "--steps", "2"]
    assert run(["interpolate", *words, "--label", "x", "--out", "there", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shares"] == [0.0, 0.5, 1.0] and len(found["files"]) >= 7
    assert Path(found["main"]).name == "strip-seed0-n6.png"
    assert read_recipe(found["main"])["interpolate"]["start"] == 0.3
    spec = letters().spec
    Model(network(spec, CategoricalProcess("absorbing", 3), unet=False), spec).save(Path("text"))
    assert run(["interpolate", "text", "ab", "cc", "--shares", "0,1", "--start", "0"]) == 0
    said = capsys.readouterr()
    assert "0: ab" in said.out + said.err and "1: cc" in said.out + said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("codes", "one.png", "other.png", "--shares", "a,b"), "is no list of numbers"),
        (("codes", "one.png", "other.png", "--start", "2"), "must be in [0, 1]"),
        (("codes", "one.png", "gone.png"), "gone.png"),
        (("pixels", "one.png", "other.png"), "interpolate mixes tokens, and this model is continuous"),
        (("codes", "one.png", "other.png", "--label", "x,y"), "several values"),
    ],
)
def test_what_does_not_fit_is_one_line(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (continuous() if words[0] == "pixels" else pictures("absorbing")).save(Path(words[0]))
    capsys.readouterr()
    assert run(["interpolate", *words]) != 0
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
