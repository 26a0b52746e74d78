"""`accelerate` as a whole: a tiny model, tuned, saved, resumed, sampled; and what it refuses, in one line each."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.distillation.tiny import mlp_denoiser
from undiffuse.cli import main as command
from undiffuse.config import resolve
from undiffuse.data import TensorDataset
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.distillation.acceleration import _notes, accelerate
from undiffuse.distillation.mmd_build import make_judge, read_monitor
from undiffuse.distillation.mmd_features import make_features
from undiffuse.distillation.mmd_judge import (
    SEARCHED,
    Judge,
    SamplerChoice,
    all_items,
    best_untuned,
    draw,
    real_conditions,
    samplers_of,
)
from undiffuse.errors import ConfigError, DataError
from undiffuse.models import Model, load
from undiffuse.networks.build import build_network
from undiffuse.networks.options import MLPOptions
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.schedules import CosineSchedule
from undiffuse.report.acceleration import acceleration_report
from undiffuse.sampling.registry import make_solver
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.log import read_log
from undiffuse.training.recipe import Recipe
from undiffuse.training.run import train

ITERS = 6
SHORT = ("--train-steps", ITERS, "train.batch_size=16", "train.checkpoint_every=3")


def data(n: int = 80) -> TensorDataset:
    x = 0.3 * torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.5, -0.5])
    return TensorDataset(data=x, spec=DataSpec(kind="vector", shape=(2,)))


def model() -> Model:
    denoiser = mlp_denoiser("v")
    assert denoiser.spec is not None
    return Model(denoiser, denoiser.spec)


def tune(folder: Path, **options: Any) -> Any:
    given: dict[str, Any] = {
        "steps": 2,
        "train_steps": ITERS,
        "samples": 60,
        "batch_size": 16,
        "checkpoint_every": 2,
        "out": folder,
    }
    return accelerate(options.pop("model", model()), options.pop("data", data()), **{**given, **options})


def test_the_result_is_a_model_with_its_sampler_and_its_figures(tmp_path):
    untuned = model()
    result = tune(tmp_path / "run", model=untuned, lr=0.01)
    tuned = result.model
    assert {k: tuned.defaults[k] for k in ("solver", "steps", "grid")} == {"solver": "ddim", "steps": 2, "grid": "t"}
    assert tuned.info["tuned_for"] == {"solver": "ddim", "steps": [2], "grid": "t", "guidance": 1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = tuned.sample(4, seed=3)
        assert torch.equal(x, load(tmp_path / "run").sample(4, seed=3, solver="ddim", steps=2, grid="t"))
        untuned.sample(4, steps=7)
    for other in ({"steps": 3}, {"solver": "heun"}, {"grid": "logsnr"}):
        with pytest.warns(UserWarning, match="tuned for solver=ddim, steps=2, grid=t"):
            tuned.sample(2, **other)
    assert [row.name for row in result.rows] == ["before", "before, best sampler found", "before, many steps", "after"]
    assert result.rows[0].calls == result.rows[-1].calls == 2 >= result.rows[1].calls
    first, last = result.rows[0].figures, result.rows[-1].figures
    assert last.tuned_on < first.tuned_on  # some steps at a high rate are enough to move nearer
    assert not torch.equal(x, untuned.sample(4, seed=3, solver="ddim", steps=2, grid="t"))
    assert [row["step"] for row in read_monitor(tmp_path / "run")] == [0, 2, 4, 6]


def conditioned(kind: str, n: int = 80) -> tuple[Model, TensorDataset]:
    """A model with labels or with a vector, and data that have them."""
    x = data(n).data
    if kind == "label":
        own = mlp_denoiser("v", labels=True)
        spec = DataSpec(kind="vector", shape=(2,), classes=("a", "b", "c"))
        found = TensorDataset(data=x, spec=spec, labels=torch.arange(n) % 3)
    else:
        spec = DataSpec(kind="vector", shape=(2,), cond={"age": ConditionSpec(kind="vector", width=1)})
        network = build_network(MLPOptions(width=16, depth=1), spec, seed=0)
        with torch.no_grad():
            for p in network.parameters():
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
        own = NetworkDenoiser(network, GaussianProcess(CosineSchedule()), "v", spec=spec)
        found = TensorDataset(data=x, spec=spec, cond={"age": torch.linspace(-1, 1, n)[:, None]})
    return Model(own, spec), found


@pytest.mark.parametrize("kind", ["label", pytest.param("vector", marks=pytest.mark.slow)])
def test_every_row_of_a_guided_comparison_is_guided_and_no_untuned_one_costs_more(tmp_path, kind):
    untuned, items = conditioned(kind)
    result = tune(tmp_path / "run", model=untuned, data=items, guidance=2.0, steps=3, train_steps=2)
    before, best, many, after = result.rows
    assert before.calls == after.calls == 6  # of 3 steps, each with and without the condition
    assert 2 <= best.calls <= 6 and best.calls % 2 == 0
    assert many.calls == 2 * 25
    conditions = real_conditions(items, untuned.denoiser.spec, 60)
    choice = SamplerChoice("ddim", 3, "t")
    own = draw(untuned, 60, 1, conditions, guidance=2.0, **choice.arguments())
    plain = draw(untuned, 60, 1, conditions, guidance=1.0, **choice.arguments())
    assert own.nfe == 2 * plain.nfe == 6 and not torch.equal(own.x, plain.x)
    assert set(samplers_of(untuned, 6, ("heun",), guidance=2.0)) == {
        SamplerChoice("heun", 2, grid) for grid in ("t", "logsnr", "karras")
    }  # 3 evaluations, guided


def test_guidance_by_conditions_that_the_data_lack_is_refused_before_anything_is_written(tmp_path):
    untuned, _ = conditioned("label")
    with pytest.raises(ConfigError, match="the data lack label"):
        tune(tmp_path / "run", model=untuned, guidance=2.0)
    assert not (tmp_path / "run").exists()


def test_the_search_knows_every_deterministic_solver_on_a_grid_and_refuses_other_names():
    assert {"ddim", "edm-heun", "dpm++3m", "dpm-solver-3m", "deis-3", "unipc", "unipc-3", "rk4"} <= set(SEARCHED)
    assert not {"ddpm", "flow-map", "rk45", "dpm-adaptive-23", "ancestral", "pc-langevin"} & set(SEARCHED)
    for name in SEARCHED:
        solver = make_solver(name)
        assert not (solver.stochastic or solver.discrete or solver.draws_times)
    found = list(samplers_of(model(), 4))
    assert {choice.solver for choice in found} == set(SEARCHED) and len(set(found)) == len(found)
    for choice in found:
        assert 1 <= draw(model(), 1, 0, **choice.arguments()).nfe <= 4
    with pytest.raises(ValueError, match=r"'unipc-2' is unknown.*Did you mean"):
        list(samplers_of(model(), 4, ("unipc-2",)))


def test_the_best_untuned_sampler_is_that_of_a_full_search():
    """With n at the size of the first round both rounds are the same, and the search is an exhaustive one."""
    features = make_features("pixels", data())
    judge = Judge(all_items(data()), None, features, features, bounded=False)
    distances = {
        choice: judge.distance(draw(model(), 64, 0, **choice.arguments()).x)
        for choice in samplers_of(model(), 3, ("ddim", "heun", "unipc"))
    }
    best = best_untuned(model(), 3, judge, n=64, names=("ddim", "heun", "unipc"))
    assert best == min(distances, key=lambda choice: distances[choice])


@pytest.mark.filterwarnings("ignore:Frechet distance of 20")
def test_what_chooses_the_checkpoint_is_not_what_is_reported(tmp_path):
    """Of images the three are networks of three seeds; of vectors there is only one, which the report says."""
    spec = DataSpec(kind="image", shape=(1, 8, 8), range=(-1.0, 1.0))
    x = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = TensorDataset(data=x, spec=spec)
    sample = {"solver": "ddim", "steps": 2, "grid": "t"}
    layers = {"objective": {"kind": "mmd"}, "train": {"init": "x"}, "sample": sample}
    judge = make_judge(resolve(Recipe, layers), images, None)
    assert judge.distance(x[:20]) != judge.choosing_distance(x[:20])
    assert np.array_equal(judge.real_choosing, judge._features(judge.choosing, x))
    assert "another kind or seed" in _notes(judge)["choosing the checkpoint"]
    result = tune(tmp_path / "run", train_steps=2)
    assert "too good for the tuned model" in result.notes["choosing the checkpoint"]
    assert "too good for the tuned model" in acceleration_report(result).read_text()


def test_the_model_kept_is_the_best_by_the_features_that_choose(tmp_path):
    result = tune(tmp_path / "run", lr=3.0, samples=0)  # far too high: it gets worse and worse
    distances = {row["step"]: row["distance"] for row in result.monitor}
    assert result.model.info["step"] == min(distances, key=lambda step: distances[step])
    assert result.model.info["choosing_distance"] == min(distances.values())


def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path):
    from undiffuse.training.checkpoints import checkpoints_in, read_checkpoint

    class Stopped(Exception):
        pass

    def stop(event: Any) -> None:
        if getattr(event, "done", 0) >= 3 and getattr(event, "info", None):
            raise Stopped

    options = {
        "objective": {"queue": 24},
        "samples": 0,
        "log_every": 1,
        "solver": "ddpm",
        "model": load_saved(tmp_path),
    }
    tune(tmp_path / "whole", **options)
    with pytest.raises(Stopped):
        tune(tmp_path / "parts", listener=stop, **options)
    assert len(checkpoints_in(tmp_path / "parts" / "checkpoints")) == 1
    tune(tmp_path / "parts", **options)
    states = [read_checkpoint(checkpoints_in(tmp_path / run / "checkpoints")[-1]).tensors for run in ("whole", "parts")]
    assert states[0].keys() == states[1].keys() and "objective/queue" in states[0]
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert read_monitor(tmp_path / "whole") == read_monitor(tmp_path / "parts")


def load_saved(folder: Path) -> str:
    """Save the model once, so that both runs name the same one."""
    return str(model().save(folder / "model"))


def test_accumulated_batches_train_the_same_model(tmp_path):
    name = load_saved(tmp_path)
    found = []
    for parts in (1, 4):
        result = tune(tmp_path / str(parts), model=name, accumulate=parts, samples=0, lr=0.01)
        found.append(torch.cat([p.detach().flatten() for p in result.model.denoiser.parameters()]))
    assert float((found[0] - found[1]).abs().max()) < 1e-4  # Adam magnifies the rounding of near-zero gradients


def test_a_learning_rate_of_0_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("undiffuse.training.trainer.learning_rate", lambda *_: 0.0)
    untuned = model()
    result = tune(tmp_path / "run", model=untuned, samples=0)
    own, before = result.model.denoiser.state_dict(), untuned.denoiser.state_dict()
    assert all(torch.equal(own[name], before[name]) for name in before)
    sampler = {"solver": "ddim", "steps": 2, "grid": "t"}
    assert torch.equal(result.model.sample(5, seed=1), untuned.sample(5, seed=1, **sampler))


def test_it_is_an_objective_of_the_recipe_like_any_other(tmp_path):
    name = load_saved(tmp_path)
    chosen = {
        "objective": {"kind": "mmd", "kernel": "cubic"},
        "model": {"kind": "mlp", "width": 16, "depth": 1},
        "process": {"schedule": "cosine", "prediction": "v"},
        "sample": {"solver": "ddim", "steps": 2, "grid": "t"},
        "train": {"init": name, "steps": 4, "batch_size": 16, "checkpoint_every": 2, "validate_items": 33},
    }
    run = train(data(), recipe="vector", out=tmp_path / "run", **chosen)
    assert run.model.info["tuned_for"]["steps"] == [2]
    assert [row["step"] for row in read_log(tmp_path / "run" / "log.jsonl") if "validation" in row] == [2, 4]
    with pytest.raises(ConfigError, match=r"needs train.init, sample.solver"):
        train(data(), recipe="vector", out=tmp_path / "other", objective="mmd")


def test_arrays_and_features_of_ones_own_will_do(tmp_path):
    network = nn.Sequential(nn.Linear(2, 5), nn.Tanh()).eval()
    result = tune(tmp_path / "run", data=data().data.numpy(), features=network, samples=0)
    assert result.run.finished and all(p.grad is None for p in network.parameters())


def test_several_numbers_of_steps_are_tuned_together(tmp_path):
    result = tune(tmp_path / "run", steps=[2, 4])
    assert result.model.info["tuned_for"]["steps"] == [2, 4] and result.model.defaults["steps"] == 2
    assert [row.calls for row in result.rows if row.name == "after"] == [2, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result.model.sample(2, steps=4)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"batch_size": 1}, "train.batch_size=1 .* use at least 2"),
        ({"batch_size": 200}, "72 items to train on, fewer than train.batch_size=200"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"train_steps": 0}, "train_steps=0 tunes nothing"),
        ({"method": "gan"}, "method='gan' is unknown"),
        ({"method": "mdm"}, "method='mdm' is unknown.*Did you mean 'mmd'"),
        ({"method": "dmd"}, "use undiffuse distill MODEL --method dmd"),
        ({"features": "pixel"}, "features=pixel are unknown.*Did you mean 'pixels'"),
        ({"features": "classifier"}, "those of images, and the data are vector items"),
        ({"features": lambda x: x.round().detach()}, "have no gradient"),
        ({"features": lambda x: torch.from_numpy(x.detach().numpy())}, "have no gradient"),
        ({"features": nn.BatchNorm1d(2)}, "in training mode"),
        ({"guidance": 2.0}, "sample.guidance=2 needs a model with conditions"),
        ({"solver": "first-hitting"}, "has no gradient"),
        ({"solver": "ddmi"}, "sample: solver 'ddmi' is unknown; .* Did you mean 'ddpm'"),
        ({"data": np.zeros((40, 3))}, r"needs? \(N, \(2,\)\)|items need"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, options, line):
    heard: list[Any] = []
    with pytest.raises((ConfigError, DataError, ValueError), match=line) as refused:
        tune(tmp_path / "run", listener=heard.append, **options)
    assert "\n" not in str(refused.value)
    if {"method", "solver", "guidance"} & options.keys() or options.get("features") == "pixel":
        assert heard == [] and not (tmp_path / "run").exists()  # before the plan is told and anything is written


def test_features_that_do_not_fit_in_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("undiffuse.distillation.mmd_features.free_bytes", lambda: 10_000)
    with pytest.raises(Exception, match=r"for 16 items take about .* but 10 kB are free"):
        tune(tmp_path / "run")


# -- the command -------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    code = command.run([str(word) for word in words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and data."""
    monkeypatch.chdir(tmp_path)
    model().save("points")
    np.save("points.npy", data().data.numpy())
    np.save("few.npy", data(6).data.numpy())
    return tmp_path


