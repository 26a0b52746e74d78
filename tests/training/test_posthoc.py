"""Averages after the run against the same averages tracked beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.tiny import tiny_trainer
from undiffuse.distillation import distill
from undiffuse.errors import CheckpointError
from undiffuse.models import load
from undiffuse.training.posthoc import combination_for, reconstruct_ema, snapshots_in
from undiffuse.training.run import train

STEPS = 200
SMALL = ["model.width=16", "model.depth=1", "data.limit=200"]
SHORT = {"steps": STEPS, "batch_size": 16, "checkpoint_every": 1000, "preview_every": 0, "warmup": 5, "lr": 2e-2}


def trained(folder: Path, **options) -> Path:
    return train("moons", out=folder, overrides=SMALL, **SHORT, **options).folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("posthoc") / "run", snapshot_every=STEPS // 20)


def distance(model, other) -> float:
    """Return the distance of the weights relative to their size."""
    a, b = (torch.cat([p.detach().double().flatten() for p in of.module.parameters()]) for of in (model, other))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15])
def test_a_reconstruction_is_the_average_that_was_tracked(run, tmp_path, width):
    direct = load(trained(tmp_path / "direct", ema=(width,)))
    error = distance(reconstruct_ema(run, width), direct)
    assert error < 1e-4  # 1e-3 was asked for
    assert error < 0.05 * distance(load(run), direct)  # most of a weight is what it was at the start: a harder measure


def test_the_width_of_the_model_gives_the_model(run):
    model = reconstruct_ema(run, 0.05)
    assert distance(model, load(run)) < 1e-6
    assert (model.info["ema"], model.info["step"]) == (0.05, STEPS)
    assert model.info["ema_misfit"] < 1e-6
    assert torch.equal(model.sample(2), model.sample(2))


def test_averages_of_every_seventh_step_are_reconstructed_too(tmp_path):
    run = trained(tmp_path / "run", snapshot_every=STEPS // 20, ema_every=7)  # 200 is no multiple of 7
    assert distance(reconstruct_ema(run, 0.05), load(run)) < 1e-6
    direct = load(trained(tmp_path / "direct", ema=(0.07,), ema_every=7))
    assert distance(reconstruct_ema(run, 0.07), direct) < 1e-4  # as where every step is taken in
    every = load(trained(tmp_path / "every", ema=(0.07,)))
    assert 1e-4 < distance(direct, every) < 2e-3  # half of 7 steps later, of the 14 that a width has


def test_half_precision_takes_half_the_disk(run, tmp_path):
    halved = trained(tmp_path / "half", snapshot_every=STEPS // 20, snapshot_dtype="float16")
    whole, half = (snapshots_in(folder)[0].path.stat().st_size for folder in (run, halved))
    assert half < 0.6 * whole
    assert distance(reconstruct_ema(halved, 0.07), reconstruct_ema(run, 0.07)) < 1e-3  # 2^-11, twice over


def test_a_run_that_goes_on_forgets_snapshots_of_later_steps(tmp_path):
    trainer = tiny_trainer(tmp_path, "watched", 40)
    trainer.resume()
    while trainer.state.step < 34:
        trainer.step()
        trainer._after_step(trainer.clock())
    (tmp_path / "ema" / ".step-00000041.safetensors.1.part").write_bytes(b"half")
    tiny_trainer(tmp_path, "watched", 40).resume()  # from step 30
    assert [snapshot.step for snapshot in snapshots_in(tmp_path)] == [7, 14, 21, 28]
    assert len(list((tmp_path / "ema").iterdir())) == 4


def test_a_run_without_snapshots_is_told_how_to_make_them(tmp_path):
    with pytest.raises(CheckpointError, match=r"train\.snapshot_every"):
        reconstruct_ema(tmp_path, 0.05)


def test_damaged_and_foreign_snapshots_are_named(run, tmp_path):
    other = train("moons", out=tmp_path, overrides=["model.width=8", "data.limit=200"], **SHORT | {"steps": 2}).folder
    (other / "ema").mkdir()
    path = other / "ema" / "step-00000002.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"step-00000002.*remove it"):
        reconstruct_ema(other, 0.05)
    path.write_bytes(snapshots_in(run)[0].path.read_bytes())
    with pytest.raises(CheckpointError, match="another network"):
        reconstruct_ema(other, 0.05)


def test_a_width_out_of_range_is_refused(run):
    with pytest.raises(ValueError, match=r"below 0\.288"):
        combination_for(snapshots_in(run), 0.5)


def test_where_averages_begin_anew_only_snapshots_of_the_last_part_count(run, tmp_path):
    rounds = {"first_steps": 4, "average": 0.1}
    keys = {"steps": STEPS, "batch_size": 16, "preview_every": 0, "checkpoint_every": 1000, "lr": 2e-2}
    teacher = load(run)
    folder = tmp_path / "student"
    distill(teacher, method="progressive", data="moons", out=folder, objective=rounds, snapshot_every=20, **keys)
    snapshots = snapshots_in(folder)
    assert [snapshot.step for snapshot in snapshots] == [120, 140, 160, 180, 200]
    assert {snapshot.begun for snapshot in snapshots} == {100}
    assert distance(reconstruct_ema(folder, 0.05), load(folder)) < 1e-6
    straight = tmp_path / "straight"
    distill(teacher, method="progressive", data="moons", out=straight, objective=rounds, ema=(0.08,), **keys)
    assert distance(reconstruct_ema(folder, 0.08), load(straight)) < 1e-3
