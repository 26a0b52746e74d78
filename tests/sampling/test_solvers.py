"""Solvers: what they cost, what they draw, what they refuse; their mathematics is in tests/oracles."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import CONTINUOUS_SOLVERS, ExactNetwork, normals, process_of, run, spec_mixture
from undiffuse.denoisers.base import Wrapper
from undiffuse.denoisers.posterior import Posterior
from undiffuse.errors import PlanError
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import KeyedNoise, RecordedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.grids import known, make_grid
from undiffuse.process.times import Time
from undiffuse.sampling.dpm_multistep import DPMMultistep
from undiffuse.sampling.registry import SOLVERS, make_solver
from undiffuse.sampling.singlestep import fast_grid

STEPS = 9
CALLS = {"pc-langevin": 3, "annealed-langevin": 3}  # evaluations per step, where an option of the case decides
ONCE_FROM_PURE_NOISE = (
    "edm-heun", "edm-heun churn", "dpm-solver-2", "dpm2-ancestral", "dpm-solver-3", "dpm++2s", "dpm++3s"
)  # fmt: skip


def promised(solver: str, evaluations: str) -> int:
    """Evaluations per step, of which one step to 0, and for some one from pure noise, takes 1: what the class says."""
    found = re.fullmatch(r"(\d+)( \(1 (more )?in a step to 0\))?", evaluations)
    assert found and (found[2] or found[1] == "1"), f"say evaluations of {solver} as '1' or 'N (1 in a step to 0)'"
    return CALLS.get(solver, int(found[1]))


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
@pytest.mark.parametrize("name", ["vp", "rf", "edm", "ddpm"])
def test_evaluations_counted_equal_evaluations_promised(name: str, solver: str) -> None:
    process, rule = process_of(name), CONTINUOUS_SOLVERS[solver]
    calls = promised(solver, rule.evaluations)
    to_t_min = calls * STEPS
    if name == "rf" and solver in (*ONCE_FROM_PURE_NOISE, "annealed-langevin"):
        to_t_min -= calls - 1  # from alpha = 0 they take one DDIM step
    to_zero = to_t_min + 1 if solver == "annealed-langevin" else to_t_min - (calls - 1)
    network = ExactNetwork(spec_mixture(process), "v")
    x = normals(3, 2, seed=1)
    for end, expected in (("zero", to_zero), ("t_min", to_t_min)):
        before = network.network_calls
        grid = make_grid(process.schedule, STEPS, end=end)  # type: ignore[arg-type]
        result = run(network, rule, grid, x)
        assert network.network_calls - before == result.nfe == rule.plan(process, grid).evaluations == expected


class NeverAtZero(Wrapper):
    """Fails when asked about clean data."""

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        assert not isinstance(t, float) or t > 0
        return self.denoiser(x, t, cond)


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("name", ["subvp", "ve", "cosine", "rf", "ddpm"])
def test_the_last_step_lands_on_the_posterior_mean(name: str, steps: int, solver: str) -> None:
    """And the network is never asked at sigma = 0."""
    process, rule = process_of(name), CONTINUOUS_SOLVERS[solver]
    denoiser = NeverAtZero(spec_mixture(process))
    posts: list[Tensor] = []
    grid = make_grid(process.schedule, steps)
    x = normals(3, 2, seed=1) * process.coefficients(1.0, normals(1))[1]
    end = run(denoiser, rule, grid, x, callback=lambda shot: posts.append(shot.post.mean)).x
    assert end.isfinite().all()
    assert torch.equal(end, posts[-1])


@pytest.mark.parametrize("name", ["vp", "rf"])
@pytest.mark.parametrize("shape", ["t", "logsnr", "karras", "quadratic", "beta"])
def test_every_solver_walks_every_grid_to_the_data(name: str, shape: str) -> None:
    process = process_of(name)
    denoiser, x = spec_mixture(process), normals(64, 2, seed=1)
    fine = run(denoiser, make_solver("dpm++2m"), make_grid(process.schedule, 150), x).x
    for solver in ("ddim", "heun", "edm-heun", "dpm++2m"):
        end = run(denoiser, make_solver(solver), make_grid(process.schedule, 40, shape), x).x  # type: ignore[arg-type]
        # Few land in another component: the median is the measure. 40 first-order steps are within 0.1.
        assert float((end - fine).abs().median()) < 0.1, solver


def test_few_steps_lower_the_last_order_of_2m() -> None:
    process = process_of("vp")
    denoiser, x = spec_mixture(process), normals(8, 2, seed=1)
    for steps, lowered in ((14, True), (15, False)):
        grid = make_grid(process.schedule, steps, end="t_min")
        default = run(denoiser, DPMMultistep(), grid, x).x
        assert torch.equal(default, run(denoiser, DPMMultistep(lower_final=lowered), grid, x).x)
        assert not torch.equal(default, run(denoiser, DPMMultistep(lower_final=not lowered), grid, x).x)


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
def test_only_stochastic_solvers_draw_noise(solver: str) -> None:
    process, rule = process_of("vp"), CONTINUOUS_SOLVERS[solver]
    noise = RecordedNoise(KeyedNoise(0, range(3)))
    run(spec_mixture(process), rule, make_grid(process.schedule, 6), normals(3, 2), noise=noise)
    assert bool(noise.record) == rule.stochastic
    assert {stream for stream, _ in noise.record} <= {"step", "langevin"}


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
def test_plans_of_shared_times_are_python_floats(solver: str) -> None:
    process = process_of("rf")
    plan = CONTINUOUS_SOLVERS[solver].plan(process, make_grid(process.schedule, 6))
    for entry in plan.entries:
        for name in ("t", "s", "state", "scale", "std", "start", "noise"):
            assert isinstance(getattr(entry, name, None), float | None), name
    framed = CONTINUOUS_SOLVERS[solver].plan(process, known(make_grid(process.schedule, 6), 3, [1]))
    assert framed.evaluations == plan.evaluations


def test_2m_remembers_nothing_across_an_edit() -> None:
    """Editing x between steps equals restarting the multistep solver there (principles, check 20)."""
    from undiffuse.sampling.constraints import Constraint

    process = process_of("vp")
    denoiser, x = spec_mixture(process), normals(5, 2, seed=1)
    grid = make_grid(process.schedule, 10)

    class Nudge(Constraint):
        def leave(self, x: Tensor, s: Time, k: int, noise: object) -> tuple[Tensor, bool]:
            return (x + 0.1, True) if k == 4 else (x, False)

    edited = run(denoiser, DPMMultistep(), grid, x, constraints=[Nudge()]).x
    path = run(denoiser, DPMMultistep(), grid, x, trajectory=True).trajectory
    assert path is not None
    restarted = run(denoiser, DPMMultistep(), grid[5:], path[5] + 0.1).x
    torch.testing.assert_close(edited, restarted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["vp", "rf", "edm", "ddpm"])
def test_published_grids_end_in_samples(name: str) -> None:
    process, x = process_of(name), normals(8, 2, seed=1)
    x = x * process.coefficients(1.0, normals(1))[1]
    for solver in ("ddim", "deis-3", "dpm++2m", "edm-heun", "dpm-fast"):
        rule = make_solver(solver)
        for steps in (1, 2, 9):
            grid = rule.published_grid(process.schedule, steps)
            assert len(grid) == steps + 1 and float(grid[0]) >= process.schedule.t_max
            assert run(spec_mixture(process), rule, grid, x).x.isfinite().all()
    quadratic = make_grid(process.schedule, 5, "quadratic")
    assert torch.equal(make_solver("deis-3").published_grid(process.schedule, 5), quadratic)
    fast = make_solver("dpm-fast").published_grid(process.schedule, 9)
    assert torch.equal(fast, fast_grid(process.schedule, 9)) and float(fast[-1]) == process.schedule.t_min
    with pytest.raises(ValueError, match="RK4 was published without a grid of its own; take grid='logsnr'"):
        make_solver("rk4").published_grid(process.schedule, 5)
    for wrong in ("dpm-fast", "edm-heun", "ddim"):
        with pytest.raises(ValueError, match="0 must be at least 1"):
            make_solver(wrong).published_grid(process.schedule, 0)


@pytest.mark.parametrize("name", ["vp", "rf", "edm", "ve"])
def test_the_published_grid_of_edm_runs_from_80_to_its_smallest_level(name: str) -> None:
    schedule = process_of(name).schedule
    levels = torch.exp(-schedule.half_logsnr(make_solver("edm-heun").published_grid(schedule, 6)[1:]))
    even = torch.arange(6, dtype=torch.float64) / 5
    low = max(0.002, float(torch.exp(-schedule.half_logsnr(torch.tensor(schedule.t_min, dtype=torch.float64)))))
    expected = (80 ** (1 / 7) + even * (low ** (1 / 7) - 80 ** (1 / 7))) ** 7  # Karras et al., eq. 5
    torch.testing.assert_close(levels[:-1], expected[1:], rtol=1e-9, atol=0)
    assert float(levels[-1]) == 0


def test_the_solver_table_builds_everything_it_names() -> None:
    for name in SOLVERS:
        assert make_solver(name).discrete == (name in ("ancestral", "first-hitting", "token-budget", "left-to-right"))


def test_wrong_solvers_and_options_are_refused() -> None:
    for name, options, message in (
        ("dpm++2n", {}, "Did you mean 'dpm\\+\\+2"),
        ("ddim", {"eta": 1.2}, "eta=1.2"),
        ("ddim", {"eta": -0.1}, "eta=-0.1"),
        ("ddim", {"eta": float("nan")}, "eta=nan"),
        ("ddim", {"tau": 1.0}, "'ddim' has no option 'tau'; it has eta, rule, path"),
        ("euler", {"tau": 1.0}, "'euler' has no option 'tau'; it has none"),
        ("unipc", {"orders": 3}, "Did you mean 'order'?"),
        ("sde-dpm++2m", {"tau": -1.0}, "tau=-1"),
        ("dpm++2m", {"variant": "other"}, "variant"),
        ("edm-heun", {"churn": -1.0}, "churn=-1"),
        ("edm-heun", {"churn_noise": -1.0}, "churn_noise=-1"),
        ("edm-heun", {"churn_min": 5, "churn_max": 1}, "churn_min=5.0, churn_max=1.0 must rise"),
        ("ddpm", {"variance": "huge"}, "variance"),
        ("dpm-solver-2", {"r": 0.0}, "r=0.0"),
        ("dpm-solver-2", {"form": "score"}, "form='score'"),
        ("dpm-solver-3", {"r1": 0.7}, "must rise"),
        ("dpm-fast", {"published": "mine"}, "published='mine'"),
        ("dpm-fast", {"order": 4}, "order=4"),
        ("dpm-fast", {"variant": "heun"}, "'heun' with order=2"),
        ("euler-maruyama", {"tau": -1.0}, "tau=-1"),
        ("pc-langevin", {"corrections": 0}, "corrections=0"),
        ("pc-langevin", {"snr": 0.0}, "snr=0"),
        ("pc-langevin", {"eta": 1.5}, "eta=1.5"),
        ("annealed-langevin", {"updates": 0}, "updates=0"),
        ("annealed-langevin", {"size": 4.0}, "size=4"),
    ):
        with pytest.raises(ValueError, match=message):
            make_solver(name, **options)


def test_options_of_another_type_are_refused() -> None:
    for name, options, message in (
        ("ddim", {"eta": "abc"}, r"solver 'ddim': eta='abc' does not fit; expected float\."),
        ("unipc", {"corrector": "maybe"}, r"corrector='maybe' does not fit; expected true \| false"),
        ("ddpm", {"path": "maybe"}, "path='maybe'"),
        ("ddpm", {"variance": 1}, r"variance=1 does not fit; expected 'small' \| 'large' \| 'learned'"),
        ("dpm++3m", {"lower_final": "none"}, r"expected true \| false \| 'few' \| none"),
        ("pc-langevin", {"corrections": 1.5}, "corrections=1.5 does not fit; expected int"),
        ("annealed-langevin", {"updates": 2.5}, "updates=2.5"),
        ("edm-heun", {"churn": 4, "churn_min": "abc"}, "churn_min='abc'"),
        ("dpm++2m", {"order": True}, "order=True"),
    ):
        with pytest.raises(ValueError, match=message):
            make_solver(name, **options)


@pytest.mark.parametrize("name", ["unipc", "dpm++3m", "deis-3", "dpm-fast"])
def test_whole_numbers_stand_for_any_number_type(name: str) -> None:
    solver: Any = make_solver(name, order=2.0)
    assert solver == make_solver(name, order=2) and type(solver.order) is int
    warm: Any = make_solver("ddim", eta=1)
    assert type(warm.eta) is float


def test_solvers_refuse_the_other_world() -> None:
    from tests.oracles.masked import joint_denoiser, triple_joint

    tokens = joint_denoiser(triple_joint())
    assert isinstance(tokens.process, CategoricalProcess)
    grid = torch.linspace(1, 0, 4, dtype=torch.float64)
    with pytest.raises(PlanError, match="Gaussian"):
        make_solver("ddim").prepare(tokens.process, grid, torch.zeros(2, 3), KeyedNoise(0, range(2)))
    with pytest.raises(PlanError, match="categorical"):
        make_solver("ancestral").prepare(process_of("rf"), grid, torch.zeros(2, 3), KeyedNoise(0, range(2)))
    with pytest.raises(PlanError, match="needs a grid"):
        make_solver("ddim").prepare(process_of("rf"), None, torch.zeros(2, 3), KeyedNoise(0, range(2)))
