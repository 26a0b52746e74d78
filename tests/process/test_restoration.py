"""Schedules of supervised restoration: closed forms, tables, and the published update rules as bridges of the core."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.options import GaussianOptions
from undiffuse.process.registry import make_schedule, schedule_from_json, schedule_to_json

NAMES = ("ir-sde", "resshift", "i2sb", "indi", "rddm")
PAIRS = [(0.9, 0.7), (0.71, 0.3), (0.4, 0.2), (0.999, 0.1)]


def value(*numbers: float) -> list[Tensor]:
    return [torch.tensor(number, dtype=torch.float64) for number in numbers]


@pytest.mark.parametrize("name", NAMES)
def test_slopes_inverses_and_files(name: str) -> None:
    schedule = make_schedule(name)
    assert schedule_from_json(schedule_to_json(schedule)) == schedule
    t = torch.linspace(schedule.t_min * 1.01, 0.999, 60, dtype=torch.float64).requires_grad_()
    alpha, sigma = schedule.levels(t)
    (alpha_slope,) = torch.autograd.grad(alpha.sum(), t, retain_graph=True)
    (sigma_slope,) = torch.autograd.grad(sigma.sum(), t)
    t = t.detach()
    torch.testing.assert_close(schedule.alpha_slope(t), alpha_slope, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(schedule.sigma_slope(t), sigma_slope, atol=1e-11, rtol=1e-10)
    half = schedule.half_logsnr(t)
    torch.testing.assert_close(half, (alpha / sigma).log().detach(), atol=1e-10, rtol=0)
    assert bool((half.diff() < 0).all())
    torch.testing.assert_close(schedule.time(half), t, atol=1e-12, rtol=0)
    zero = torch.zeros((), dtype=torch.float64)
    assert (float(schedule.alpha(zero)), float(schedule.sigma(zero))) == (1.0, 0.0)
    assert float(schedule.alpha(zero + 1)) < 0.0051


def test_resshift_has_its_published_table() -> None:
    """eta_1 = 4e-4, eta_8 = 0.230, eta_15 = 0.999, and all others by the paper's formula."""
    schedule = make_schedule("resshift")
    k = torch.arange(1, 16, dtype=torch.float64)
    first, last, power = min(0.04 / 2, math.sqrt(0.001)) ** 2, 0.999, 0.3
    base = math.exp(math.log(last / first) / (2 * 14))
    table = (math.sqrt(first) * base ** (((k - 1) / 14) ** power * 14)) ** 2
    torch.testing.assert_close(schedule.share(k / 15)[1:], table[1:], atol=1e-12, rtol=0)
    # (k / T - 1 / T) is 0 at the first level but for rounding, whose root of 0.3 is 1e-5
    assert float(schedule.share(k[:1] / 15)) == pytest.approx(4e-4, rel=2e-4)
    assert float(table[7]) == pytest.approx(0.230, abs=5e-4) and float(table[-1]) == pytest.approx(0.999)
    torch.testing.assert_close(schedule.sigma(k / 15), 2 * (1 - schedule.alpha(k / 15)).sqrt(), atol=1e-14, rtol=0)


def test_i2sb_has_the_integral_of_its_betas() -> None:
    schedule = make_schedule("i2sb")
    fine = torch.linspace(0, 1, 400_001, dtype=torch.float64)
    ramp = 1000 * (1e-2 + (math.sqrt(3e-4) - 1e-2) * torch.minimum(fine, 1 - fine)) ** 2
    grown = torch.cat((fine.new_zeros(1), torch.cumulative_trapezoid(ramp, fine)))
    assert schedule.spread == pytest.approx(float(grown[-1]) ** 0.5, rel=1e-9)
    torch.testing.assert_close(schedule.share(fine), grown / grown[-1], atol=1e-10, rtol=0)