def test_the_command_tunes_compares_and_goes_on_where_it_ended(place, capsys):
    words = ("accelerate", "points", "--data", "points.npy", "--steps", 2, "-n", 60, "--json", *SHORT)
    code, out, err = run(capsys, *words)
    assert code == 0, err
    found = json.loads(out)
    assert found["tuned_for"]["steps"] == [2] and len(found["rows"]) == 4
    folder = place / "runs" / "points-2-steps"
    page = (folder / "acceleration.html").read_text()
    assert "before, best sampler found" in page and (folder / "acceleration.json").is_file()
    code, again, err = run(capsys, *words)
    assert code == 0 and json.loads(again)["rows"] == found["rows"]
    code, out, err = run(capsys, *(word for word in words if word != "--json"))
    assert code == 0 and "too good for the tuned model" in out + err  # of vectors there are no third features
    code, _, err = run(capsys, "sample", folder, "-n", 4, "--steps", 5)
    assert code == 0 and "tuned for solver=ddim" in err + _
    code, _, err = run(capsys, *words, "train.lr=1e-5")
    assert code == 1 and "holds a run with another recipe (train.lr" in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--data", "points.npy", "train.batch_size=1"), r"train.batch_size=1 .* MMD compares pairs"),
        (("--data", "points.npy", "--steps", "0"), r"--steps '0' must hold numbers of at least 1"),
        (("--data", "points.npy", "--steps", "x"), r"--steps 'x' holds something else"),
        (("--data", "few.npy", "train.batch_size=16"), r"items to train on, fewer than"),
        (("--data", "points.npy", "--solver", "first-hitting", *SHORT), r"FirstHitting .* no gradient"),
        (("--data", "points.npy", "--features", "dinov2", *SHORT), r"need a place; write dinov2:FOLDER"),
        (("--data", "points.npy", "--kernel", "rbf"), r"kernel"),
        (("--data", "points.npy", "objective.quue=3"), r"quue.*queue"),
        (("points.npy",), r"no KEY=VALUE; give the data with --data"),
        ((), r"does not say which data it was trained on"),
    ],
)
def test_bad_words_are_one_line(place, capsys, words, line):
    code, _, err = run(capsys, "accelerate", "points", *words, "-n", 0)
    assert code != 0
    said = [text for text in err.splitlines() if text.startswith("error:")]
    assert len(said) == 1 and re.search(line, said[0]), err


