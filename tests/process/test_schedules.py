"""Schedules: closed forms against autograd, inverses, ends, tables."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import SCHEDULE_NAMES
from undiffuse.process.registry import SCHEDULES, make_schedule, schedule_from_json, schedule_to_json
from undiffuse.process.schedules import Schedule
from undiffuse.process.tables import TableSchedule, ddpm_schedule
from undiffuse.process.warp import TimeWarp

INSIDE = torch.tensor([0.0021, 0.01, 0.1003, 0.5004, 0.9001, 0.9987], dtype=torch.float64)  # between a table's knots

VARIANTS: list[tuple[str, dict[str, object]]] = [(name, {}) for name in SCHEDULE_NAMES] + [
    ("rf", {"shift": 3.0}),
    ("vp", {"beta_min": 0.5, "beta_max": 8.0}),
    ("ve", {"sigma_min": 0.01, "sigma_max": 50.0}),
    ("ddpm", {"zero_terminal_snr": True}),
    ("scaled-linear", {"zero_terminal_snr": True}),
]


@pytest.fixture(params=VARIANTS, ids=lambda v: v[0] + "".join(f" {k}" for k in v[1]))
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return make_schedule(request.param[0], **request.param[1])


def test_slopes_are_the_derivatives(schedule: Schedule) -> None:
    t = INSIDE.clone().requires_grad_()
    for value, slope in ((schedule.alpha, schedule.alpha_slope), (schedule.sigma, schedule.sigma_slope)):
        out = value(t)
        found = torch.autograd.grad(out.sum(), t)[0] if out.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(slope(t).detach(), found, rtol=1e-8, atol=1e-8)


def test_the_diffusion_is_its_definition_and_never_negative(schedule: Schedule) -> None:
    t = INSIDE.clone().requires_grad_()
    square = torch.autograd.grad((schedule.sigma(t) ** 2).sum(), t)[0]
    half = torch.autograd.grad(schedule.half_logsnr(t).sum(), t)[0]
    g2 = schedule.diffusion(INSIDE)
    torch.testing.assert_close(g2, -2 * schedule.sigma(INSIDE) ** 2 * half, rtol=1e-8, atol=1e-8)
    f = schedule.alpha_slope(INSIDE) / schedule.alpha(INSIDE)
    torch.testing.assert_close(g2, square - 2 * f * schedule.sigma(INSIDE) ** 2, rtol=1e-8, atol=1e-8)
    dense = torch.linspace(schedule.t_min, schedule.t_max, 3001, dtype=torch.float64)
    assert bool((schedule.diffusion(dense) >= 0).all())


def test_time_is_the_inverse_by_bisection(schedule: Schedule) -> None:
    halves = schedule.half_logsnr(INSIDE)
    low, high = torch.zeros_like(INSIDE), torch.ones_like(INSIDE)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = schedule.half_logsnr(middle) > halves  # too little noise: the time lies higher
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    torch.testing.assert_close(schedule.time(halves), low, rtol=1e-8, atol=1e-8)
    dense = torch.linspace(schedule.t_min, schedule.t_max, 1001, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.half_logsnr(dense)), dense, rtol=1e-8, atol=1e-8)


def test_noise_rises_strictly_with_time(schedule: Schedule) -> None:
    dense = torch.linspace(schedule.t_min, 1.0, 4001, dtype=torch.float64)
    assert bool((schedule.half_logsnr(dense).diff() < 0).all())
    assert bool((schedule.sigma(dense).diff() > 0).all())


def test_zero_is_the_clean_end_and_one_is_noise(schedule: Schedule) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float(schedule.alpha(ends)[0]) == 1.0
    assert float(schedule.sigma(ends)[0]) == 0.0
    assert float(schedule.half_logsnr(ends)[0]) == math.inf
    assert float(schedule.time(torch.tensor(math.inf, dtype=torch.float64))) == 0.0
    assert float(schedule.time(torch.tensor(-60.0, dtype=torch.float64))) == pytest.approx(1.0, abs=1e-12)
    useful = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    assert bool(schedule.half_logsnr(useful).isfinite().all())
    assert float(schedule.alpha(ends)[1] / schedule.sigma(ends)[1]) < 0.13
    if schedule.name in ("trig", "rf", "cosine"):
        assert float(schedule.alpha(ends)[1]) == 0.0


@pytest.mark.parametrize("name", ["vp", "cosine", "trig", "ddpm", "scaled-linear"])
def test_variance_preserving_schedules_preserve_variance(name: str) -> None:
    schedule, t = make_schedule(name), torch.linspace(0, 1, 501, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t), rtol=1e-13, atol=0)


def test_published_formulas_hold() -> None:
    t = INSIDE
    beta = 0.1 + 19.9 * t
    log_alpha = -0.25 * t**2 * 19.9 - 0.05 * t
    values: dict[str, tuple[Tensor, Tensor]] = {
        "vp": (torch.exp(log_alpha), torch.sqrt(1 - torch.exp(2 * log_alpha))),
        "subvp": (torch.exp(log_alpha), 1 - torch.exp(2 * log_alpha)),
        "trig": (torch.cos(math.pi * t / 2), torch.sin(math.pi * t / 2)),
        "rf": (1 - t, t),
    }
    f = torch.cos(math.pi / 2 * (t + 0.008) / 1.008) ** 2 / math.cos(math.pi / 2 * 0.008 / 1.008) ** 2
    values["cosine"] = (torch.sqrt(f), torch.sqrt(1 - f))
    for name, (alpha, sigma) in values.items():
        schedule = make_schedule(name)
        torch.testing.assert_close(schedule.alpha(t), alpha, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(schedule.sigma(t), sigma, rtol=1e-10, atol=1e-13)
    subvp = make_schedule("subvp").diffusion(t)
    torch.testing.assert_close(subvp, beta * -torch.expm1(4 * log_alpha), rtol=1e-10, atol=1e-12)
    ends = torch.tensor([1e-3, 1.0], dtype=torch.float64)
    for name in ("ve", "edm"):
        torch.testing.assert_close(
            make_schedule(name).sigma(ends), torch.tensor([0.002, 80.0], dtype=torch.float64), rtol=1e-12, atol=0
        )
    shifted = make_schedule("rf", shift=3.0)
    torch.testing.assert_close(shifted.sigma(t), 3 * t / (1 + 2 * t), rtol=1e-14, atol=0)


def test_a_uniform_grid_of_the_edm_schedule_is_the_edm_grid() -> None:
    schedule, n = make_schedule("edm"), 18
    t = torch.linspace(1.0, schedule.t_min, n, dtype=torch.float64)
    i = torch.arange(n, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(schedule.sigma(t), expected, rtol=1e-12, atol=0)


# -- tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "betas"),
    [
        ("ddpm", torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
        ("scaled-linear", torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2),
    ],
)
def test_tables_hold_their_entries_and_interpolate_log_sigma(name: str, betas: Tensor) -> None:
    schedule, abar = make_schedule(name), torch.cumprod(1 - betas, 0)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule.alpha(t) ** 2, abar, rtol=1e-11, atol=0)
    log_rho = 0.5 * torch.log((1 - abar) / abar)
    between = -schedule.half_logsnr((torch.arange(1, 1000, dtype=torch.float64) + 0.25) / 1000)
    torch.testing.assert_close(between, 0.75 * log_rho[:-1] + 0.25 * log_rho[1:], rtol=1e-10, atol=1e-10)
    below = torch.tensor([1e-6, 5e-4, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(below) ** 2, abar[:1].expand(3), rtol=1e-13, atol=0)


def test_a_table_with_zero_terminal_snr_ends_in_pure_noise() -> None:
    schedule = ddpm_schedule(zero_terminal_snr=True)
    root = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).sqrt()
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(schedule.alpha(t), expected, rtol=1e-10, atol=1e-15)
    assert float(schedule.alpha(t)[-1]) == 0.0
    assert schedule.t_max == 0.999
    tail = torch.tensor([0.9992, 0.9995, 0.99999], dtype=torch.float64)
    assert bool(schedule.half_logsnr(tail).isfinite().all())
    torch.testing.assert_close(schedule.time(schedule.half_logsnr(tail)), tail, rtol=1e-10, atol=0)


@pytest.mark.parametrize("table", [(0.9, 0.5), (0.5, 0.9, 0.1), (1.0, 0.5, 0.1), (0.9, 0.5, 0.5), (0.9, 0.5, -0.1), ()])
def test_wrong_tables_are_refused(table: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="strictly decreasing"):
        TableSchedule(alphas_cumprod=table)


# -- names, JSON, warp --------------------------------------------------------------------------------


def test_a_schedule_comes_back_from_json(schedule: Schedule) -> None:
    again = schedule_from_json(json.loads(json.dumps(schedule_to_json(schedule))))
    assert again == schedule
    assert torch.equal(again.alpha(INSIDE), schedule.alpha(INSIDE))


def test_unknown_names_and_options_are_refused_naming_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'cosine'"):
        make_schedule("cosin")
    with pytest.raises(ValueError, match="does not take these options"):
        make_schedule("vp", shift=3.0)
    assert set(SCHEDULE_NAMES) < set(SCHEDULES)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_time_warp_keeps_its_ends_and_inverts(shift: float) -> None:
    warp, t = TimeWarp(shift), torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    out = warp(t)
    assert out.detach()[[0, -1]].tolist() == [0.0, 1.0]
    torch.testing.assert_close(warp.inverse(out), t, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), t)[0], warp.slope(t), rtol=1e-13, atol=0)
    inner = t.detach()[1:-1]
    snr = ((1 - inner) / inner) ** 2
    torch.testing.assert_close(((1 - warp(inner)) / warp(inner)) ** 2, snr / shift**2, rtol=1e-12, atol=0)
    assert warp(0.5) == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5))


@pytest.mark.parametrize("shift", [0.0, -1.0, math.nan])
def test_a_warp_that_is_not_positive_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        TimeWarp(shift)


@pytest.mark.parametrize("name", ["vp", "subvp"])
@pytest.mark.parametrize("half_logsnr", [-math.inf, -1000.0])
def test_noise_beyond_the_schedule_is_asked_for_at_its_nearest_end(name: str, half_logsnr: float) -> None:
    assert float(make_schedule(name).time(torch.tensor(half_logsnr, dtype=torch.float64))) == pytest.approx(1.0)
