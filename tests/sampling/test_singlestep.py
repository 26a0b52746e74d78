"""DPM-Solver and DPM-Solver++ of several stages: the tables of principles, section 5, and diffusers' own numbers."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import ar1_video, normals, process_of, run, slope, spec_mixture
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import known, make_grid, pyramid
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.diffusers_setup import from_diffusers
from undiffuse.sampling.dormand_prince import integrate
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.singlestep import fast_grid, fast_orders

STEPS = (16, 32, 64, 128, 256)  # orders are measured over the last four


def logsnr_grid(process: GaussianProcess, steps: int, high: float = 1.0, low: float = 0.01) -> Tensor:
    ends = process.schedule.half_logsnr(torch.tensor([high, low], dtype=torch.float64))
    return process.schedule.time(torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64))


def rms(gap: Tensor) -> float:
    return float(gap.square().sum(1).mean().sqrt())


@pytest.fixture(scope="module")
def reference() -> tuple[MixtureDenoiser, Tensor, Tensor]:
    """The spec's mixture and starting points, and the ends of their exact paths, by another method."""
    denoiser, x = spec_mixture(process_of("vp")), normals(64, 2, seed=0)

    def velocity(y: tuple[Tensor, ...], t: Tensor) -> tuple[Tensor, ...]:
        return (denoiser.process.velocity(y[0], denoiser(y[0], t), t),)  # type: ignore[union-attr]

    return denoiser, x, integrate(velocity, (x,), 1.0, 0.01, 1e-10, 1e-10)[0][0]


@pytest.mark.parametrize(
    ("solver", "options", "order", "table"),
    [
        ("dpm-solver-2", {}, 2, (1.6e-2, 3.8e-3, 9.2e-4, 2.3e-4, 5.7e-5)),
        ("dpm++2s", {}, 2, (2.3e-2, 6.4e-3, 1.7e-3, 4.4e-4, 1.1e-4)),
        ("dpm-solver-3", {}, 3, (3.4e-4, 4.5e-5, 5.9e-6, 7.5e-7, 9.5e-8)),
        ("dpm++3s", {}, 3, (1.9e-3, 2.9e-4, 4.0e-5, 5.3e-6, None)),
        ("dpm-solver-2", {"r": 0.7}, 2, None),
        ("dpm-solver-3", {"published": "diffusers"}, 3, None),
        ("dpm-solver-3", {"r1": 0.2}, 3, None),
    ],
)
def test_orders_and_errors_are_those_of_the_spec_s_table(
    reference: tuple[MixtureDenoiser, Tensor, Tensor],
    solver: str,
    options: dict[str, Any],
    order: int,
    table: tuple[float | None, ...] | None,
) -> None:
    denoiser, x, exact = reference
    rule = make_solver(solver, **options)
    assert rule.order == order
    errors = [rms(run(denoiser, rule, logsnr_grid(denoiser.process, n), x).x - exact) for n in STEPS]  # type: ignore[arg-type]
    assert abs(slope(errors[1:], 8) - order) < 0.25, errors
    for found, told in zip(errors, table or (), strict=False):
        assert told is None or found == pytest.approx(told, rel=0.06), (errors, table)


def test_rk4_is_of_fourth_order(reference: tuple[MixtureDenoiser, Tensor, Tensor]) -> None:
    denoiser, x, exact = reference
    grids = [logsnr_grid(denoiser.process, n) for n in (16, 32, 64)]  # type: ignore[arg-type]
    errors = [rms(run(denoiser, make_solver("rk4"), grid, x).x - exact) for grid in grids]
    assert abs(slope(errors, 4) - 4) < 0.25, errors


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rf", "ve"])
@pytest.mark.parametrize("solver", ["dpm-solver-2", "dpm-solver-3", "dpm++2s", "dpm++3s", "rk4"])
def test_orders_hold_on_other_schedules(name: str, solver: str) -> None:
    process = process_of(name)
    denoiser, rule = spec_mixture(process), make_solver(solver)
    x = normals(16, 2, seed=5) * process.coefficients(0.99, normals(1))[1]
    fine = run(denoiser, make_solver("rk45", rtol=1e-9, atol=1e-9), logsnr_grid(process, 1, 0.99), x).x
    ends = [run(denoiser, rule, logsnr_grid(process, n, 0.99), x).x for n in ((32, 96) if rule.order < 4 else (48, 96))]
    found = slope([rms(end - fine) for end in ends], 3 if rule.order < 4 else 2)
    assert abs(found - rule.order) < 0.3, found