def test_a_model_of_tokens_is_refused(place, capsys, tmp_path):
    from undiffuse.denoisers.categorical import CategoricalDenoiser
    from undiffuse.networks.build import build_network
    from undiffuse.networks.options import TransformerOptions
    from undiffuse.process.categorical import CategoricalProcess
    from undiffuse.process.keep import make_keep

    spec = DataSpec(kind="tokens", shape=(8,), vocabulary=("a", "b"))
    process = CategoricalProcess("absorbing", 2, make_keep("linear"))
    network = build_network(TransformerOptions(width=16, depth=1, heads=2), spec, states=process.states)
    Model(CategoricalDenoiser(network, process, spec=spec), spec).save("tokens")
    code, _, err = run(capsys, "accelerate", "tokens", "--data", "points.npy")
    assert code == 1 and "no gradient; this model's process is categorical" in err


def test_a_rate_that_is_too_high_stops_and_keeps_the_best(place, capsys):
    """Weights of 1e30 overflow in the next forward pass."""
    words = ("accelerate", "points", "--data", "points.npy", "--steps", 2, "-n", 0, *SHORT)
    code, _, err = run(capsys, *words, "--train-steps", 40, "train.lr=1e30", "train.checkpoint_every=1")
    said = [text for text in err.splitlines() if text.startswith("error:")]
    assert code == 1 and len(said) == 1 and ("lower train.lr" in said[0] or "Lower train.lr" in said[0])
    kept, before = (load(folder).denoiser.state_dict() for folder in ("runs/points-2-steps", "points"))
    assert all(torch.equal(kept[name], before[name]) for name in before)


