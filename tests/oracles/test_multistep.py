"""The exact checks of "The Principles of Diffusion Models" for multistep solvers: equalities, orders, tables."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, push, run, slope, spec_mixture
from tests.oracles.test_principles import logsnr_grid, reference_end
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.reschedule import Reschedule
from undiffuse.noise import InjectedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.sampling.multistep import exponential_moments, solve_weights
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.solver import Solver

Options = dict[str, Any]
STEPS = (16, 32, 64, 128, 256)  # orders are measured over the last four


def ends(name: str, options: Options, grid: Tensor, denoiser: Denoiser, x: Tensor) -> Tensor:
    return run(denoiser, make_solver(name, **options), grid, x).x


def rms(gap: Tensor) -> float:
    return float(gap.square().sum(1).mean().sqrt())


# -- the two building blocks ------------------------------------------------------------------------


@pytest.mark.parametrize("y", [-40.0, -3.0, -0.31, -0.29, -1e-2, -1e-5, 1e-9, 1e-4, 0.2, 0.5, 7.0])
def test_exponential_moments_are_integrals_at_any_step(y: float) -> None:
    """-i! c_i(-h) = int_0^1 theta^i d(e^(-h (1 - theta))), by 60 terms of the series or by Simpson's rule."""
    found = exponential_moments(torch.tensor([y], dtype=torch.float64), 3)
    theta = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    for i, moment in enumerate(found, start=1):
        if abs(y) < 1:
            c = math.fsum(y**k / math.factorial(k + i) for k in range(1, 60))
            assert float(moment) == pytest.approx(math.factorial(i) * c, rel=1e-11)
        else:  # c_i = int theta^(i-1) / (i-1)! e^(y (1 - theta)) - 1 / i!, so that i! c_i = -int theta^i d e^(...)
            values = i * theta ** (i - 1) * torch.exp(y * (1 - theta))
            simpson = float((values[0:-1:2] + 4 * values[1::2] + values[2::2]).sum()) / 60_000
            assert float(moment) == pytest.approx(simpson - 1, rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_weights_integrate_polynomials_exactly(count: int) -> None:
    nodes = [torch.tensor([-r, 1.3 * r], dtype=torch.float64) for r in (0.7, 1.9, 3.2)[:count]]
    moments = [torch.tensor([0.4 / i, 1.1 * i], dtype=torch.float64) for i in range(1, count + 1)]
    weights = solve_weights(nodes, moments)
    for power in range(1, count + 1):
        found = sum(w * r**power for w, r in zip(weights, nodes, strict=True))
        torch.testing.assert_close(found, moments[power - 1], rtol=1e-12, atol=1e-12)


def test_nodes_may_be_numbers_for_all() -> None:
    nodes = [torch.tensor(-r, dtype=torch.float64) for r in (0.7, 1.9)] + [torch.full((4,), -3.2, dtype=torch.float64)]
    moments = [torch.arange(1.0, 5.0, dtype=torch.float64) / i for i in (1, 2, 3)]
    for own, whole in zip(
        solve_weights(nodes, moments), solve_weights([r.expand(4) for r in nodes], moments), strict=True
    ):
        assert torch.equal(own, whole)


# -- 3, 4. equalities ---------------------------------------------------------------------------------

SETTINGS = [("vp", "logsnr"), ("vp", "t"), ("rf", "t"), ("rf", "logsnr"), ("ddpm", "trailing"), ("ve", "karras")]


@pytest.mark.parametrize(("name", "shape"), SETTINGS)
def test_all_first_order_rules_are_ddim(name: str, shape: str) -> None:
    process = process_of(name)
    denoiser, grid = spec_mixture(process), make_grid(process.schedule, 9, shape)  # type: ignore[arg-type]
    x = normals(16, 2, seed=1) * float(process.schedule.sigma(torch.ones((), dtype=torch.float64)))
    ddim = ends("ddim", {}, grid, denoiser, x)
    for rule, options in (
        ("dpm++2m", {"order": 1}),
        ("dpm-solver-2m", {"order": 1}),
        ("deis-2", {"order": 1}),
        ("unipc", {"order": 1, "corrector": False}),
    ):
        torch.testing.assert_close(ends(rule, options, grid, denoiser, x), ddim, rtol=1e-12, atol=1e-12)


EQUAL: list[tuple[tuple[str, Options], tuple[str, Options]]] = [
    (("dpm++2m", {}), ("unipc", {"corrector": False})),
    (("dpm++3m", {}), ("unipc-3", {"corrector": False})),
    (("dpm-solver-2m", {}), ("unipc", {"corrector": False, "form": "noise"})),
    (("dpm-solver-3m", {}), ("unipc-3", {"corrector": False, "form": "noise"})),
    (("dpm-solver-3m", {"variant": "heun"}), ("deis-3", {"variable": "logrho"})),
    (("sde-dpm++3m", {"tau": 0.0}), ("dpm++3m", {})),
    (("sde-dpm++1", {}), ("ddim", {"eta": 1.0})),
    (("euler-ancestral", {}), ("ddpm", {})),
    (("unipc-3", {"simplified": False, "variant": "bh1"}), ("unipc-3", {"simplified": False})),
    (("unipc", {"simplified": False, "variant": "bh1"}), ("unipc", {"simplified": False})),
]


@pytest.mark.parametrize(("name", "shape"), SETTINGS)
def test_rules_that_are_one_give_one_result(name: str, shape: str) -> None:
    process = process_of(name)
    denoiser = spec_mixture(process)
    x = normals(16, 2, seed=1) * float(process.schedule.sigma(torch.ones((), dtype=torch.float64)))
    for end in ("zero", "t_min"):
        grid = make_grid(process.schedule, 16, shape, end)  # type: ignore[arg-type]
        for one, other in EQUAL:
            if end == "t_min" and "unipc" in (one[0], other[0]):  # only UniPC lowers a second-order last step there
                one, other = ((rule, {**options, "lower_final": False}) for rule, options in (one, other))
            found, expected = ends(*one, grid, denoiser, x), ends(*other, grid, denoiser, x)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=f"{one} {other}")


