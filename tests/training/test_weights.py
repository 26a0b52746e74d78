"""Loss weights against the conversion table, and their interplay with laws of time (principles, check 15)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undiffuse.process import make_schedule
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.training.time_samplers import LogitNormalTimes, LogNormalTimes, ModeTimes, UniformTimes
from undiffuse.training.weights import LOG_WEIGHTS, Levels, LossWeight

KINDS = ("data", "noise", "v", "velocity", "edm")
SCHEDULES = ("vp", "subvp", "ve", "cosine", "trig", "edm", "rf", "ddpm")
DATA_STD = 0.5


def times(schedule) -> Tensor:
    return torch.linspace(schedule.t_min + 1e-3, schedule.t_max - 1e-3, 101, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", ["data", "noise", "min-snr", "sigmoid", "elbo", "edm"])
def test_a_weight_means_the_same_whatever_the_network_predicts(name, kind, weight):
    schedule = make_schedule(name)
    t = times(schedule)
    loss_weight = LossWeight(name=weight, data_std=DATA_STD)
    out = GaussianProcess(schedule).affine(kind, t, torch.zeros(101, dtype=torch.float64), DATA_STD).out
    multiplier = torch.exp(loss_weight.log(Levels(schedule, t)))  # of |D - x_0|^2 = out^2 |output error|^2
    torch.testing.assert_close(loss_weight.relative(Levels(schedule, t), kind), multiplier * out**2, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_own_weight_is_exactly_one(name, kind):
    levels = Levels(make_schedule(name), times(make_schedule(name)))
    assert torch.equal(LossWeight().relative(levels, kind), torch.ones(101, dtype=torch.float64))
    assert torch.equal(LossWeight(name=kind).relative(levels, kind), torch.ones(101, dtype=torch.float64))


def test_weights_equal_their_published_formulas():
    schedule = make_schedule("rf")
    levels = Levels(schedule, times(schedule))
    snr = torch.exp(2 * levels.half_logsnr)
    weight = LossWeight(min_snr_gamma=5, p2_k=2.0, p2_gamma=0.7, bias=-1.0, data_std=DATA_STD)
    expected = {
        "data": torch.ones_like(snr),
        "noise": snr,
        "v": snr + 1,
        "velocity": (1 + snr**0.5) ** 2,  # on the straight line
        "rf-velocity": (1 + snr**0.5) ** 2,
        "edm": snr + 1 / DATA_STD**2,
        "min-snr": snr.clamp(max=5),
        "p2": snr / (2.0 + snr) ** 0.7,
        "truncated-snr": snr.clamp(min=1),
        "sigmoid": snr * torch.sigmoid(-1.0 - 2 * levels.half_logsnr),
        "elbo": snr / (levels.t * (1 - levels.t)),  # -SNR'/2 with half_logsnr = log((1 - t) / t)
    }
    assert expected.keys() == LOG_WEIGHTS.keys()
    for name, value in expected.items():
        torch.testing.assert_close(torch.exp(LOG_WEIGHTS[name](levels, weight)), value, rtol=1e-10, atol=0)


def test_weights_stay_finite_at_the_ends():
    for name in SCHEDULES:
        schedule = make_schedule(name)
        levels = Levels(schedule, torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64))
        for weight in LOG_WEIGHTS:
            for kind in KINDS:
                assert LossWeight(name=weight).relative(levels, kind).isfinite().all(), (name, weight, kind)


def posterior_variance(levels: Levels, std: float = 0.6) -> Tensor:
    """E|D - x_0|^2 of the exact denoiser of N(0, std^2): a smooth error to integrate."""
    return std**2 / (1 + std**2 * torch.exp(2 * levels.half_logsnr))


def average(schedule, law, weight: LossWeight, points: int = 200_001) -> float:
    """Midpoint rule over the uniforms of E[weight * importance * error]."""
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    t, importance = law(u)
    levels = Levels(schedule, t)
    return float((torch.exp(weight.log(levels)) * importance * posterior_variance(levels)).mean())


LAWS = {
    "logit-normal": lambda s: LogitNormalTimes(s, 0.0, 1.5),
    "edm": lambda s: LogNormalTimes(s, 0.0, 2.0),
    "mode": lambda s: ModeTimes(s, 1.29),
}


@pytest.mark.parametrize(
    ("schedule", "law", "weight"),
    [
        ("rf", "logit-normal", "v"),
        ("rf", "mode", "edm"),
        ("cosine", "mode", "min-snr"),
        ("trig", "logit-normal", "sigmoid"),
        ("trig", "edm", "p2"),
        ("vp", "edm", "data"),
    ],
)
def test_the_importance_factor_turns_a_law_into_uniform_times(schedule, law, weight):
    schedule = make_schedule(schedule)
    loss_weight = LossWeight(name=weight)
    uniform = average(schedule, UniformTimes(schedule), loss_weight)
    # The midpoint rule in u undersamples the tails of a law, where its importance factor is large.
    assert average(schedule, LAWS[law](schedule), loss_weight) == pytest.approx(uniform, rel=5e-3)


def test_sampling_density_and_weight_are_interchangeable():
    schedule = make_schedule("rf")
    u = (torch.arange(200_001, dtype=torch.float64) + 0.5) / 200_001
    t, _ = LogitNormalTimes(schedule)(u)
    plain = posterior_variance(Levels(schedule, t)).mean()
    t_uniform, width = UniformTimes(schedule)(u)
    logit = torch.log(t_uniform / (1 - t_uniform))
    density = torch.exp(-0.5 * logit**2) / math.sqrt(2 * math.pi) / (t_uniform * (1 - t_uniform))
    weighted = (density * width * posterior_variance(Levels(schedule, t_uniform))).mean()
    assert float(plain) == pytest.approx(float(weighted), rel=1e-4)


def test_the_elbo_depends_on_a_schedule_through_its_ends_only():
    low, high = torch.tensor(-3.0, dtype=torch.float64), torch.tensor(4.0, dtype=torch.float64)
    values = []
    for name in ("vp", "cosine", "trig", "rf", "ve"):
        plain = make_schedule(name)
        ends = {} if name == "ve" else {"t_min": float(plain.time(high)), "t_max": float(plain.time(low))}
        if name == "ve":
            ends = {"sigma_min": math.exp(-4.0), "sigma_max": math.exp(3.0)}
        schedule = make_schedule(name, **ends)
        values.append(average(schedule, UniformTimes(schedule), LossWeight(name="elbo")))
    # 1/2 int std^2 / (1 + std^2 SNR) dSNR = 1/2 log((1 + std^2 SNR_max) / (1 + std^2 SNR_min))
    exact = 0.5 * (math.log1p(0.36 * math.exp(8.0)) - math.log1p(0.36 * math.exp(-6.0)))
    assert values == pytest.approx([exact] * 5, rel=1e-6)


def test_an_unknown_weight_is_refused_by_name():
    with pytest.raises(ValueError, match="min-snr"):
        LossWeight(name="minsnr")