def test_items_may_come_in_any_dtype(tmp_path):
    given = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float16)
    assert tune(tmp_path / "run", data=given, samples=0).model.sample(2).dtype == torch.float32


def test_a_sampler_may_have_the_grid_that_it_was_published_with(tmp_path):
    result = tune(tmp_path / "run", solver="deis-2", grid="published", steps=3, samples=0)
    x = result.model.sample(3, seed=1)
    assert torch.equal(x, result.model.sample(3, seed=1, solver="deis-2", grid="quadratic", steps=3))
    with pytest.raises(ConfigError, match="published without a grid of its own"):
        tune(tmp_path / "none", solver="heun", grid="published", steps=3)


def test_a_tuning_that_only_harms_ends_with_the_model_before_and_says_so(tmp_path):
    heard: list[Any] = []
    untuned = model()
    result = tune(tmp_path / "run", model=untuned, lr=3.0, samples=0, listener=heard.append)
    assert result.monitor[0]["step"] == result.model.info["step"] == 0
    own, before = result.model.denoiser.state_dict(), untuned.denoiser.state_dict()
    assert all(torch.equal(own[name], before[name]) for name in before)
    assert any("no checkpoint was better than the model before" in getattr(event, "text", "") for event in heard)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"samples": 1}, "samples=1 cannot be compared; give at least 2, or 0"),
        ({"solver": "ddpm-learned"}, "solver=ddpm-learned needs a variance head, which this model lacks"),
        ({"solver": "flow-map"}, "solver=flow-map needs a flow map, which this model lacks"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, wrong, words):
    with pytest.raises(ConfigError, match=words):
        tune(tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()
