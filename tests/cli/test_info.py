"""`undiffuse info` reads data by the options that a training would take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from undiffuse.cli.main import run
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.models.model import Model
from undiffuse.networks.build import build_network
from undiffuse.networks.options import UNetOptions
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.spec import DataSpec


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


@pytest.mark.parametrize(
    ("schedule", "options", "said"),
    [
        ("ddpm", {"steps": 20}, "gaussian, table of 20 levels (linear betas 0.0001 to 0.02), predicts v"),
        ("scaled-linear", {}, "table of 1000 levels (scaled linear betas 0.00085 to 0.012)"),
        ("cosine-table", {"steps": 30}, "table of 30 levels (squaredcos cap v2 betas)"),
        ("ddpm", {"zero_terminal_snr": True}, "(linear betas 0.0001 to 0.02, ending in pure noise)"),
        ("table", {"alphas_cumprod": (0.9, 0.5, 0.1)}, "table of 3 levels (betas of its own, 0.1 to 0.8)"),
        ("cosine", {}, "gaussian, cosine schedule, predicts v"),
    ],
)
def test_a_schedule_is_described(schedule, options, said, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec = DataSpec(kind="image", shape=(1, 8, 8))
    network = build_network(UNetOptions(channels=8, multipliers=(1,), blocks=1), spec)
    denoiser = NetworkDenoiser(network, GaussianProcess(make_schedule(schedule, **options)), "v", spec=spec)
    Model(denoiser, spec).save(tmp_path / "model")
    assert run(["info", str(tmp_path / "model"), "--json"]) == 0
    assert said in json.loads(capsys.readouterr().out)["process"]
