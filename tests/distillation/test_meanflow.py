"""MeanFlow: its identity, where its gradient is zero, guidance, and how rows are shared out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distillation.exact import (
    SCHEDULES,
    Tilted,
    batch_of,
    exact_denoiser,
    exact_map,
    expected_gradient,
    points,
)
from tests.distillation.tiny import mlp_denoiser
from tests.oracles.continuous import normals, process_of
from undiffuse.denoisers.flow_map import FlowMap, GaussianFlowMap
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.distillation.build import highest_time, make_student
from undiffuse.distillation.meanflow import MeanFlow, meanflow_target
from undiffuse.distillation.options import MeanFlowOptions
from undiffuse.distillation.shares import split_rows
from undiffuse.noise import KeyedNoise
from undiffuse.training.objectives import Corrupted


def times(n: int = 6) -> tuple[Tensor, Tensor]:
    t = torch.linspace(0.2, 0.95, n, dtype=torch.float64)
    return t, t * torch.linspace(0.0, 1.0, n, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_identity_holds_for_the_exact_map(schedule):
    """u = v - (t - s) du/dt along the path, to rounding; the last pair has s = t."""
    flow_map, x = exact_map(schedule), normals(6, 3, seed=1)
    t, s = times()
    velocity = flow_map.average_velocity(x, t, t)
    found = meanflow_target(flow_map, x, t, s, velocity, None)
    torch.testing.assert_close(found, flow_map.average_velocity(x, t, s), rtol=1e-8, atol=1e-8)


def test_a_derivative_of_a_network_is_that_of_differences():
    flow_map = NetworkFlowMap(mlp_denoiser("v")).double()
    torch.nn.init.normal_(flow_map.jump.second.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    x, (t, s), step = normals(6, 2, seed=1), times(), 1e-5
    s = s * 0.9
    velocity = normals(6, 2, seed=2)
    ahead, behind = (flow_map.average_velocity(x + h * velocity, t + h, s) for h in (step, -step))
    wanted = velocity - (t - s)[:, None] * (ahead - behind) / (2 * step)
    torch.testing.assert_close(meanflow_target(flow_map, x, t, s, velocity, None), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("pairs", [0.0, 0.25, 1.0])
def test_the_loss_is_zero_at_the_exact_map_with_the_exact_teacher(schedule, pairs):
    objective = MeanFlow(MeanFlowOptions(pairs=pairs), teacher=exact_denoiser(schedule))
    flow_map = exact_map(schedule)
    losses = objective.score(flow_map, batch_of(objective, flow_map))
    assert float(losses.per_sample.max()) < 1e-14
    assert losses.half_logsnr is not None and losses.half_logsnr.isfinite().all()


@pytest.mark.parametrize("schedule", ["rf", pytest.param("vp", marks=pytest.mark.slow)])
def test_from_data_the_expected_gradient_is_zero_at_the_exact_map(schedule):
    """Within 3.5 standard errors in 5 directions (false alarm 0.2 %); a tilted map is far from zero."""
    objective = MeanFlow(MeanFlowOptions(pairs=0.5, power=0.0))
    held = Tilted(exact_map(schedule))
    mean, error = expected_gradient(objective, held)
    assert float((mean / error).abs().max()) < 3.5
    with torch.no_grad():
        held.tilt += 0.1
    mean, error = expected_gradient(objective, held, batches=10)
    assert float((mean / error).abs().max()) > 10


def test_the_weight_divides_the_gradient_and_not_the_logged_loss():
    held = Tilted(exact_map("rf"))
    with torch.no_grad():
        held.tilt += 0.3
    gradients, losses = [], []
    for power in (0.0, 0.5, 1.0):
        objective = MeanFlow(MeanFlowOptions(power=power))
        loss = objective.score(held, batch_of(objective, held)).per_sample
        losses.append(loss.detach())
        gradients.append([torch.autograd.grad(one, held.tilt, retain_graph=True)[0] for one in loss[:20]])
    for power, found, rows in zip((0.0, 0.5, 1.0), losses, gradients, strict=True):
        torch.testing.assert_close(found, losses[0])
        for plain, weighted, square in zip(gradients[0], rows, found, strict=False):
            torch.testing.assert_close(weighted, plain / (square + 1e-3) ** power, rtol=1e-9, atol=1e-12)


def test_few_values_are_not_weighted():
    plain, taught = MeanFlow(MeanFlowOptions()), MeanFlow(MeanFlowOptions(), teacher=exact_denoiser("rf"))
    assert [plain.power(2), plain.power(64), taught.power(2), taught.power(64)] == [0.0, 1.0, 0.0, 1.0]
    assert MeanFlow(MeanFlowOptions(power=0.5)).power(2) == 0.5


@pytest.mark.parametrize(("power", "biased"), [(0.0, False), (1.0, True)])
def test_the_weight_moves_the_minimum_where_velocities_are_skewed(power, biased):
    """Data at +-1 with shares 0.9 and 0.1: flow matching at the exact velocity, 40 batches, to 4 standard errors."""
    objective = MeanFlow(MeanFlowOptions(power=power, pairs=0.0))
    held = Tilted(TwoPoints())
    gradients = []
    for number in range(40):
        noise = KeyedNoise(3, range(number * 500, number * 500 + 500))
        x0 = 1 - 2 * (noise.uniform("class", 0, (1,)) < 0.1).double()
        loss = objective.score(held, objective.prepare(held, {"x": x0}, noise, 500)).per_sample.mean()
        gradients.append(torch.autograd.grad(loss, held.tilt)[0][0])
    found = torch.stack(gradients)
    assert (float(found.mean().abs() / found.std() * 40**0.5) > 4) == biased


class TwoPoints(FlowMap):
    """The diagonal of the flow map of data at +-1 with shares 0.9 and 0.1."""

    process = process_of("rf")

    def average_velocity(self, x: Tensor, t: Any, s: Any, cond: Any = None) -> Tensor:
        alpha, sigma = (level[:, None] for level in self.process.schedule.levels(t))
        mean = torch.tanh(alpha * x / sigma**2 + 0.5 * math.log(9.0))
        return (x - alpha * mean) / sigma - mean


def test_times_are_ordered_and_a_share_of_the_rows_are_pairs():
    objective = MeanFlow(MeanFlowOptions(pairs=0.25))
    made = batch_of(objective, exact_map("rf"), 64)
    u, (pairs, single) = made.extras["u"], split_rows(made)
    t, s = objective.times(process_of("rf").schedule, u, single)
    assert len(pairs) == 16 and (s[pairs] < t[pairs]).all() and torch.equal(s[single], t[single])
    for rows in (pairs, single):
        assert torch.histc(u[rows, 0], bins=4, min=0, max=1).tolist() == [len(rows) / 4] * 4
    quarters = torch.histc(torch.special.ndtr(torch.logit(t[single]) + 0.4), bins=4, min=0, max=1)
    assert quarters.min() > 0 and torch.histc(u[:, 0], bins=64, min=0, max=1).max() == 1


def test_sampling_starts_within_reach_of_the_law_of_times():
    """At sigma / alpha = 20, as far as the schedule goes; the law has a share of 1 in 1000 of its times beyond."""
    student = make_student(mlp_denoiser("v"), MeanFlowOptions())
    alpha, sigma = student.process.coefficients(student.start, torch.zeros(1))
    assert sigma / alpha == pytest.approx(20)
    start = highest_time(process_of("rf").schedule, 20.0)
    assert start == pytest.approx(20 / 21) and math.erfc((math.log(20) + 0.4) / 2**0.5) / 2 < 1e-3
    assert highest_time(process_of("rf").schedule, 1e9) == process_of("rf").schedule.t_max
    with pytest.raises(ValueError, match="must be above 10, for pure noise"):
        MeanFlowOptions(rho_max=5.0)


class Conditional(FlowMap):
    """Exact maps of two classes and of all data; label 0 and 1, and null. Guided: its diagonal on request."""

    def __init__(self, guidance: float = 1.0) -> None:
        super().__init__()
        self.process, self.guidance = process_of("rf"), guidance
        eye = torch.eye(3, dtype=torch.float64)
        self.maps = [GaussianFlowMap(normals(3, seed=k), (0.2 + 0.3 * k) * eye, self.process) for k in range(3)]

    def embed(self, cond: Any, batch: int, drop: Any = None) -> Any:
        label = cond["label"] if cond else torch.full((batch,), 2)
        return torch.where(drop["label"], 2, label) if drop else label

    def velocities(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        every = torch.stack([one.average_velocity(x, t, t) for one in self.maps])
        return every[label, torch.arange(len(x))]

    def average_velocity(self, x: Tensor, t: Any, s: Any, cond: Any = None) -> Tensor:
        null = self.velocities(x, t, torch.full((len(x),), 2))
        scale = torch.where(cond == 2, 1.0, self.guidance)[:, None]
        return null + scale * (self.velocities(x, t, cond) - null)


@pytest.mark.parametrize("kappa", [0.0, 0.6])
def test_the_guided_velocity_is_a_fixed_point_of_guiding(kappa):
    """Where the diagonal is the velocity guided by `scale`, guiding the plain velocity with it gives it again."""
    objective = MeanFlow(MeanFlowOptions(guidance=2.5, kappa=kappa, drop=0.3))
    flow_map, plain_map = Conditional(2.5), Conditional()
    n, cond = 40, {"label": torch.arange(40) % 2}
    corrupted = objective.prepare(flow_map, {"x": points(n), "cond": cond}, KeyedNoise(0, range(n)), n)
    x, t = normals(n, 3, seed=8), torch.linspace(0.1, 0.9, n, dtype=torch.float64)
    label = plain_map.embed(corrupted.cond, n, corrupted.drop)
    assert 0 < int((label == 2).sum()) < n
    plain = plain_map.average_velocity(x, t, t, label)
    found = objective._guided(flow_map, corrupted, x, t, plain)
    torch.testing.assert_close(found, flow_map.average_velocity(x, t, t, label), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"pairs": 1.5}, "pairs"),
        ({"power": -1.0}, "power"),
        ({"time_std": 0.0}, "time_std"),
        ({"kappa": 0.5}, "kappa"),
        ({"kappa": 1.0, "guidance": 2.0}, "kappa"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, word):
    with pytest.raises(ValueError, match=word):
        MeanFlowOptions(**options)


def test_a_batch_too_small_for_pairs_is_flow_matching():
    objective = MeanFlow(MeanFlowOptions())
    flow_map = exact_map("rf")
    corrupted: Corrupted = batch_of(objective, flow_map, 1)
    assert objective.score(flow_map, corrupted).per_sample.shape == (1,)
