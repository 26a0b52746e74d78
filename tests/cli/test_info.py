"""`undiffuse info` reads data by the options that a training would take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from undiffuse.cli.main import run


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    for number in range(2):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).random((4, 4, 4)))
    return tmp_path


def test_options_say_how_data_are_read(volumes: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["info", str(volumes), "data.layout=volume", "data.size=2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["shape"], facts["items"]) == ("volume", "1 x 2 x 2 x 2", 2)


@pytest.mark.parametrize(
    ("word", "said"),
    [("data.layuot=volume", "data.layout"), ("train.steps=3", "data.KEY=VALUE"), ("volume", "data.KEY=VALUE")],
)
def test_other_words_are_refused(volumes: Path, word: str, said: str, capsys: pytest.CaptureFixture[str]):
    assert run(["info", str(volumes), word]) != 0
    assert said in capsys.readouterr().err