def law(name: str, rule: str, t: float, s: float, eta: float = 1.0) -> tuple[float, float, float, float]:
    """Return the coefficients of (x_t, x_0, y) in x_s, with y put back, and the standard deviation."""
    process = GaussianProcess(make_schedule(name))
    bridge = process.bridge(t, s, rule, eta)  # type: ignore[arg-type]
    alpha, sigma = (float(c) for c in process.coefficients(t, torch.zeros(1)))
    state = bridge.eps / sigma
    # x_s - (1 - a') y = a' x0 + c (x_t - (1 - a) y - a x0) / sigma + std z
    return state, bridge.x0 - state * alpha, (1 - bridge.x0) - state * (1 - alpha), bridge.std


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_ir_sde_is_the_ancestral_rule(t: float, s: float) -> None:
    """Posterior of the mean-reverting SDE: published coefficients of (x_t - y) and (x_0 - y), and the variance."""
    schedule = make_schedule("ir-sde")
    theta_t, theta_s = (float(schedule._theta(u)) for u in value(t, s))
    step = theta_t - theta_s
    whole = -math.expm1(-2 * theta_t)
    near = -math.expm1(-2 * theta_s) / whole * math.exp(-step)
    clean = -math.expm1(-2 * step) / whole * math.exp(-theta_s)
    variance = schedule.spread**2 * math.expm1(-2 * theta_s) * math.expm1(-2 * step) / whole
    wanted = (near, clean, 1 - near - clean, math.sqrt(variance))
    assert law("ir-sde", "ddim", t, s) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_resshift_is_the_rule_of_increments(t: float, s: float) -> None:
    """Mean (e' / e) x_t + (e - e') / e x_0 with no y, variance kappa^2 e' (e - e') / e."""
    schedule = make_schedule("resshift")
    share_t, share_s = (float(schedule.share(u)) for u in value(t, s))
    kept = share_s / share_t
    wanted = (kept, 1 - kept, 0.0, 2 * math.sqrt(share_s * (1 - kept)))
    assert law("resshift", "increments", t, s) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_i2sb_is_the_ancestral_rule_without_y(t: float, s: float) -> None:
    """Mean [(s_t^2 - s_r^2) x_0 + s_r^2 x_t] / s_t^2 with no y, variance s_r^2 (s_t^2 - s_r^2) / s_t^2."""
    schedule = make_schedule("i2sb")
    square_t, square_s = (schedule.spread**2 * float(schedule.share(u)) for u in value(t, s))
    kept = square_s / square_t
    wanted = (kept, 1 - kept, 0.0, math.sqrt(square_s * (1 - kept)))
    assert law("i2sb", "ddim", t, s) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_indi_is_the_deterministic_rule(t: float, s: float) -> None:
    """x' = (delta / t) x_0 + (1 - delta / t) x_t with delta = t - s, and no y."""
    wanted = ((s / t), 1 - s / t, 0.0, 0.0)
    assert law("indi", "ddim", t, s, eta=0.0) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_the_form_of_diffuse_vae_is_a_shift_by_all_of_y(t: float, s: float) -> None:
    """x_t = a x_0 + y + sigma eps: DDPM's posterior of x_t - y, so x_s = posterior(x_t - y, x_0) + y."""
    process = GaussianProcess(make_schedule("vp"))
    bridge = process.bridge(t, s, "ddim", 1.0)
    alpha, sigma = (float(c) for c in process.coefficients(t, torch.zeros(1)))
    alpha_s, sigma_s = (float(c) for c in process.coefficients(s, torch.zeros(1)))
    ratio = (alpha / alpha_s) ** 2  # alpha-bar_t / alpha-bar_s
    clean = alpha_s * (1 - ratio) / sigma**2
    near = math.sqrt(ratio) * sigma_s**2 / sigma**2
    assert bridge.eps / sigma == pytest.approx(near, abs=1e-12)
    assert bridge.x0 - bridge.eps / sigma * alpha == pytest.approx(clean, abs=1e-12)
    assert bridge.std == pytest.approx(math.sqrt(sigma_s**2 * (1 - ratio) / sigma**2), abs=1e-12)


def test_options_say_what_goes_together() -> None:
    with pytest.raises(ValueError, match=r"set process\.start=source"):
        GaussianOptions(schedule="i2sb")
    with pytest.raises(ValueError, match="belongs to schedules"):
        GaussianOptions(spread=0.1)
    made = GaussianOptions(schedule="indi", start="source", spread=0.2)
    assert make_schedule(made.schedule, **made.schedule_options).spread == 0.2  # type: ignore[attr-defined]
