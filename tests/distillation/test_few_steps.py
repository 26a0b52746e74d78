"""What `distill` makes of a teacher: guidance, length, heads, sources, and what is kept in the folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.continuous import process_of
from tests.training.tiny import vectors
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.reschedule import Reschedule
from undiffuse.distillation.few_steps import distill, distill_run
from undiffuse.distillation.methods import METHODS
from undiffuse.distillation.options import ConsistencyOptions, DMDOptions, ProgressiveOptions, SCMOptions
from undiffuse.errors import CheckpointError, ConfigError, DataError, TrainingError
from undiffuse.models import Model, load
from undiffuse.networks.build import build_network
from undiffuse.networks.options import MLPOptions
from undiffuse.training.ema_sweep import sweep_ema
from undiffuse.training.lock import locked
from undiffuse.training.run import train

QUICK: dict[str, Any] = {"batch_size": 16, "checkpoint_every": 100, "preview_every": 0, "log_every": 5}


def teacher(seed: int = 3, variance: bool = False, source: Any = "gaussian", schedule: str = "cosine") -> Model:
    spec = vectors().spec
    network = build_network(MLPOptions(width=16, depth=1), spec, seed=seed, variance=variance)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    process = dataclasses.replace(process_of(schedule), source=source)
    return Model(NetworkDenoiser(network, process, "v", spec=spec), spec)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher().save(tmp_path_factory.mktemp("models") / "teacher")


@pytest.mark.parametrize("method", ["progressive", "consistency-training", "scm"])
def test_a_run_whose_plan_follows_its_length_keeps_it(saved: Path, tmp_path: Path, method: str) -> None:
    """Longer, progressive distillation would go back to a round whose teacher is gone."""
    shared: dict[str, Any] = {"method": method, "data": vectors(), "out": tmp_path / "run", **QUICK}
    distill(saved, steps=4, **shared)
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    with pytest.raises(ConfigError, match=r"run of 4 steps.*train\.steps=8 cannot take its place.*train\.init"):
        distill(saved, steps=8, **shared)
    assert (tmp_path / "run" / "recipe.yaml").read_text() == recipe
    assert distill_run(saved, steps=4, **shared).finished


def test_other_runs_may_be_made_longer(saved: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"method": "ctm", "data": vectors(), "out": tmp_path / "run", **QUICK}
    distill(saved, steps=2, **shared)
    assert distill_run(saved, steps=4, **shared).step == 4


def test_which_plans_follow_the_length() -> None:
    assert not ConsistencyOptions(plan="original", teacher="it").follows_length  # 18 levels throughout
    assert ConsistencyOptions(plan="original").follows_length
    assert not SCMOptions(warmup=0.0).follows_length
    assert not ProgressiveOptions(first_steps=2).follows_length  # one round


@pytest.mark.parametrize(("method", "taught"), [("meanflow-training", False), ("consistency-training", True)])
def test_guidance_brings_the_teacher_where_the_method_needs_it(
    saved: Path, tmp_path: Path, method: str, taught: bool
) -> None:
    own = {"kappa": 0.5} if method == "meanflow-training" else {}
    run = distill_run(saved, method, vectors(), tmp_path / "run", steps=2, objective={"guidance": 2.0, **own}, **QUICK)
    objective = run.model.info["recipe"]["objective"]
    assert run.model.module.guided == 2.0 and objective["teacher"] == (str(saved) if taught else "")  # type: ignore[union-attr]


def test_the_word_guidance_alone_brings_no_teacher(saved: Path, tmp_path: Path) -> None:
    overrides = ["objective.guidance=1", "sample.guidance_rescale=0"]
    run = distill_run(saved, "scm-training", vectors(), tmp_path / "guidance", steps=1, overrides=overrides, **QUICK)
    assert run.model.info["recipe"]["objective"]["teacher"] == ""


def test_a_grid_that_jumps_lack_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a flow map jumps and has no published grid; use sample\.grid=t"):
        distill(
            teacher(), method="progressive", data=vectors(), out=tmp_path / "out", overrides=["sample.grid=published"]
        )


@pytest.mark.parametrize("method", ["progressive", "dmd"])
def test_a_head_for_the_variance_is_left_behind(tmp_path: Path, method: str) -> None:
    model = teacher(variance=True)
    student = distill(model, method=method, data=vectors(), steps=2, out=tmp_path / "run", lr=1e-12, **QUICK)
    held: Any = student.module
    assert model.module.learns_variance and not held.learns_variance  # type: ignore[union-attr]
    assert not any("variance" in name for name in held.state_dict())
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(held.mean(x, 0.7, 0.2), model.denoiser(x, 0.7).mean, rtol=1e-5, atol=1e-5)


def test_a_source_of_paired_noise_is_kept(tmp_path: Path) -> None:
    """Its paths are the teacher's, so no score follows from the student's mean either."""
    model = teacher(source="data")
    shared: dict[str, Any] = {"data": vectors(), "steps": 1, **QUICK}
    for method in ("progressive", "ctm", "scm"):
        student = distill(model, method=method, out=tmp_path / method, **shared)
        assert load(tmp_path / method).process.source == "data"  # type: ignore[union-attr]
        assert student.sample(2).isfinite().all()
    assert distill(model, method="meanflow-training", out=tmp_path / "own", **shared).process.source == "gaussian"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"dmd compares scores.*coupling=optimal"):
        distill(model, method="dmd", out=tmp_path / "dmd", **shared)
    place = model.save(tmp_path / "teacher")
    given = {"kind": "ctm", "teacher": str(place)}
    small = ["model.width=16", "model.depth=1", "process.schedule=cosine"]
    with pytest.raises(ConfigError, match="its noise is paired with data"):
        train(vectors(), "vector", out=tmp_path / "train", objective=given, overrides=small, **{**QUICK, "steps": 1})


def test_a_teacher_on_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has a table of noise levels, and students follow schedules"):
        distill(teacher(schedule="ddpm"), method="progressive", data=vectors(), out=tmp_path / "out")


def test_reschedule_keeps_the_source() -> None:
    moved = Reschedule(teacher(source="data").denoiser, process_of("rf"))
    assert moved.process.source == "data" and moved.process.schedule == process_of("rf").schedule


def test_a_student_of_several_jumps_makes_them_by_default(saved: Path, tmp_path: Path) -> None:
    student = distill(
        saved, method="dmd", data=vectors(), steps=1, out=tmp_path / "run", objective={"jumps": 3}, **QUICK
    )
    assert student.defaults["steps"] == 3 == DMDOptions(jumps=3).default_steps
    assert student.sample_result(2).nfe == 3


def test_widths_of_a_student_are_not_compared_by_another_loss(saved: Path, tmp_path: Path) -> None:
    options = {**QUICK, "snapshot_every": 1, "ema": [0.05, 0.1]}
    out = tmp_path / "run"
    small = ["model.width=16", "model.depth=1", "data.limit=100"]
    train("moons", "vector", out=out, objective="meanflow", overrides=small, steps=2, **options)
    with pytest.raises(DataError, match=r"objective=meanflow depends on what the run has learned.*evaluate"):
        sweep_ema(out, [0.1], items=16)


def test_a_teacher_in_memory_is_kept_once_and_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "run"
    shared: dict[str, Any] = {"method": "consistency", "data": vectors(), "out": out, **QUICK}
    with pytest.raises(ConfigError, match="magic"):
        distill(teacher(), steps=1, objective={"magic": 1}, **shared)
    assert not (out / "teacher").exists()
    out.mkdir()
    with locked(out), pytest.raises(TrainingError, match="another run"):
        distill(teacher(), steps=1, **shared)
    assert not (out / "teacher").exists()
    distill(teacher(), steps=1, **shared)
    first = (out / "teacher" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="teacher_hash"):
        distill(teacher(seed=4), steps=1, **shared)
    for checkpoint in (out / "checkpoints").iterdir():
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    with pytest.raises(ConfigError, match="holds another model than the one given"):
        distill(teacher(seed=4), steps=1, **shared)
    assert (out / "teacher" / "model.safetensors").read_bytes() == first


def test_a_student_has_the_network_of_the_recipe(saved: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"method": "ctm", "data": vectors(), "steps": 1, "out": tmp_path / "run", **QUICK}
    with pytest.raises(CheckpointError, match=r"does not fit.*model\.\*"):
        distill(saved, overrides=["model.width=8"], **shared)
    with pytest.raises(ConfigError, match=r"train\.init=digits, but a student starts as its teacher"):
        distill(saved, overrides=["train.init=digits"], **shared)


def test_every_method_is_in_the_help() -> None:
    from undiffuse.cli.distill import EPILOG

    assert all(f"  {name} " in EPILOG and row.summary in EPILOG for name, row in METHODS.items())
