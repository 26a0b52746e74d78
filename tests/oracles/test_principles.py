"""The exact checks of "The Principles of Diffusion Models" for the continuous core: closed forms against code."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import (
    CONTINUOUS_SOLVERS,
    SCHEDULE_NAMES,
    ExactNetwork,
    normals,
    process_of,
    push,
    run,
    slope,
    spec_mixture,
)
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.denoisers.reschedule import Reschedule
from undiffuse.noise import InjectedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.sampling.registry import make_solver

KINDS = ("data", "noise", "velocity", "v", "edm")
STEPS = (16, 32, 64, 128, 256)  # orders are measured over the last four


def logsnr_grid(process: GaussianProcess, steps: int, high: float = 1.0, low: float = 0.01) -> Tensor:
    """Uniform in half log-SNR between two times, computed here and not by `make_grid`."""
    ends = process.schedule.half_logsnr(torch.tensor([high, low], dtype=torch.float64))
    return process.schedule.time(torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64))


def levels(process: GaussianProcess, t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return float(process.schedule.alpha(time)), float(process.schedule.sigma(time))


# -- 1. conversions -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
@pytest.mark.parametrize("data_std", [1.0, 0.5])
def test_every_conversion_goes_round_to_1e_10(name: str, data_std: float) -> None:
    process, schedule = process_of(name), process_of(name).schedule
    mean, noise = normals(5, 4, 3, seed=1), normals(5, 4, 3, seed=2)
    times: list[float | Tensor] = [1e-3, 0.1, 0.5, 0.9, 0.999]
    column = torch.tensor([1e-3, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    times += [column, column[:, None].flip(0).expand(5, 4) * 0.9 + 0.05, torch.tensor(0.3, dtype=torch.float64)]
    for t in times:
        time = torch.as_tensor(t, dtype=torch.float64)
        fit = time.reshape(time.shape + (1,) * (3 - time.ndim)) if time.ndim else time
        alpha, sigma = schedule.alpha(fit), schedule.sigma(fit)
        d_alpha, d_sigma = schedule.alpha_slope(fit), schedule.sigma_slope(fit)
        x = alpha * mean + sigma * noise
        post = Posterior(mean)
        torch.testing.assert_close(process.eps(x, post, t), noise, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(process.score(x, post, t), (alpha * mean - x) / sigma**2, rtol=1e-10, atol=1e-10)
        velocity = d_alpha * mean + d_sigma * noise
        torch.testing.assert_close(process.velocity(x, post, t), velocity, rtol=1e-10, atol=1e-10)
        v = (alpha * noise - sigma * mean) / torch.sqrt(alpha**2 + sigma**2)
        torch.testing.assert_close(process.v(x, post, t), v, rtol=1e-10, atol=1e-10)
        rho = sigma / alpha
        skip, out = data_std**2 / (rho**2 + data_std**2), rho * data_std / torch.sqrt(rho**2 + data_std**2)
        raw = (mean - skip * x / alpha) / out
        outputs = {"data": mean, "noise": noise, "velocity": velocity, "v": v, "edm": raw}
        for kind, output in outputs.items():
            found = process.mean_from(kind, output, x, t, data_std)  # type: ignore[arg-type]
            torch.testing.assert_close(found, mean, rtol=1e-10, atol=1e-10)
            target = process.target(kind, mean, noise, t, data_std)  # type: ignore[arg-type]
            torch.testing.assert_close(target, output, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["rf", "trig", "cosine"])
@pytest.mark.parametrize("kind", ["data", "velocity", "v", "edm"])
def test_conversions_are_exact_where_alpha_is_zero(name: str, kind: str) -> None:
    process = process_of(name)
    mean, noise = normals(4, 3, seed=1), normals(4, 3, seed=2)
    x = process.corrupt(mean, 1.0, noise)
    assert torch.equal(x, process.coefficients(1.0, noise)[1] * noise)
    output = process.target(kind, mean, noise, 1.0)  # type: ignore[arg-type]
    found = process.mean_from(kind, output, x, 1.0)  # type: ignore[arg-type]
    torch.testing.assert_close(found, mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_item", [False, True])
def test_at_time_zero_every_kind_answers_with_the_state(name: str, kind: str, per_item: bool) -> None:
    process, x = process_of(name), normals(4, 3, seed=1)
    t = torch.zeros(4, dtype=torch.float64) if per_item else 0.0
    output = normals(4, 3, seed=2)
    mean = output if kind == "data" else process.mean_from(kind, output, x, t)  # type: ignore[arg-type]
    if kind != "data":
        torch.testing.assert_close(mean, x, rtol=1e-14, atol=1e-14)
    post = Posterior(x)
    for convert in (process.eps, process.score, process.v, process.velocity):
        assert convert(x, post, t).isfinite().all()
    assert torch.equal(process.eps(x, post, t), torch.zeros_like(x))


def test_rectified_flow_velocity_is_noise_minus_data() -> None:
    process, mean, noise = process_of("rf"), normals(4, 3, seed=1), normals(4, 3, seed=2)
    x = process.corrupt(mean, 0.3, noise)
    torch.testing.assert_close(process.velocity(x, Posterior(mean), 0.3), noise - mean, rtol=1e-13, atol=1e-13)


def test_scores_of_a_data_source_are_refused() -> None:
    process = GaussianProcess(process_of("rf").schedule, source="data")
    with pytest.raises(ValueError, match="Gaussian source"):
        process.score(normals(2, 2), Posterior(normals(2, 2)), 0.5)


# -- 3. all first-order solvers are one -----------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "cosine", "edm", "rf", "ddpm"])
def test_ddim_is_the_exponential_step_and_euler_in_rho(name: str) -> None:
    process = process_of(name)
    denoiser, x = spec_mixture(process), normals(32, 2, seed=1) * levels(process, 0.9)[1]
    for t, s in ((0.9, 0.6), (0.6, 0.59), (0.3, 0.004)):
        (alpha, sigma), (alpha_s, sigma_s) = levels(process, t), levels(process, s)
        h = math.log(alpha_s / sigma_s) - math.log(alpha / sigma)
        mean = denoiser(x, t).mean
        eps = (x - alpha * mean) / sigma
        z = x / alpha
        expected = {
            "DPM-Solver++-1": sigma_s / sigma * x - alpha_s * math.expm1(-h) * mean,
            "DPM-Solver-1": alpha_s / alpha * x - sigma_s * math.expm1(h) * eps,
            "Euler in rho": alpha_s * (z + (sigma_s / alpha_s - sigma / alpha) * (z - mean) / (sigma / alpha)),
        }
        grid = torch.tensor([t, s], dtype=torch.float64)
        for solver in ("ddim", "dpm++2m"):  # the first step of 2M has no memory
            found = run(denoiser, make_solver(solver), grid, x).x
            for value in expected.values():
                torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            process.transition(x, Posterior(mean), t, s), expected["DPM-Solver-1"], rtol=1e-12, atol=1e-12
        )


def test_euler_in_t_equals_ddim_on_the_straight_line_alone() -> None:
    for name, bound in (("rf", 1e-12), ("vp", None), ("trig", None)):
        process = process_of(name)
        denoiser, x = spec_mixture(process), normals(16, 2, seed=1)
        grid = torch.linspace(1.0, 0.0, 9, dtype=torch.float64)
        gap = float(
            (run(denoiser, make_solver("euler"), grid, x).x - run(denoiser, make_solver("ddim"), grid, x).x).abs().max()
        )
        assert gap < bound if bound is not None else gap > 1e-2, (name, gap)


# -- 5. orders of convergence ---------------------------------------------------------------------


def reference_end(denoiser: Denoiser, x: Tensor, steps: int = 600) -> Tensor:
    """DPM-Solver-3 (principles, section 2.5), written here; its error at 600 steps is below 1e-8."""
    process = denoiser.process
    assert isinstance(process, GaussianProcess)
    schedule = process.schedule
    ends = schedule.half_logsnr(torch.tensor([1.0, 0.01], dtype=torch.float64))
    knots = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    h = float(knots[1] - knots[0])
    third = h / 3

    def at(half: Tensor) -> tuple[float, float, float]:
        t = schedule.time(half)
        return float(t), float(schedule.alpha(t)), float(schedule.sigma(t))

    def eps(y: Tensor, t: float, alpha: float, sigma: float) -> Tensor:
        return (y - alpha * denoiser(y, t).mean) / sigma

    for left in knots[:-1]:
        (t, a, sg), (t1, a1, s1), (t2, a2, s2), (_, a3, s3) = (at(left + c * third) for c in range(4))
        e = eps(x, t, a, sg)
        u1 = a1 / a * x - s1 * math.expm1(third) * e
        e1 = eps(u1, t1, a1, s1)
        u2 = a2 / a * x - s2 * math.expm1(2 * third) * e - s2 * 2 * (math.expm1(2 * third) / (2 * third) - 1) * (e1 - e)
        e2 = eps(u2, t2, a2, s2)
        x = a3 / a * x - s3 * math.expm1(h) * e - 1.5 * s3 * (math.expm1(h) / h - 1) * (e2 - e)
    return x


@pytest.fixture(scope="module")
def reference() -> tuple[MixtureDenoiser, Tensor, Tensor]:
    """With the table's own 64 starting points; see `test_multistep`."""
    denoiser = spec_mixture(process_of("vp"))
    x = normals(64, 2, seed=0)
    return denoiser, x, reference_end(denoiser, x)


