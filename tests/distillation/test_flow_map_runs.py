"""Objectives over flow maps in the trainer: runs that stop and go on bit for bit, and commands from end to end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distillation.tiny import mlp_denoiser
from tests.training.tiny import vectors
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.distillation import distill
from undiffuse.errors import ConfigError
from undiffuse.models import Model
from undiffuse.networks import MLPOptions, build_network
from undiffuse.spec import DataSpec
from undiffuse.training import train
from undiffuse.training.checkpoints import CHECKPOINTS, newest_checkpoint

METHODS = ("meanflow", "shortcut", "ctm", "dmd", "reflow")
SHORT: dict[str, Any] = {
    "batch_size": 16,
    "warmup": 2,
    "log_every": 2,
    "checkpoint_every": 3,
    "preview_every": 0,
    "validate_items": 32,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of labelled points with random weights."""
    spec = DataSpec(kind="vector", shape=(2,), classes=("a", "b"))
    held = mlp_denoiser("v", labels=True)
    network = build_network(MLPOptions(width=16, depth=1), spec, seed=1)
    return Model(NetworkDenoiser(network, held.process, "v", spec=spec), spec).save(tmp_path_factory.mktemp("teacher"))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found = newest_checkpoint(folder / CHECKPOINTS, torch.device("cpu"))
    assert found is not None
    return found.tensors


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_goes_on_is_the_run_that_never_stopped(teacher, tmp_path, method):
    objective = {"guidance": 2.0} if method in ("meanflow", "dmd") else {}
    settings: dict[str, Any] = {"method": method, "data": vectors(), "objective": objective, **SHORT}
    distill(teacher, out=tmp_path / "whole", steps=6, **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(sorted((tmp_path / "parts" / CHECKPOINTS).iterdir())[-1])  # as if it had stopped after step 3
    model = distill(teacher, out=tmp_path / "parts", steps=6, **settings)
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items() if not name.startswith("window"))
    assert model.sample(3, cond={"label": [0, 1, 1]}, seed=1).shape == (3, 2)
    assert torch.isfinite(model.sample(3, cond={"label": 1}, steps=2, seed=1)).all()


@pytest.mark.parametrize("objective", ["meanflow", "shortcut", "ctm"])
def test_from_data_alone_by_train(tmp_path, objective):
    run = train(vectors(), "vector", out=tmp_path, objective=objective, model="mlp", steps=3, **SHORT)
    assert run.finished and run.model.sample(3, steps=1).shape == (3, 2)


def test_a_model_can_guide_itself(tmp_path):
    given = {"kind": "meanflow", "guidance": 2.0, "kappa": 0.5}
    run = train(vectors(), "vector", out=tmp_path, objective=given, model="mlp", steps=3, **SHORT)
    assert run.model.module.guided == 2.0


@pytest.mark.parametrize("objective", ["dmd", "reflow"])
def test_what_needs_a_teacher_says_so(tmp_path, objective):
    with pytest.raises(ConfigError, match=rf"{objective} learns from a teacher.*distill"):
        train(vectors(), "vector", out=tmp_path, objective=objective, model="mlp", steps=3, **SHORT)


def test_guidance_without_conditions_is_refused(tmp_path):
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="guidance"):
        train(points, "vector", out=tmp_path, objective={"kind": "meanflow", "guidance": 2.0}, steps=3, **SHORT)