def test_rules_that_differ_do() -> None:
    process = process_of("vp")
    denoiser, x, grid = spec_mixture(process), normals(16, 2, seed=1), logsnr_grid(process, 20)
    for one, other in (
        (("dpm++3m", {}), ("dpm++3m", {"published": True})),
        (("unipc", {}), ("unipc", {"variant": "bh1"})),
        (("unipc", {}), ("unipc", {"simplified": False})),
        (("unipc", {}), ("unipc", {"form": "noise"})),
        (("dpm++2m", {}), ("dpm-solver-2m", {})),
        (("deis-3", {}), ("deis-3", {"variable": "rho"})),
        (("lms", {}), ("ipndm", {})),
    ):
        assert rms(ends(*one, grid, denoiser, x) - ends(*other, grid, denoiser, x)) > 1e-4, (one, other)


def test_classical_weights_are_those_of_adams_and_bashforth() -> None:
    """On a grid even in rho, polynomials in rho are polynomials in the step: 55, -59, 37, -9 over 24."""
    process = process_of("edm")
    halves = -torch.log(torch.linspace(40.0, 2.0, 9, dtype=torch.float64))
    grid, x = process.schedule.time(halves), 40 * normals(4, 2, seed=1)
    denoiser, posts = spec_mixture(process), []
    lms, ipndm = make_solver("lms", lower_final=False), make_solver("ipndm", lower_final=False)
    found = run(denoiser, ipndm, grid, x, trajectory=True, callback=lambda shot: posts.append(shot.post.mean))
    torch.testing.assert_close(found.x, run(denoiser, lms, grid, x).x, rtol=1e-9, atol=1e-9)
    path = found.trajectory
    assert path is not None
    rho = torch.exp(-process.schedule.half_logsnr(grid))
    eps = [(path[k] - posts[k]) / rho[k] for k in range(8)]
    last = path[7] + (rho[8] - rho[7]) / 24 * (55 * eps[7] - 59 * eps[6] + 37 * eps[5] - 9 * eps[4])
    torch.testing.assert_close(found.x, last, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_sde_2m_is_that_of_k_diffusion_whose_eta_is_tau_squared(variant: str, eta: float) -> None:
    """Its `sample_dpmpp_2m_sde`, written out: the state is z = x / alpha at rho = sigma / alpha."""
    process = process_of("vp")
    denoiser, x = spec_mixture(process), normals(16, 2, seed=1)
    grid = make_grid(process.schedule, 12)
    noises = {("step", k): normals(16, 2, seed=20 + k) for k in range(12)}
    alpha, half = process.schedule.alpha(grid), process.schedule.half_logsnr(grid[:-1])
    z, old, before = x / alpha[0], torch.zeros(()), 0.0
    for k in range(11):
        mean, h = denoiser(alpha[k] * z, float(grid[k])).mean, float(half[k + 1] - half[k])
        rho, gain = torch.exp(-half[k + 1]), -math.expm1(-h - eta * h)
        z = torch.exp(half[k] - half[k + 1] - eta * h) * z + gain * mean
        if k:
            share = 0.5 * gain if variant == "midpoint" else gain / (-h - eta * h) + 1
            z = z + share * h / before * (mean - old)
        z = z + noises["step", k] * rho * math.sqrt(-math.expm1(-2 * eta * h))
        old, before = mean, h
    expected = denoiser(alpha[11] * z, float(grid[11])).mean  # its last step, to no noise
    rule = make_solver("sde-dpm++2m", tau=math.sqrt(eta), variant=variant)
    found = run(denoiser, rule, grid, x, noise=InjectedNoise(noises)).x  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# -- 5. orders of convergence and the table of section 5 -------------------------------------------------

TABLE: dict[str, tuple[str, Options, tuple[float, float], tuple[float | None, ...]]] = {
    "ddim": ("ddim", {}, (0.75, 1.25), (1.4e-1, 7.4e-2, 3.8e-2, 1.9e-2, 9.6e-3)),
    "2M": ("dpm++2m", {}, (1.75, 2.25), (2.4e-2, 6.1e-3, 1.5e-3, 3.7e-4, 9.1e-5)),
    "3M published": ("dpm++3m", {"published": True}, (1.75, 2.25), (7.2e-3, 1.3e-3, 3.1e-4, 7.7e-5, 2.0e-5)),
    "3M": ("dpm++3m", {}, (2.75, 3.25), (7.7e-3, 1.05e-3, 1.4e-4, 1.9e-5, 2.4e-6)),
    "DEIS-2": ("deis-2", {}, (1.75, 2.25), (5.2e-2, 1.6e-2, 4.6e-3, 1.2e-3, 3.1e-4)),
    "DEIS-3": ("deis-3", {}, (2.75, 3.25), (2.3e-2, 4.6e-3, 7.1e-4, 9.7e-5, 1.3e-5)),
    "DEIS-3 logrho": ("deis-3", {"variable": "logrho"}, (2.75, 3.25), (None, 2.4e-3, 3.5e-4, 4.2e-5, 5.1e-6)),
    "DEIS-3 rho": ("deis-3", {"variable": "rho"}, (2.75, 3.25), (None, 1.1e-2, 1.8e-3, 2.6e-4, 3.5e-5)),
    "UniPC-1": ("unipc", {"order": 1}, (1.7, 2.2), (6.3e-2, 1.9e-2, 5.0e-3, 1.3e-3, 3.2e-4)),
    "UniPC-2": ("unipc", {}, (2.7, 3.2), (1.1e-2, 1.4e-3, 1.7e-4, 2.1e-5, 2.6e-6)),
    "UniPC-3": ("unipc-3", {}, (3.6, 4.2), (6.0e-3, 5.3e-4, 4.5e-5, 3.4e-6, 2.3e-7)),
    "2M noise": ("dpm-solver-2m", {}, (1.75, 2.25), ()),
    "3M noise": ("dpm-solver-3m", {}, (2.75, 3.25), ()),
    "3M noise published": ("dpm-solver-3m", {"published": True}, (1.75, 2.25), ()),
    "LMS": ("lms", {}, (3.4, 4.25), ()),
}


@pytest.fixture(scope="module")
def reference() -> tuple[Denoiser, Tensor, Tensor]:
    """The table's own 64 starting points (the spec does not name them; these reproduce it to a few per cent)."""
    denoiser, x = spec_mixture(process_of("vp")), normals(64, 2, seed=0)
    return denoiser, x, reference_end(denoiser, x, 400)  # off by 3e-8


@pytest.mark.parametrize("row", [pytest.param(row, marks=[] if TABLE[row][3] else pytest.mark.slow) for row in TABLE])
def test_orders_and_errors_are_those_of_the_spec_s_table(reference: tuple[Denoiser, Tensor, Tensor], row: str) -> None:
    denoiser, x, exact = reference
    name, options, orders, table = TABLE[row]
    errors = [rms(ends(name, options, logsnr_grid(denoiser.process, n), denoiser, x) - exact) for n in STEPS]  # type: ignore[arg-type]
    low, high = orders
    assert low < slope(errors[1:], STEPS[-1] / STEPS[1]) < high, errors
    for found, told in zip(errors, table, strict=False):
        assert told is None or 1 / 1.5 < found / told < 1.5, errors


@pytest.mark.parametrize("name", ["rf", "ve"])
def test_third_order_holds_on_other_schedules(name: str) -> None:
    process = process_of(name)
    denoiser = spec_mixture(process)
    x = normals(16, 2, seed=0) * float(process.schedule.sigma(torch.tensor(0.99, dtype=torch.float64)))
    fine = ends("unipc-3", {}, logsnr_grid(process, 400, 0.99), denoiser, x)
    for options, order in (({}, 3.0), ({"published": True}, 2.0)):
        errors = [rms(ends("dpm++3m", options, logsnr_grid(process, n, 0.99), denoiser, x) - fine) for n in (96, 192)]
        assert abs(slope(errors, 2) - order) < 0.25, (options, errors)


GRIDS: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {
    # RMS end-point errors at 20 and 50 steps of: ddim, 2M, 3M published, 3M corrected and both with last orders lowered
    ("logsnr", "zero"): ((1.3e-1, 5.3e-2), (2.1e-2, 3.0e-3), (6.0e-3, 4.6e-4), (1.0e-2, 6.1e-4), (5.6e-3, 2.6e-4)),
    ("karras", "zero"): ((1.5e-1, 6.1e-2), (5.2e-2, 6.5e-3), (6.1e-2, 1.8e-3), (3.3e-2, 1.7e-3), (6.0e-2, 6.2e-4)),
    ("trailing", "zero"): ((1.1e-1, 4.3e-2), (5.0e-2, 8.6e-3), (6.0e-2, 5.5e-3), (5.1e-2, 6.5e-3), (5.6e-2, 5.3e-3)),
    ("linspace", "t_min"): ((1.0e-1, 4.2e-2), (1.6e-1, 3.7e-2), (5.6e-2, 4.4e-3), (4.7e-2, 5.6e-3), (5.2e-2, 4.3e-3)),
}


@pytest.mark.parametrize(("shape", "end"), list(GRIDS))
def test_errors_on_other_grids_are_those_of_the_spec_s_second_table(shape: str, end: str) -> None:
    process = process_of("ddpm")
    denoiser, x = spec_mixture(process), normals(64, 2, seed=0)
    fine = ends("unipc-3", {}, make_grid(process.schedule, 250, "logsnr", end), denoiser, x)  # type: ignore[arg-type]
    rules: tuple[tuple[str, Options], ...] = (
        ("ddim", {}),
        ("dpm++2m", {}),
        ("dpm++3m", {}),
        ("unipc", {}),
        ("unipc-3", {}),
    )
    for (name, options), table in zip(rules, GRIDS[shape, end], strict=True):
        for steps, told in zip((20, 50), table, strict=True):
            grid = make_grid(process.schedule, steps, shape, end)  # type: ignore[arg-type]
            error = rms(ends(name, options, grid, denoiser, x) - fine)
            assert 1 / 1.5 < error / told < 1.5, (name, steps, error, told)


def test_a_third_order_last_step_into_the_smallest_level_is_why_orders_are_lowered() -> None:
    process = process_of("ddpm")
    denoiser, x = spec_mixture(process), normals(64, 2, seed=0)
    fine = ends("unipc-3", {}, make_grid(process.schedule, 250, "logsnr", "t_min"), denoiser, x)
    uneven = make_grid(process.schedule, 20, "linspace", "t_min")
    kept = rms(ends("dpm++3m", {"lower_final": False}, uneven, denoiser, x) - fine)
    assert kept > 0.5 > 5 * rms(ends("dpm++3m", {}, uneven, denoiser, x) - fine)
    even = make_grid(process.schedule, 20, "logsnr", "t_min")
    assert torch.equal(
        ends("dpm++3m", {}, even, denoiser, x), ends("dpm++3m", {"lower_final": False}, even, denoiser, x)
    )


# -- 6, 7. a point mass, and exact moments ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpm++3m", "dpm-solver-3m", "deis-3", "lms", "ipndm", "unipc", "unipc-3"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_point_mass_is_exact_in_any_number_of_steps(name: str, steps: int) -> None:
    process, point = process_of("vp"), torch.tensor([0.4, -1.3], dtype=torch.float64)
    denoiser = GaussianDenoiser(point, torch.zeros(2, 2, dtype=torch.float64), process)
    grid, x = logsnr_grid(process, steps, low=0.05), normals(8, 2, seed=3)
    (alpha, sigma), (alpha_0, sigma_0) = ([float(c[k]) for c in process.schedule.levels(grid)] for k in (0, -1))
    expected = alpha_0 * point + sigma_0 / sigma * (x - alpha * point)
    torch.testing.assert_close(ends(name, {}, grid, denoiser, x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "options", "order", "table"),
    [
        ("sde-dpm++1", {}, 1, (9.7e-2, 5.7e-2, 3.1e-2, 1.6e-2, 8.2e-3)),
        ("sde-dpm++2m", {"variant": "heun"}, 2, (5.2e-2, 1.3e-2, 3.1e-3, 7.6e-4, 1.9e-4)),
        ("sde-dpm++3m", {}, 2, (2.5e-2, None, None, None, 3.2e-5)),
        ("sde-dpm++3m", {"published": True}, 2, (3.2e-2, None, None, None, 6.3e-5)),
        ("sde-dpm++3m", {"published": "diffusers"}, 1, (6.2e-2, None, None, None, 3.0e-3)),
    ],
)
def test_variances_of_stochastic_rules_converge_as_the_spec_measured(
    name: str, options: Options, order: int, table: tuple[float | None, ...]
) -> None:
    """Means are exact at every number of steps; variances by propagating coefficients, so without sampling error."""
    process, mean, variance, low = process_of("vp"), 0.7, 0.25, 0.005
    denoiser = GaussianDenoiser(
        torch.tensor([mean], dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64), process
    )
    errors = []
    for steps in (16, 32, 64, 128, 256):
        grid = logsnr_grid(process, steps, low=low)
        (alpha, sigma), (alpha_0, sigma_0) = ([float(c[k]) for c in process.schedule.levels(grid)] for k in (0, -1))
        start = torch.tensor([alpha * mean], dtype=torch.float64)
        scale = torch.tensor([math.sqrt(alpha**2 * variance + sigma**2)], dtype=torch.float64)
        rule = make_solver(name, **{"lower_final": False, **options})
        found, spread = push(denoiser, rule, grid, start, scale)
        assert float(found) == pytest.approx(alpha_0 * mean, abs=1e-12)
        errors.append(abs(float(spread) - alpha_0**2 * variance - sigma_0**2))
    assert abs(slope(errors[1:], 8) - order) < 0.3, errors
    assert all(told is None or 1 / 1.5 < found / told < 1.5 for found, told in zip(errors, table, strict=True)), errors


# -- 8, 20 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpm++3m", "dpm-solver-3m", "lms", "unipc-3"])
def test_matched_noise_levels_give_the_same_samples_on_another_schedule(name: str) -> None:
    vp, rf = process_of("vp"), process_of("rf")
    denoiser, halves = spec_mixture(vp), torch.linspace(-4.0, 4.0, 17, dtype=torch.float64)
    z, found = normals(16, 2, seed=1) * math.exp(4.0), []
    for process in (vp, rf):
        grid = process.schedule.time(halves)
        served = denoiser if process is vp else Reschedule(denoiser, process)
        alphas = process.schedule.alpha(grid)
        found.append(ends(name, {}, grid, served, alphas[0] * z) / alphas[-1])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def solver_of(name: str, options: Options) -> Solver:
    return make_solver(name, **options)


@pytest.mark.parametrize("name", ["dpm++3m", "dpm-solver-3m", "deis-3", "lms", "unipc", "unipc-3"])
def test_an_edit_between_steps_is_a_restart(name: str) -> None:
    from undiffuse.sampling.constraints import Constraint

    process = process_of("vp")
    denoiser, x = spec_mixture(process), normals(5, 2, seed=1)
    grid = make_grid(process.schedule, 30)
    rule = solver_of(name, {"lower_final": False})

    class Nudge(Constraint):
        def leave(self, x: Tensor, s: object, k: int, noise: object) -> tuple[Tensor, bool]:
            return (x + 0.1, True) if k == 6 else (x, False)

    edited = run(denoiser, rule, grid, x, constraints=[Nudge()]).x
    path = run(denoiser, rule, grid, x, trajectory=True).trajectory
    assert path is not None
    restarted = run(denoiser, rule, grid[7:], path[7] + 0.1).x
    torch.testing.assert_close(edited, restarted, rtol=1e-11, atol=1e-11)
    assert rms(edited - run(denoiser, rule, grid, x).x) > 1e-3


def one_gaussian(process: GaussianProcess) -> GaussianDenoiser:
    return GaussianDenoiser(
        torch.tensor([0.3], dtype=torch.float64), torch.tensor([[0.5]], dtype=torch.float64), process
    )


@pytest.mark.parametrize("name", ["dpm++3m", "dpm-solver-3m", "deis-3", "lms", "unipc", "unipc-3"])
def test_start_from_pure_noise_at_alpha_zero_is_finite_and_accurate(name: str) -> None:
    """On `rf` from t = 1, where half log-SNR is minus infinity; the exact map of a Gaussian is known."""
    process = process_of("rf")
    x = normals(8, 1, seed=1)
    exact = 0.3 + math.sqrt(0.5) * x
    errors = []
    for steps in (20, 80):
        found = ends(name, {}, make_grid(process.schedule, steps), one_gaussian(process), x)
        errors.append(float((found - exact).abs().max()))
    assert errors[1] < errors[0] / 2 and errors[1] < 0.02, errors
