"""From a model to a student: recipe, run, model on disk, resumption, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.continuous import process_of
from tests.training.tiny import vectors
from undiffuse.config import to_dict
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.distillation.build import make_flow_map_objective, make_student, teacher_hash
from undiffuse.distillation.few_steps import METHODS, distill, distill_run
from undiffuse.distillation.level_weight import LevelWeight
from undiffuse.distillation.options import ConsistencyOptions, FlowMapOptions, ProgressiveOptions, SCMOptions
from undiffuse.errors import CheckpointError, ConfigError, PlanError
from undiffuse.models import Model, load
from undiffuse.networks.build import build_network
from undiffuse.networks.options import MLPOptions
from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint
from undiffuse.training.options import TrainOptions
from undiffuse.training.run import train
from undiffuse.training.trainer import Trainer

OWN = ("progressive", "consistency", "consistency-training", "scm", "scm-training")
QUICK = {"batch_size": 16, "checkpoint_every": 100, "preview_every": 0, "log_every": 5}


def teacher(schedule: str = "cosine", prediction: str = "v") -> Model:
    dataset = vectors()
    network = build_network(MLPOptions(width=16, depth=1), dataset.spec, seed=3)
    with torch.no_grad():
        network.leave.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))  # type: ignore[union-attr]
    denoiser = NetworkDenoiser(network, process_of(schedule), prediction, spec=dataset.spec)  # type: ignore[arg-type]
    return Model(denoiser, dataset.spec)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teacher().save(tmp_path_factory.mktemp("models") / "teacher")


@pytest.mark.filterwarnings("ignore:this model was distilled for steps=1")
@pytest.mark.parametrize("method", OWN)
def test_every_method_gives_a_model_that_samples_in_one_step(saved: Path, tmp_path: Path, method: str) -> None:
    student = distill(saved, method=method, data=vectors(), steps=6, out=tmp_path / "run", **QUICK)
    found = student.sample_result(5, seed=1, cond={"label": "b"})
    assert found.x.shape == (5, 2) and found.nfe == 1 and bool(found.x.isfinite().all())
    assert student.defaults["steps"] == 1 and student.info["recipe"]["train"]["init"] == str(saved)
    again = load(tmp_path / "run")
    torch.testing.assert_close(again.sample(5, seed=1, steps=2), student.sample(5, seed=1, steps=2), rtol=0, atol=0)
    assert not any("teacher" in name for name in read_checkpoint(newest(tmp_path / "run")).tensors)


def newest(folder: Path) -> Path:
    return checkpoints_in(folder / "checkpoints")[-1]


@pytest.mark.parametrize("method", ["progressive", "consistency-training", "scm-training"])
def test_a_student_starts_as_its_teacher(method: str) -> None:
    model = teacher("trig")
    kinds: dict[str, FlowMapOptions] = {"consistency": ConsistencyOptions(), "scm": SCMOptions()}
    student = make_student(model.module, kinds.get(METHODS[method].kind, ProgressiveOptions()))  # type: ignore[arg-type]
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    wanted = model.process.transition(x, model.denoiser(x, 0.8), 0.8, 0.3)  # type: ignore[union-attr]
    torch.testing.assert_close(student(x, 0.8, 0.3), wanted, rtol=1e-5, atol=1e-5)


def test_a_method_of_another_schedule_starts_as_its_teacher_too(saved: Path, tmp_path: Path) -> None:
    run = distill_run(saved, "scm", vectors(), tmp_path / "run", steps=1, lr=1e-12, **QUICK)
    student, x = run.model.module, torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert isinstance(student, NetworkFlowMap) and student.process.schedule.name == "trig"
    level = torch.tensor(-0.4, dtype=torch.float64)
    old, new = teacher(), student.process
    t, u = float(old.process.schedule.time(level)), float(new.schedule.time(level))  # type: ignore[union-attr]
    scale = float(torch.tensor(new.coefficients(u, x)).norm() / torch.tensor(old.process.coefficients(t, x)).norm())  # type: ignore[union-attr]
    torch.testing.assert_close(student.mean(x * scale, u, 0.0), old.denoiser(x, t).mean, rtol=1e-5, atol=1e-5)


OBJECTIVES: dict[str, FlowMapOptions] = {
    "progressive": ProgressiveOptions(first_steps=8, last_steps=2, drop=0.1),
    "consistency": ConsistencyOptions(plan="original", drop=0.1),
    "scm": SCMOptions(warmup=0.8, drop=0.1),
}


def trainer(folder: Path, kind: str, options: FlowMapOptions, steps: int = 20) -> Trainer:
    model, dataset = teacher("trig"), vectors()
    student = make_student(model.module, options)  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    objective = make_flow_map_objective(options, student, steps)
    train = TrainOptions(
        steps=steps, batch_size=16, warmup=5, log_every=7, checkpoint_every=100, lr=1e-2, validate_every=6
    )
    return Trainer(student, objective, dataset, train, folder, held_out=vectors(20))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind == "scm" else []) for kind in OBJECTIVES]
)
def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path, kind: str) -> None:
    """Stopped in the middle of a round, with half-followed targets and running weights."""
    trainer(tmp_path / "whole", kind, OBJECTIVES[kind]).run()
    first = trainer(tmp_path / "parts", kind, OBJECTIVES[kind])
    first.resume()
    for _ in range(13):
        first.step()
    first.save()
    trainer(tmp_path / "parts", kind, OBJECTIVES[kind]).run()
    whole, parts = (read_checkpoint(newest(tmp_path / name)).tensors for name in ("whole", "parts"))
    window = ("window/",)  # the first part wrote no log lines
    different = [key for key in whole if not key.startswith(window) and not torch.equal(whole[key], parts[key])]
    assert whole.keys() == parts.keys() and not different


def test_progressive_a_round_ends_in_its_average(tmp_path: Path) -> None:
    run = trainer(tmp_path, "progressive", OBJECTIVES["progressive"])
    run.resume()
    for _ in range(10):
        run.step()
    objective: Any = run.objective
    for now, last in zip(run.denoiser.parameters(), objective.last.parameters(), strict=True):
        assert torch.equal(now, last)
    first = [p.clone() for p in objective.last.parameters()]
    run.step()
    assert all(torch.equal(a, b) for a, b in zip(first, objective.last.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, run.denoiser.parameters(), strict=True))


@pytest.mark.parametrize("own", [1, 2])
def test_progressive_another_number_of_steps_is_warned_of(own: int, recwarn: pytest.WarningsRecorder) -> None:
    held = make_student(teacher().module, ProgressiveOptions(last_steps=own))  # type: ignore[arg-type]
    assert held.spec is not None
    model = Model(held, held.spec, info={"recipe": {"objective": to_dict(ProgressiveOptions(last_steps=own))}})
    times = torch.linspace(1, 0, own + 1).tolist()
    for same in ({"steps": own}, {"grid": times}, {"steps": own, "grid": "t"}):
        model.sample(1, **same)  # type: ignore[arg-type]
    assert not list(recwarn)
    uneven = [1.0, 0.9, 0.0]
    for other, what in (({"steps": 5}, "steps=5"), ({"grid": uneven}, "a grid of 2 steps")):
        with pytest.warns(UserWarning, match=f"distilled for steps={own} and is sampled with {what}, which it was"):
            model.sample(1, **other)  # type: ignore[arg-type]
    if own > 1:
        with pytest.warns(UserWarning, match="is sampled with grid=logsnr"):
            model.sample(1, steps=own, grid="logsnr")


def test_progressive_rate_and_averages_begin_anew_in_every_round(tmp_path: Path) -> None:
    run = trainer(tmp_path, "progressive", OBJECTIVES["progressive"])
    run.resume()
    rates = []
    for _ in range(run.options.steps):
        run.step()
        rates.append(run.rate)
    half = run.options.steps // 2
    assert rates[half] == max(rates) and rates[half - 1] < 0.1 * rates[half]
    assert run.state.begun == half

    anew = trainer(tmp_path / "anew", "progressive", OBJECTIVES["progressive"])
    anew.resume()
    for _ in range(half + 1):
        anew.step()
    weights, averages = dict(anew.denoiser.named_parameters()), anew.state.named_averages()
    assert all(torch.equal(average[name], weights[name]) for average in averages for name in weights)


def test_running_weights_are_one_over_the_mean_loss() -> None:
    weight = LevelWeight()
    levels = torch.tensor([-6.9, 0.01, 0.02, 0.03, 5.0], dtype=torch.float64)
    assert torch.equal(weight(levels), torch.ones(5, dtype=torch.float64))
    weight.update(levels, torch.tensor([2.0, 1.0, 3.0, 5.0, float("nan")]))
    torch.testing.assert_close(weight(levels), torch.tensor([0.5, 1 / 3, 1 / 3, 1 / 3, 1.0], dtype=torch.float64))


def test_guidance_is_folded_in(saved: Path, tmp_path: Path) -> None:
    """A student of few optimizer steps cannot know it; what is checked is the teacher it learns from."""
    options = {"guidance": 3.0}
    run = distill_run(saved, "progressive", vectors(), tmp_path / "run", steps=2, objective=options, **QUICK)
    student = run.model
    assert isinstance(student.module, NetworkFlowMap) and student.module.guided == 3.0
    assert student.info["recipe"]["objective"]["teacher"] == str(saved)
    torch.testing.assert_close(student.sample(3, guidance=3.0), student.sample(3))
    with pytest.raises(
        ValueError, match=r"guidance=2 was asked of a flow map that was trained with guidance 3 folded in"
    ):
        student.sample(3, guidance=2.0)


def test_the_teacher_with_guidance_is_the_guided_one(saved: Path) -> None:
    from undiffuse.guidance.classifier_free import ClassifierFreeGuidance

    options = ProgressiveOptions(teacher=str(saved), guidance=2.0)
    objective = make_flow_map_objective(options, make_student(teacher().module, options), 10)  # type: ignore[arg-type]
    assert isinstance(objective.teacher, ClassifierFreeGuidance)
    assert not any(p.requires_grad for p in objective.teacher.parameters())
    assert objective.to(torch.float64).teacher is objective.teacher
    assert next(objective.teacher.parameters()).dtype == torch.float64


def test_methods_without_a_teacher_also_train_from_scratch(tmp_path: Path) -> None:
    overrides = ["objective=consistency", "model.width=16", "model.depth=1"]
    run = train(vectors(), "vector", out=tmp_path / "run", overrides=overrides, steps=4, **QUICK)
    assert isinstance(run.model.module, NetworkFlowMap) and run.model.sample(2).shape == (2, 2)


def test_a_latent_model_is_distilled_on_its_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    latent = ["codec.kind=pca", "codec.patch=2", "codec.share=1.0", "model.kind=unet", "model.channels=8"]
    made = train("digits", out=tmp_path / "teacher", overrides=latent, steps=2, **QUICK).folder
    student = distill(made, method="progressive", steps=4, out=tmp_path / "run", **QUICK)  # data: the teacher's own
    assert isinstance(student.module, NetworkFlowMap) and student.state_spec.shape[1:] == (4, 4)
    samples = student.sample(3, cond={"label": [0, 1, 2]})
    assert samples.shape == (3, 1, 8, 8) and float(samples.min()) >= 0 and float(samples.max()) <= 16


def test_what_needs_a_denoiser_says_so(saved: Path, tmp_path: Path) -> None:
    student = distill(saved, method="consistency-training", data=vectors(), steps=1, out=tmp_path / "run", **QUICK)
    with pytest.raises(ValueError, match="trained for jumps to clean data only"):
        student.sample(2, solver="dpm++2m")
    with pytest.raises(ValueError, match="wrap needs a denoiser at every step"):
        student.sample(2, wrap=lambda denoiser: denoiser)
    with pytest.raises(PlanError, match=r"gamma=0\.0 needs jumps between any two times"):
        student.sample(2, solver="flow-map")
    with pytest.raises(PlanError, match="distil it first"):
        load(saved).sample(2, solver="consistency")
    with pytest.raises(ConfigError, match="a few-step model itself"):
        distill(tmp_path / "run", method="progressive", data=vectors(), steps=1, out=tmp_path / "again", **QUICK)


def test_bad_teachers_are_refused(saved: Path, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"data": vectors(), "steps": 1, "out": tmp_path / "run", **QUICK}
    with pytest.raises(ConfigError, match=r"method 'consistncy' is unknown; .*Did you mean 'consistency'"):
        distill(saved, method="consistncy", **shared)
    with pytest.raises(ConfigError, match=r"process\.prediction=noise says nothing about the data at pure noise"):
        distill(teacher("vp", "noise"), method="progressive", **shared)
    with pytest.raises(ConfigError, match=r"made for schedule trig; .* predicts velocity on rf"):
        distill(teacher("rf", "velocity"), method="scm", **shared)
    with pytest.raises(ConfigError, match="student is on schedule vp and the teacher on rf"):
        distill(teacher("rf", "velocity"), method="progressive", overrides=["process.schedule=vp"], **shared)
    with pytest.raises(ConfigError, match=r"process.prediction=data, but the teacher predicts v"):
        distill(saved, method="progressive", overrides=["process.prediction=data"], **shared)
    with pytest.raises(ConfigError, match="does not say what it was trained on"):
        distill(saved, method="progressive", steps=1, out=tmp_path / "run")
    with pytest.raises(CheckpointError, match="there is no model"):
        distill("nowhere", method="progressive", **shared)


def test_a_teacher_that_changed_is_refused(tmp_path: Path) -> None:
    model = teacher()
    folder = model.save(tmp_path / "teacher")
    options = ConsistencyOptions(teacher=str(folder), teacher_hash=teacher_hash(model))
    student = make_student(teacher().module, options)  # type: ignore[arg-type]
    make_flow_map_objective(options, student, 1)
    with pytest.raises(ConfigError, match="has other weights than when this run began"):
        make_flow_map_objective(dataclasses.replace(options, teacher_hash="0" * 16), student, 1)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: ProgressiveOptions(first_steps=12), "times a power of 2"),
        (lambda: ProgressiveOptions(first_steps=4, last_steps=4), "times a power of 2"),
        (lambda: ConsistencyOptions(rho_min=2.0, rho_max=1.0), "must be positive and rise"),
        (lambda: ConsistencyOptions(first_levels=1), "at least 2"),
        (lambda: SCMOptions(warmup=2.0), r"must lie in \[0, 1\]"),
        (lambda: SCMOptions(guidance=2.0), "that of a teacher, and there is none"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()
