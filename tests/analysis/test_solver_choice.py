"""The choice of a solver on a model whose curves are known: the exact mixture of the spec."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.continuous import process_of, spec_mixture
from undiffuse.analysis.grid_tuning import LimitedGrid, tune_grid
from undiffuse.analysis.solver_choice import _solvers, choose_solver
from undiffuse.analysis.solver_results import SolverChoice, Trial
from undiffuse.models.model import Model
from undiffuse.process.registry import make_schedule
from undiffuse.spec import DataSpec

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {"n": 8, "set_size": 32, "reference_steps": 100}


def mixture_model(labels: bool = False) -> Model:
    spec = DataSpec(kind="vector", shape=(2,), classes=("left", "right") if labels else ())
    denoiser = spec_mixture(process_of("vp"), torch.tensor([0, 1, 1]) if labels else None)
    denoiser.spec = spec
    return Model(denoiser, spec)


@pytest.fixture(scope="module")
def choice() -> SolverChoice:
    names = ["ddim", "dpm++2m", "heun", "sde-dpm++2m", "ddpm"]
    return choose_solver(
        mixture_model(), name="mixture", solvers=names, budgets=(8, 16), grids=("logsnr", "t"), **SMALL
    )


def test_errors_are_those_of_runs_from_the_same_noise(choice: SolverChoice) -> None:
    model = mixture_model()
    fine = model.sample_result(8, steps=100, solver="dpm++2m").x
    for trial in choice.ranked(8):
        found = model.sample_result(8, steps=trial.steps, solver=trial.solver, grid=trial.grid)
        error = float((found.x - fine).double().square().mean().sqrt())
        assert trial.error == pytest.approx(error, rel=1e-4)
        assert trial.nfe == found.nfe <= 8


def test_the_most_steps_that_a_budget_allows_are_taken(choice: SolverChoice) -> None:
    steps = {trial.solver: trial.steps for trial in choice.trials if trial.budget == 8 and trial.grid == "logsnr"}
    assert steps["ddim"] == steps["dpm++2m"] == 8
    assert steps["heun"] == 4  # 7 evaluations; a fifth step would need 9


def test_what_is_recommended_is_the_best_and_better_than_ddim(choice: SolverChoice) -> None:
    for budget in choice.budgets:
        best, ranked, plain = choice.best(budget), choice.ranked(budget), choice.ddim(budget)
        assert best is ranked[0] and plain is not None
        assert best.error == min(trial.error for trial in ranked)  # type: ignore[type-var]
        assert best.error < plain.error / 3  # type: ignore[operator]
        assert best.distance is not None and plain.distance is not None
        words = choice.recommendation(budget)
        assert f"At {budget} evaluations take {best.solver} with {best.steps} steps" in words
        assert f"{plain.error / best.error:.1f} times below ddim" in words  # type: ignore[operator]
        assert choice.command(budget) == (
            f"undiffuse sample mixture --solver {best.solver} --steps {best.steps} --grid={best.grid}"
        )
    assert choice.best(16).error < choice.best(8).error  # type: ignore[union-attr,operator]


def test_a_fitted_grid_is_measured_on_other_noise_and_not_worse_than_it_looks(choice: SolverChoice) -> None:
    fitted = [trial for trial in choice.ranked(8) if trial.grid.startswith("logsnr:")]
    named = [trial for trial in choice.ranked(8) if trial.grid in ("logsnr", "t")]
    assert fitted and min(t.error for t in fitted) < min(t.error for t in named)  # type: ignore[type-var]


def test_random_steps_are_compared_by_their_samples(choice: SolverChoice) -> None:
    random = [trial for trial in choice.trials if trial.error is None]
    assert {trial.solver for trial in random} == {"sde-dpm++2m", "ddpm"}
    assert all(trial.distance is not None and math.isfinite(trial.distance) for trial in random)
    assert abs(choice.distance_floor or 0.0) < 0.3  # 32 points of unit size: 4 standard errors
    assert choice.best_random(8) in random


def test_the_table_and_the_json_hold_what_was_found(choice: SolverChoice) -> None:
    rows, columns = choice.table(3), choice.columns
    assert all(len(row) == len(columns) for row in rows)
    assert {row[1] for row in rows} >= {"ddim", choice.best(8).solver}  # type: ignore[union-attr]
    plain = choice.to_json()
    assert plain["recommended"]["8"]["command"] == choice.command(8)
    assert len(plain["trials"]) == len(choice.trials)


def test_guidance_is_counted_in_the_budget() -> None:
    model = mixture_model(labels=True)
    found = choose_solver(
        model, solvers=["ddim"], budgets=(8,), grids=("logsnr",), tune=False, guidance=2.0, **SMALL | {"set_size": 0}
    )
    assert {(trial.steps, trial.nfe) for trial in found.trials} == {(4, 8)}
    # evaluations saved where guidance does not act are spent on more steps
    limited = choose_solver(
        model,
        solvers=["ddim"],
        budgets=(8,),
        grids=("logsnr",),
        tune=False,
        guidance=2.0,
        guidance_interval=(0.1, 1.0),
        **SMALL | {"set_size": 0},
    )
    assert all(trial.steps > 4 and trial.nfe <= 8 for trial in limited.trials)


def test_what_the_trials_share_stands_in_the_command_and_the_defaults() -> None:
    settings = {
        "guidance": 2.5,
        "guidance_interval": (0.3, 3.0),
        "guidance_rescale": 0.25,
        "negative": {"label": 1},
        "cond": {"caption": "a red square", "pose": [0.1, 0.2], "depth": "..."},
    }
    found = SolverChoice(
        model="my runs/x",
        budgets=(4,),
        trials=(Trial(solver="ddim", grid="t", steps=2, budget=4, nfe=4, error=0.1, uncertainty=0.01),),
        n=2,
        set_size=0,
        reference="",
        reference_error=0.0,
        distance_floor=None,
        settings=settings,
    )
    assert found.command(4) == (
        "undiffuse sample 'my runs/x' --solver ddim --steps 2 --grid=t --guidance 2.5 --guidance-interval 0.3,3 "
        "--guidance-rescale 0.25 --cond 'caption=a red square' --cond pose=0.1,0.2 --cond depth=... --negative label=1"
    )
    guides = {name: settings[name] for name in ("guidance", "guidance_interval", "guidance_rescale")}
    assert found.defaults(4) == {"solver": "ddim", "steps": 2, "grid": "t"} | guides


def test_conditions_that_no_word_can_say_are_marked() -> None:
    found = choose_solver(
        mixture_model(labels=True),
        solvers=["ddim"],
        budgets=(2,),
        grids=("t",),
        tune=False,
        cond={"label": torch.tensor([1] * 8)},
        **SMALL | {"set_size": 0},
    )
    assert found.settings["cond"] == {"label": "..."}


def test_adaptive_solvers_stand_under_the_evaluations_they_made() -> None:
    found = choose_solver(
        mixture_model(), solvers=["ddim", "dpm-adaptive-12"], budgets=(8, 20), grids=("logsnr",), tune=False, **SMALL
    )
    adaptive = [trial for trial in found.trials if trial.solver == "dpm-adaptive-12"]
    assert adaptive and all(t.nfe <= t.budget or t.budget not in found.budgets for t in adaptive)
    assert all(t.steps == 0 and "rtol" in dict(t.options) and not t.defaults for t in adaptive)
    assert "--solver-option rtol=" in adaptive[0].command


def test_nothing_that_fits_is_said_in_words() -> None:
    found = choose_solver(
        mixture_model(), solvers=["rk4"], budgets=(1, 3), grids=("t",), tune=False, **SMALL | {"set_size": 0}
    )
    assert found.recommendation(1).startswith("At 1 evaluations take rk4 with 1 step on the grid t:")
    only = replace(found, trials=())
    failed = replace(found.trials[0], budget=3, error=None, failure="the samples are not finite")
    assert "nothing that was tried gave finite samples" in replace(found, trials=(failed,)).recommendation(3)
    assert "allow more" in only.recommendation(3) and only.command(3) == "" and only.best(3) is None


def test_random_steps_alone_are_recommended_by_their_samples() -> None:
    found = choose_solver(mixture_model(), name="x", solvers=["ddpm"], budgets=(4,), grids=("t",), tune=False, **SMALL)
    assert found.recommendation(4).startswith("At 4 evaluations take ddpm with 4 steps on the grid t: energy distance ")
    assert found.recommendation(4).endswith("; no solver without random steps was tried.")
    assert found.command(4) == "undiffuse sample x --solver ddpm --steps 4 --grid=t"


def test_a_recommendation_compares_with_ddim_where_that_says_something() -> None:
    def found(*errors: tuple[str, str, float]) -> SolverChoice:
        trials = tuple(
            Trial(solver=s, grid=g, steps=2, budget=2, nfe=2, error=e, uncertainty=0.01) for s, g, e in errors
        )
        facts: dict[str, Any] = {"n": 2, "set_size": 0, "reference": "", "reference_error": 0.0, "distance_floor": None}
        return SolverChoice(model="x", budgets=(2,), trials=trials, **facts)

    plain = ("ddim", "logsnr", 1.0)
    assert found(plain).recommendation(2).endswith("on the grid logsnr: error 1.")
    own = found(("ddim", "t", 0.5), plain).recommendation(2)
    assert own.endswith("on the grid t: error 0.5, 2.0 times below ddim on the grid logsnr.")
    near = found(("unipc", "t", 0.49), ("ddim", "t", 0.5), plain, ("heun", "t", 1.01))
    assert near.recommendation(2).endswith(
        "error 0.49, 2.0 times below ddim on the grid logsnr and like ddim on its best grid, t."
    )
    assert [row[5] for row in near.table()] == ["2.0 x lower", "2.0 x lower", "", "the same"]


def test_a_tuned_model_warns_once(recwarn: pytest.WarningsRecorder) -> None:
    model = mixture_model()
    model.info["tuned_for"] = {"solver": "ddim", "steps": [2], "grid": "t", "guidance": 1.0}
    choose_solver(model, solvers=["ddim", "heun"], budgets=(4,), grids=("t",), tune=False, **SMALL | {"set_size": 0})
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == 1 and "tuned for solver=ddim, steps=2, grid=t, guidance=1.0" in said[0]
    assert "tuned_for" in model.info


def test_wrong_requests_are_refused() -> None:
    model = mixture_model()
    for options, message in (
        ({"budgets": ()}, "budgets"),
        ({"n": 1}, "n=1"),
        ({"set_size": 1}, "set_size"),
        ({"reference_steps": 50}, "no fine run beside 20"),
        ({"solvers": ["ddimm"]}, "Did you mean 'ddim'"),
        ({"solvers": ["first-hitting"]}, "cannot be compared here"),
        ({"solvers": ["flow-map"]}, "it needs a flow map"),
        ({"solvers": ["ddpm"], "set_size": 0}, "solvers ddpm take random steps, which only sets of samples compare"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_solver(model, **options)  # type: ignore[arg-type]


def test_the_readme_says_how_many_solvers_are_tried() -> None:
    said = re.search(r"\[the best sampler\]\([^)]*\) of (\d+) ", (ROOT / "README.md").read_text())
    assert said is not None and int(said[1]) == len(_solvers(mixture_model(), None))


def test_the_search_finds_the_bottom_of_a_bowl() -> None:
    schedule, asked = make_schedule("vp"), []

    def bowl(name: str) -> float:
        low, high, bend = [*map(float, name.split(":")[1:]), 0.0][:3]
        asked.append(name)
        return (low + 3) ** 2 + (high - 2.6) ** 2 + 4 * (bend - 0.4) ** 2

    found = tune_grid(schedule, bowl, trials=60)
    assert abs(found.low + 3) < 0.15 and abs(found.high - 2.6) < 0.15 and abs(found.bend - 0.4) < 0.1
    assert len(asked) == len(set(asked)) <= 60


def test_the_search_stays_within_the_schedule() -> None:
    schedule = make_schedule("ddpm")
    ends = schedule.half_logsnr(torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)).tolist()

    def downhill(name: str) -> float:
        low, high = map(float, name.split(":")[1:3])
        assert ends[0] <= low < high <= ends[1]
        return low - high

    found = tune_grid(schedule, downhill, trials=40, start=LimitedGrid(-9.0, 9.0))
    assert found.high - found.low > 0.9 * (ends[1] - ends[0])


def test_a_trial_says_how_to_repeat_it() -> None:
    trial = Trial(solver="unipc", grid="logsnr:-4:3", steps=9, budget=10)
    assert trial.command == "--solver unipc --steps 9 --grid=logsnr:-4:3"
    assert trial.defaults == {"solver": "unipc", "steps": 9, "grid": "logsnr:-4:3"}