def test_the_two_forms_are_each_other_s_mirror() -> None:
    """Exchanging alpha and sigma, the mean and the noise, and the sign of h turns one rule into the other."""
    from undiffuse.sampling.singlestep import levels, rule_2, rule_3

    process = process_of("trig")  # alpha(1 - t) = sigma(t)
    times = [torch.tensor([t], dtype=torch.float64) for t in (0.8, 0.7, 0.5, 0.3)]
    mirrored = [1 - t for t in times]
    for rule, count in ((rule_2, 3), (rule_3, 4)):
        noise, data = levels(process, times[:count], "noise"), levels(process, mirrored[:count], "data")
        for one, two in zip(rule(noise), rule(data), strict=True):
            for a, b in zip((one.start, *one.factors), (two.start, *two.factors), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", ["dpm-solver-2", "dpm-solver-3", "dpm++2s", "dpm++3s", "dpm-fast"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_point_mass_is_exact_in_any_number_of_steps(solver: str, steps: int) -> None:
    process, point = process_of("vp"), torch.tensor([0.4, -1.3], dtype=torch.float64)
    denoiser = GaussianDenoiser(point, torch.zeros(2, 2, dtype=torch.float64), process)
    x, grid = normals(8, 2, seed=3), logsnr_grid(process, steps, low=0.05)
    (a, s), (a0, s0) = (process.coefficients(t, x) for t in (1.0, 0.05))
    expected = a0 * point + s0 / s * (x - a * point)
    torch.testing.assert_close(run(denoiser, make_solver(solver), grid, x).x, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["dpm-solver-2", "dpm-solver-3", "dpm++2s", "rk4"])
def test_encoding_then_decoding_returns_the_data_at_the_solver_s_order(solver: str) -> None:
    process, rule = process_of("vp"), make_solver(solver)
    denoiser = spec_mixture(process)
    data = 0.5 * normals(9, 2, seed=4)
    errors = []
    for steps in (24, 72):
        grid = logsnr_grid(process, steps)
        noise = run(denoiser, rule, grid, data, up=True).x
        errors.append(rms(run(denoiser, rule, grid, noise).x - data))
    # The two ways' errors nearly cancel for even orders, so the round trip may be better than the order, not worse.
    assert slope(errors, 3) > rule.order - 0.3, errors


def test_a_budget_of_one_and_first_steps_are_ddim() -> None:
    process = process_of("vp")
    denoiser, x, grid = spec_mixture(process), normals(8, 2, seed=1), torch.tensor([0.8, 0.5], dtype=torch.float64)
    for form in ("noise", "data"):
        found = run(denoiser, make_solver("dpm-fast", form=form), grid, x).x
        torch.testing.assert_close(found, run(denoiser, make_solver("ddim"), grid, x).x, rtol=1e-12, atol=1e-12)


# -- any budget ---------------------------------------------------------------------------------------


CHOICES = ((True, False), (1, 2, 3), (True, False))


def test_orders_of_a_budget_follow_the_published_rule() -> None:
    told = {1: [1], 2: [2], 3: [2, 1], 4: [3, 1], 5: [3, 2], 6: [3, 2, 1], 7: [3, 3, 1], 9: [3, 3, 2, 1]}
    for budget in range(1, 40):
        orders = fast_orders(budget)
        assert sum(orders) == budget
        assert len(orders) == budget // 3 + 1
        assert told.get(budget, orders) == orders
        assert sum(fast_orders(budget, to_zero=True)) == budget
        assert fast_orders(budget, to_zero=True)[-1] == 1
        assert all(sum(fast_orders(budget, zero, order, low)) == budget for zero, order, low in product(*CHOICES))
    assert [fast_orders(n, order=2) for n in (1, 2, 5, 6)] == [[1], [1, 1], [2, 2, 1], [2, 2, 1, 1]]
    assert [fast_orders(n, order=2, lowered=False) for n in (4, 5)] == [[2, 2], [2, 2, 1]]


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 10, 20])
@pytest.mark.parametrize("name", ["vp", "rf"])
def test_any_budget_is_spent_to_the_last_evaluation(budget: int, name: str) -> None:
    process = process_of(name)
    for end in ("zero", "t_min"):
        grid = make_grid(process.schedule, budget, end=end)  # type: ignore[arg-type]
        result = run(spec_mixture(process), make_solver("dpm-fast"), grid, normals(4, 2))
        assert result.x.isfinite().all()
        # A step of several answers from alpha = 0 has to be a first-order one, row by row: the same number.
        assert result.nfe == budget


def test_the_published_grid_gives_the_published_sampler() -> None:
    """k-diffusion's dpm_fast, written out: equal steps in half log-SNR, r = 1/3 and 2/3 or 1/2, and no step to 0."""
    process = process_of("vp")
    denoiser, x = spec_mixture(process), normals(6, 2, seed=1)
    for budget in (7, 8, 9):
        orders = fast_orders(budget)
        ends = logsnr_grid(process, len(orders), low=float(process.schedule.t_min))
        state = x
        for k, order in enumerate(orders):
            rule = make_solver({1: "ddim", 2: "dpm-solver-2", 3: "dpm-solver-3"}[order])
            state = run(denoiser, rule, ends[k : k + 2], state).x
        found = run(denoiser, make_solver("dpm-fast"), fast_grid(process.schedule, budget), x).x
        torch.testing.assert_close(found, state, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="evaluations=0"):
        fast_grid(process.schedule, 0)