@pytest.mark.parametrize(
    ("solver", "order", "published"),
    [
        ("ddim", 1, (1.4e-1, 7.4e-2, 3.8e-2, 1.9e-2, 9.6e-3)),
        ("euler", 1, (6.3e-2, 3.3e-2, 1.7e-2, 8.3e-3, 4.2e-3)),
        ("heun", 2, (4.9e-3, 1.2e-3, 2.9e-4, 7.0e-5, 1.7e-5)),
        ("edm-heun", 2, (3.5e-2, 8.2e-3, 2.0e-3, 5.0e-4, 1.3e-4)),
        ("dpm++2m", 2, (2.4e-2, 6.1e-3, 1.5e-3, 3.7e-4, 9.1e-5)),
    ],
)
def test_solvers_converge_at_their_order_with_the_spec_table_s_errors(
    reference: tuple[MixtureDenoiser, Tensor, Tensor], solver: str, order: int, published: tuple[float, ...]
) -> None:
    denoiser, x, exact = reference
    rule = make_solver(solver)
    assert rule.order == order
    errors = [
        float((run(denoiser, rule, logsnr_grid(denoiser.process, n), x).x - exact).square().sum(1).mean().sqrt())  # type: ignore[arg-type]
        for n in STEPS
    ]
    assert abs(slope(errors[1:], STEPS[-1] / STEPS[1]) - order) < 0.25, errors
    assert all(1 / 1.5 < found / told < 1.5 for found, told in zip(errors, published, strict=True)), errors


