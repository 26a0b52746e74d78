"""Models and the command in parallel over time, and with solvers that choose their steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from undiffuse.cli.main import run
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.models.model import Model
from undiffuse.models.parallel import sample_split
from undiffuse.models.processes import Processes
from undiffuse.networks.build import build_network
from undiffuse.networks.options import MLPOptions
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.spec import DataSpec

SPEC = DataSpec(kind="vector", shape=(3,), classes=("a", "b"))
ASKED = {"solver": "ddim", "steps": 12, "cond": {"label": [0, 1, 0, 1]}, "guidance": 2.0, "dtype": torch.float64}


@pytest.fixture(scope="module")
def model() -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(MLPOptions(width=8, depth=1), SPEC)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return Model(NetworkDenoiser(network, GaussianProcess(make_schedule("cosine")), "v", spec=SPEC), SPEC)


def test_guided_samples_of_classes_are_those_of_the_sequential_run(model: Model) -> None:
    plain = model.sample_result(4, **ASKED)
    found = model.sample_result(4, **ASKED, parallel=6, parallel_tol=0.0)
    torch.testing.assert_close(found.x, plain.x, rtol=1e-5, atol=1e-5)  # the network computes in float32
    assert (plain.calls, plain.sweeps) == (None, None)
    assert found.calls is not None and found.calls <= 12
    assert found.nfe >= plain.nfe == 24


def test_calls_of_all_batches_are_counted(model: Model) -> None:
    halves = [
        model.sample_result(2, **{**ASKED, "cond": {"label": [0, 1]}}, first=first, parallel=6) for first in (0, 2)
    ]
    whole = model.sample_result(4, **ASKED, batch_size=2, parallel=6)
    assert whole.calls == sum(half.calls or 0 for half in halves)
    split = sample_split(model, 4, processes=Processes.join(), **ASKED, batch_size=2, parallel=6)
    assert (split.calls, split.sweeps, split.nfe) == (whole.calls, whole.sweeps, whole.nfe)


def test_what_belongs_to_single_samples_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="negative and classifier belong to single samples"):
        model.sample_result(4, **ASKED, parallel=4, negative={"label": 1})


@pytest.mark.parametrize("solver", ["rk45", "dpm-adaptive-12", "dpm-adaptive-23"])
def test_adaptive_solvers_take_neither_steps_nor_a_named_grid(model: Model, solver: str) -> None:
    with pytest.raises(ValueError, match=r"steps=5, but .* chooses its own"):
        model.sample_result(2, solver=solver, steps=5)
    with pytest.raises(ValueError, match="leave the grid out"):
        model.sample_result(2, solver=solver, grid="t")
    ends = torch.tensor([0.9, 0.1], dtype=torch.float64)
    start = torch.ones(2, 3)
    loose = {"rtol": 0.05, "atol": 0.05}
    assert model.sample_result(2, solver=solver, grid=ends, start=start, solver_options=loose).x.isfinite().all()
    model.defaults["steps"] = 7  # of another solver: a default is no wish
    try:
        assert model.sample_result(2, solver=solver, solver_options=loose).nfe > 2
    finally:
        del model.defaults["steps"]


def test_the_command_says_how_many_calls_it_took(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.save(tmp_path / "model")
    words = ["sample", str(tmp_path / "model"), "-n", "2", "--solver", "ddim", "--steps", "8", "--json"]
    assert run([*words, "--out", str(tmp_path / "a"), "--parallel", "4", "--parallel-tol", "0.5"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["sampling"]["parallel"] == 4
    assert said["sampling"]["parallel_tol"] == 0.5
    assert 2 <= said["sweeps"] == said["calls"] <= 8
    assert run([*words, "--out", str(tmp_path / "b"), "--parallel-tol", "0.5"]) == 1
    assert "--parallel-tol 0.5 belongs to --parallel" in capsys.readouterr().err
    assert run([*words, "--out", str(tmp_path / "c")]) == 0
    assert "calls" not in json.loads(capsys.readouterr().out)