def test_frames_that_rest_within_a_group_walk_it_by_first_order_steps() -> None:
    process = process_of("trig")
    video, x = ar1_video(process, 4), normals(3, 4, seed=1)
    fast = make_solver("dpm-fast")
    grid = known(make_grid(process.schedule, 10), 4, [1])
    assert torch.equal(run(video, fast, grid, x).x[:, 1], x[:, 1])
    plain = run(video, fast, make_grid(process.schedule, 10), x).x
    torch.testing.assert_close(run(video, fast, known(make_grid(process.schedule, 10), 4, []), x).x, plain)
    errors = []
    for steps in (12, 48):  # no closed end point along this path: the fine run of another solver
        path = pyramid(steps, 4, 2)
        fine = run(video, make_solver("dpm++2m"), pyramid(20 * steps, 4, 40), x).x
        errors.append(float((run(video, fast, path, x).x - fine).abs().max()))
    assert errors[1] < 0.5 * errors[0]


# -- diffusers ----------------------------------------------------------------------------------------

BOUND = 2e-6
BETAS = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def times_of(process: GaussianProcess, sigmas: Tensor) -> Tensor:
    positive = sigmas[sigmas > 0].double()
    times = process.schedule.time(-torch.log(positive))
    return torch.cat([times, times.new_zeros(len(sigmas) - len(positive))])


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [5, 6, 7, 10, 20])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver"])
def test_dpm_solver_singlestep_of_diffusers_agrees(algorithm: str, steps: int, final: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    if algorithm == "dpmsolver" and final == "zero":
        pytest.skip("diffusers refuses it")
    process = GaussianProcess(make_schedule("scaled-linear"))
    denoiser, x = spec_mixture(process), normals(16, 2, seed=1)
    theirs = diffusers.DPMSolverSinglestepScheduler(
        **BETAS, algorithm_type=algorithm, solver_order=3, final_sigmas_type=final, lower_order_final=True
    )
    theirs.set_timesteps(steps)
    theirs.sigmas = theirs.sigmas.double()
    grid, state = times_of(process, theirs.sigmas), x
    for k, t in enumerate(theirs.timesteps):
        time = float(grid[k])
        state = theirs.step(process.eps(state, denoiser(state, time), time), t, state).prev_sample
    form = "data" if algorithm == "dpmsolver++" else "noise"
    ours = run(denoiser, make_solver("dpm-fast", form=form, published="diffusers"), grid, x).x
    assert state.isfinite().all()
    assert gap(ours, state) < BOUND


@pytest.mark.parametrize(("order", "variant"), [(1, "midpoint"), (2, "midpoint"), (2, "heun")])
@pytest.mark.parametrize("steps", [5, 10])
def test_dpm_solver_singlestep_of_lower_order_agrees(steps: int, order: int, variant: str) -> None:
    """With their own default of lower_order_final, which they change where it cannot hold."""
    diffusers = pytest.importorskip("diffusers")
    for algorithm, final in (("dpmsolver++", "zero"), ("dpmsolver++", "sigma_min"), ("dpmsolver", "sigma_min")):
        theirs = diffusers.DPMSolverSinglestepScheduler(
            **BETAS, algorithm_type=algorithm, solver_order=order, solver_type=variant, final_sigmas_type=final
        )
        setup = from_diffusers(theirs)
        assert setup.solver.order == order
        denoiser, state = spec_mixture(setup.process), normals(16, 2, seed=1)
        theirs.set_timesteps(steps)
        theirs.sigmas = theirs.sigmas.double()
        grid = times_of(setup.process, theirs.sigmas)
        ours = run(denoiser, setup.solver, grid, state).x
        for k, t in enumerate(theirs.timesteps):
            post = denoiser(state, float(grid[k]))
            state = theirs.step(setup.process.eps(state, post, float(grid[k])), t, state).prev_sample
        assert gap(ours, state) < BOUND


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_kdpm2_of_diffusers_agrees(steps: int, spacing: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    process = GaussianProcess(make_schedule("scaled-linear"))
    denoiser, z = spec_mixture(process), normals(16, 2, seed=1)
    theirs = diffusers.KDPM2DiscreteScheduler(**BETAS, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    theirs.sigmas, theirs.sigmas_interpol = theirs.sigmas.double(), theirs.sigmas_interpol.double()
    rho, state = float(theirs.sigmas[0]), z * theirs.sigmas[0]
    for t in theirs.timesteps:
        here = float(theirs.sigmas[theirs.step_index or 0] if theirs.sample is None else 0.0)
        if theirs.sample is not None:
            here = float(theirs.sigmas_interpol[theirs.step_index])
        time = float(times_of(process, torch.tensor([here], dtype=torch.float64)))
        scaled = state * (1 + here**2) ** -0.5
        state = theirs.step(process.eps(scaled, denoiser(scaled, time), time), t, state).prev_sample
    levels = torch.cat([theirs.sigmas[:1], theirs.sigmas[1::2]])[: steps + 1]  # they repeat the last 0
    ours = run(denoiser, make_solver("dpm-solver-2"), times_of(process, levels), z * rho * (1 + rho**2) ** -0.5).x
    assert gap(ours, state) < BOUND