@pytest.mark.parametrize("name", [pytest.param("rf", marks=pytest.mark.slow), "ve"])
def test_second_order_holds_on_other_schedules(name: str) -> None:
    process = process_of(name)
    denoiser, x = spec_mixture(process), normals(16, 2, seed=5) * levels(process, 0.99)[1]
    fine = run(denoiser, make_solver("dpm++2m"), logsnr_grid(process, 768, 0.99), x).x
    for solver in ("heun", "edm-heun", "dpm++2m"):
        errors = [
            float(
                (run(denoiser, make_solver(solver), logsnr_grid(process, n, 0.99), x).x - fine).square().mean().sqrt()
            )
            for n in (48, 192)
        ]
        assert abs(slope(errors, 4) - 2) < 0.25, (solver, errors)


# -- 6. Gaussian exactness ------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun", "edm-heun", "dpm++2m"])
def test_the_ode_s_end_point_of_a_gaussian_tends_to_the_closed_map(solver: str) -> None:
    process, spread = process_of("vp"), 0.6
    mean = torch.tensor([0.7, -0.2], dtype=torch.float64)
    denoiser = GaussianDenoiser(mean, spread**2 * torch.eye(2, dtype=torch.float64), process)
    (a, s), (a0, s0) = levels(process, 1.0), levels(process, 0.01)
    x = normals(16, 2, seed=3)
    exact = a0 * mean + math.sqrt((a0**2 * spread**2 + s0**2) / (a**2 * spread**2 + s**2)) * (x - a * mean)
    rule = make_solver(solver)
    errors = [float((run(denoiser, rule, logsnr_grid(process, n), x).x - exact).abs().max()) for n in (64, 256)]
    assert abs(slope(errors, 4) - rule.order) < 0.25, errors


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("name", ["vp", "rf", "ve"])
def test_ddim_maps_the_mean_onto_the_mean_at_every_number_of_steps(name: str, steps: int) -> None:
    process, mean = process_of(name), torch.tensor([[0.7, -0.2]], dtype=torch.float64)
    denoiser = GaussianDenoiser(mean[0], 0.3 * torch.eye(2, dtype=torch.float64), process)
    start = levels(process, 1.0)[0] * mean
    found = run(denoiser, make_solver("ddim"), make_grid(process.schedule, steps), start).x
    torch.testing.assert_close(found, mean, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("solver", ["ddim", "ddim eta", "edm-heun", "dpm++2m"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_point_mass_is_exact_in_any_number_of_steps(solver: str, steps: int) -> None:
    process, point = process_of("vp"), torch.tensor([0.4, -1.3], dtype=torch.float64)
    denoiser = GaussianDenoiser(point, torch.zeros(2, 2, dtype=torch.float64), process)
    x = normals(8, 2, seed=3)
    grid = logsnr_grid(process, steps, low=0.05)
    found = run(denoiser, CONTINUOUS_SOLVERS[solver], grid, x)
    (a, s), (a0, s0) = levels(process, 1.0), levels(process, 0.05)
    if solver == "ddim eta":  # x_s - alpha_s x_0 is noise of the right size whatever the steps
        assert float((found.x - a0 * point).abs().max()) < 6 * s0
    else:
        # EDM's form works in z = x / alpha, so one step from alpha 0.007 magnifies round-off by 150^2.
        bound = 1e-10 if solver == "edm-heun" else 1e-12
        torch.testing.assert_close(found.x, a0 * point + s0 / s * (x - a * point), rtol=bound, atol=bound)
    to_zero = torch.cat([grid, grid.new_zeros(1)])
    end = run(denoiser, CONTINUOUS_SOLVERS[solver], to_zero, x).x
    torch.testing.assert_close(end, point.expand(8, 2), rtol=1e-14, atol=1e-14)


# -- 7. moments of the stochastic solvers ----------------------------------------------------------


def moments(solver: str, steps: int, **options: object) -> tuple[float, float, float, float]:
    """Exact mean and variance of a run on N(0.7, 0.25) from t = 1 to 0.005, and those that it should have."""
    process, mean, variance, low = process_of("vp"), 0.7, 0.25, 0.005
    denoiser = GaussianDenoiser(
        torch.tensor([mean], dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64), process
    )
    (a, s), (a0, s0) = levels(process, 1.0), levels(process, low)
    start = torch.tensor([a * mean], dtype=torch.float64)
    scale = torch.tensor([math.sqrt(a**2 * variance + s**2)], dtype=torch.float64)
    rule = make_solver(solver, **options)
    found = push(denoiser, rule, logsnr_grid(process, steps, low=low), start, scale)
    return float(found[0]), float(found[1]), a0 * mean, a0**2 * variance + s0**2


@pytest.mark.parametrize(
    ("solver", "options", "order", "table"),
    [
        ("ddim", {"eta": 1.0}, 1, (9.7e-2, 5.7e-2, 3.1e-2, 1.6e-2, 8.2e-3)),
        ("sde-dpm++2m", {"variant": "heun"}, 2, (5.2e-2, 1.3e-2, 3.1e-3, 7.6e-4, 1.9e-4)),
        ("sde-dpm++2m", {"variant": "midpoint"}, 2, (1.6e-2, None, None, None, 9.2e-5)),
    ],
)
def test_stochastic_solvers_have_exact_means_and_the_table_s_variances(
    solver: str, options: dict[str, object], order: int, table: tuple[float | None, ...]
) -> None:
    errors = []
    for steps, told in zip((16, 32, 64, 128, 256), table, strict=True):
        mean, variance, true_mean, true_variance = moments(solver, steps, **options)
        assert abs(mean - true_mean) < 1e-13
        errors.append(abs(variance - true_variance))
        if told is not None:
            assert abs(errors[-1] / told - 1) < 0.05, (steps, errors[-1], told)
    assert abs(slope(errors[1:], 8) - order) < 0.25, errors


def test_edm_churn_keeps_the_variance_to_second_order() -> None:
    errors = []
    for steps in (32, 128):
        mean, variance, true_mean, true_variance = moments("edm-heun", steps, churn=10.0)
        assert abs(mean - true_mean) < 1e-12
        errors.append(abs(variance - true_variance))
    assert abs(slope(errors, 4) - 2) < 0.5, errors  # the table says 4.7e-2 (16) to 2.1e-4 (256)


def test_temperature_zero_is_the_ode_solver() -> None:
    denoiser, x = spec_mixture(process_of("vp")), normals(16, 2, seed=1)
    grid = logsnr_grid(denoiser.process, 20)  # type: ignore[arg-type]
    ode = run(denoiser, make_solver("dpm++2m"), grid, x).x
    torch.testing.assert_close(run(denoiser, make_solver("sde-dpm++2m", tau=0.0), grid, x).x, ode, rtol=0, atol=0)
    cold = run(denoiser, make_solver("sde-dpm++2m", tau=1e-9), grid, x).x
    torch.testing.assert_close(cold, ode, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "rf", "ddpm"])
def test_one_step_at_temperature_one_is_ddim_with_eta_one_is_the_posterior(name: str) -> None:
    process = process_of(name)
    denoiser, x, z = spec_mixture(process), normals(16, 2, seed=1), normals(16, 2, seed=2)
    for t, s in ((0.9, 0.7), (0.5, 0.49), (0.2, 0.01)):
        (a, sg), (a_s, sg_s) = levels(process, t), levels(process, s)
        mean = denoiser(x, t).mean
        ratio = a / a_s
        between = sg**2 - ratio**2 * sg_s**2
        expected = (ratio * sg_s**2 * x + a_s * between * mean) / sg**2 + math.sqrt(sg_s**2 * between) / sg * z
        noise = InjectedNoise({("step", 0): z})
        grid = torch.tensor([t, s], dtype=torch.float64)
        for rule in (make_solver("sde-dpm++2m"), make_solver("ddim", eta=1.0), make_solver("ddpm")):
            torch.testing.assert_close(run(denoiser, rule, grid, x, noise=noise).x, expected, rtol=1e-10, atol=1e-10)
        for bridge in ("ddim", "brownian"):
            moved = process.transition(x, Posterior(mean), t, s, z, rule=bridge, eta=1.0)  # type: ignore[arg-type]
            torch.testing.assert_close(moved, expected, rtol=1e-10, atol=1e-10)
        large = run(denoiser, make_solver("ddpm", variance="large"), grid, x, noise=noise).x
        gap = math.sqrt(between) - math.sqrt(sg_s**2 * between) / sg
        torch.testing.assert_close(large - expected, gap * z, rtol=1e-8, atol=1e-10)


def test_the_ddim_and_brownian_families_differ_between_zero_and_one() -> None:
    process = process_of("vp")
    ddim, brownian = process.bridge(0.8, 0.5, "ddim", 0.5), process.bridge(0.8, 0.5, "brownian", 0.5)
    assert abs(float(ddim.std) - float(brownian.std)) > 1e-3
    for bridge in (ddim, brownian, process.bridge(0.8, 0.5, "fresh")):
        alpha, sigma = levels(process, 0.5)
        assert bridge.x0 == pytest.approx(alpha, rel=1e-14)
        assert math.hypot(float(bridge.eps), float(bridge.std)) == pytest.approx(sigma, rel=1e-14)


# -- 8. reschedule --------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", "edm-heun", "dpm++2m"])
def test_matched_noise_levels_give_the_same_samples_on_another_schedule(solver: str) -> None:
    vp, rf, ve = process_of("vp"), process_of("rf"), process_of("ve")
    denoiser = spec_mixture(vp)
    halves = torch.linspace(-4.0, 4.0, 13, dtype=torch.float64)
    z = normals(16, 2, seed=1) * math.exp(4.0)
    ends = []
    for process in (vp, rf, ve):
        grid = process.schedule.time(halves)
        served = denoiser if process is vp else Reschedule(denoiser, process)
        alphas = process.schedule.alpha(grid)
        ends.append(run(served, make_solver(solver), grid, alphas[0] * z).x / alphas[-1])
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-10, atol=1e-10)


def test_a_rescheduled_denoiser_is_the_exact_denoiser_of_the_new_schedule() -> None:
    for source, target in (("vp", "rf"), ("rf", "subvp"), ("trig", "edm"), ("ddpm", "cosine")):
        served = Reschedule(spec_mixture(process_of(source)), process_of(target))
        exact = spec_mixture(process_of(target))
        x = normals(8, 2, seed=4)
        for t in (0.05, 0.4, torch.linspace(0.1, 0.8, 8, dtype=torch.float64)):
            torch.testing.assert_close(served(x, t).mean, exact(x, t).mean, rtol=1e-8, atol=1e-8)


# -- same result whatever is predicted --------------------------------------------------------------


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
@pytest.mark.parametrize("name", ["rf", "edm", "ddpm"])
def test_the_prediction_kind_does_not_change_the_samples(name: str, solver: str) -> None:
    process = process_of(name)
    exact, rule = spec_mixture(process), CONTINUOUS_SOLVERS[solver]
    for end in ("zero", "t_min"):
        grid = make_grid(process.schedule, 5, end=end)  # type: ignore[arg-type]
        x = normals(8, 2, seed=2) * levels(process, 1.0)[1]
        expected = run(exact, rule, grid, x).x
        for kind in KINDS:
            if kind == "noise" and levels(process, 1.0)[0] == 0.0:
                continue  # noise says nothing about the data there; see the next test
            for data_std in (1.0, 0.5) if kind == "edm" else (1.0,):
                found = run(ExactNetwork(exact, kind, data_std), rule, grid, x).x  # type: ignore[arg-type]
                # The length of a score that nearly cancels magnifies round-off in sizes chosen by it.
                bound = 1e-8 if solver == "pc-langevin" else 1e-10
                torch.testing.assert_close(found, expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm++2m"])
def test_noise_prediction_agrees_from_the_schedule_s_largest_useful_time(solver: str) -> None:
    process = process_of("rf")
    exact, x = spec_mixture(process), normals(8, 2, seed=2)
    grid = make_grid(process.schedule, 6, start=process.schedule.t_max)
    found = run(ExactNetwork(exact, "noise"), make_solver(solver), grid, x).x
    torch.testing.assert_close(found, run(exact, make_solver(solver), grid, x).x, rtol=1e-10, atol=1e-10)
    from_the_top = run(ExactNetwork(exact, "noise"), make_solver(solver), make_grid(process.schedule, 6), x).x
    assert from_the_top.isfinite().all()


# -- 16, 17 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "rf", "ve"])
def test_the_second_tweedie_identity_gives_the_mixture_s_posterior_covariance(name: str) -> None:
    process = process_of(name)
    denoiser, t = spec_mixture(process), 0.4
    alpha, sigma = levels(process, t)
    x = alpha * normals(6, 2, seed=1) + sigma * normals(6, 2, seed=2)
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]], dtype=torch.float64)
    variances = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64) ** 2
    total = alpha**2 * variances + sigma**2
    distance = (x[:, None] - alpha * means).square().sum(-1)
    share = torch.softmax(
        torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64).log() - total.log() - distance / (2 * total), dim=1
    )
    inner = means + (alpha * variances / total)[:, None] * (x[:, None] - alpha * means)
    within = (share * variances * sigma**2 / total).sum(1)[:, None, None] * torch.eye(2, dtype=torch.float64)
    centred = inner - (share[..., None] * inner).sum(1, keepdim=True)
    expected = within + torch.einsum("bm,bmi,bmj->bij", share, centred, centred)
    columns = [denoiser.cov(x, t, torch.eye(2, dtype=torch.float64)[i].expand_as(x)) for i in range(2)]
    torch.testing.assert_close(torch.stack(columns, dim=-1), expected, rtol=1e-9, atol=1e-11)


def test_edm_with_unit_data_is_minus_v_prediction() -> None:
    process = process_of("vp")
    network = torch.nn.Linear(3, 3).double()

    def backbone(sign: float) -> torch.nn.Module:
        class Net(torch.nn.Module):
            def forward(self, x: Tensor, level: Tensor, cond: object) -> Tensor:
                return sign * torch.tanh(network(x) + level[:, None])

        return Net()

    v = NetworkDenoiser(backbone(1.0), process, "v")
    edm = NetworkDenoiser(backbone(-1.0), process, "edm", data_std=1.0)
    x = normals(5, 3, seed=1)
    for t in (1.0, 0.9, 0.3, 0.01):
        torch.testing.assert_close(edm(x, t).mean, v(x, t).mean, rtol=1e-12, atol=1e-12)
        # and it is the preconditioned network of the paper on z = x / alpha
        alpha, sigma = levels(process, t)
        rho, z = sigma / alpha, x / alpha
        inner = -torch.tanh(network(z / math.sqrt(rho**2 + 1)) + 0.25 * math.log(rho))
        expected = z / (rho**2 + 1) + rho / math.sqrt(rho**2 + 1) * inner
        torch.testing.assert_close(edm(x, t).mean, expected, rtol=1e-10, atol=1e-10)
