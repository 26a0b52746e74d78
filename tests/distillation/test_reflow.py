"""Reflow: in one dimension lines do not cross, so that one step of the reflowed flow is exact; pairs are keyed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distillation.exact import batch_of, exact_denoiser, exact_map
from tests.distillation.tiny import mlp_denoiser
from tests.oracles.continuous import normals, process_of
from undiffuse.denoisers.flow_map import FlowMap, shared_times
from undiffuse.distillation.options import ReflowOptions
from undiffuse.distillation.reflow import Reflow, follow_path, straightness
from undiffuse.noise import KeyedNoise
from undiffuse.process.times import align

_SHARES, _CENTRES, _SPREADS = (torch.tensor(v, dtype=torch.float64) for v in ([0.3, 0.7], [-1.5, 1.0], [0.3, 0.5]))


def distribution(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Distribution function of alpha x_0 + sigma eps for a mixture of two normals, (B, 1)."""
    spread = (alpha[..., None] ** 2 * _SPREADS**2 + sigma[..., None] ** 2).sqrt()
    return (_SHARES * torch.special.ndtr((x[..., None] - alpha[..., None] * _CENTRES) / spread)).sum(-1)


def root(function: Any, like: Tensor) -> Tensor:
    """Where a rising function is 0, by bisection in [-30, 30]: to 1e-15 of that."""
    low, high = torch.full_like(like, -30.0), torch.full_like(like, 30.0)
    for _ in range(60):
        middle = (low + high) / 2
        above = function(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


class Quantiles(FlowMap):
    """The exact map of the mixture on the line: it keeps quantiles."""

    process = process_of("rf")

    def forward(self, x: Tensor, t: Any, s: Any, cond: Any = None) -> Tensor:
        now, then = (align(shared_times(time, x), x) for time in (t, s))
        levels = [self.process.schedule.levels(time) for time in (now, then)]
        at = distribution(x, *levels[0])
        return torch.where(now == then, x, root(lambda y: distribution(y, *levels[1]) - at, x))

    def average_velocity(self, x: Tensor, t: Any, s: Any, cond: Any = None) -> Tensor:
        now, then = (align(shared_times(time, x), x) for time in (t, s))
        safe = torch.where(now == then, (now - 1e-5).clamp(min=0), then)
        return (x - self(x, now.flatten(), safe.flatten())) / (now - safe)


class Lines(FlowMap):
    """Straight lines between the pairs of another map: which one passes x at t is found by bisection."""

    def __init__(self, pairs: FlowMap) -> None:
        super().__init__()
        self.pairs, self.process = pairs, pairs.process

    def average_velocity(self, x: Tensor, t: Any, s: Any, cond: Any = None) -> Tensor:
        alpha, sigma = self.process.schedule.levels(align(shared_times(t, x), x))
        x1 = root(lambda y: alpha * self.pairs(y, 1.0, 0.0) + sigma * y - x, x)
        return x1 - self.pairs(x1, 1.0, 0.0)


def test_in_one_dimension_the_loss_is_zero_at_the_lines_and_one_step_is_exact():
    exact, lines = Quantiles(), Lines(Quantiles())
    objective = Reflow(ReflowOptions(teacher_steps=1, reuse=1), teacher=exact)
    corrupted = objective.prepare(lines, {"x": torch.zeros(12, 1, dtype=torch.float64)}, KeyedNoise(0, range(12)), 12)
    assert float(objective.score(lines, corrupted).per_sample.max()) < 1e-12
    x1 = corrupted.extras["eps"]
    torch.testing.assert_close(x1 - lines.average_velocity(x1, 1.0, 1.0), exact(x1, 1.0, 0.0), rtol=0, atol=1e-9)
    middle = 0.6 * x1 + 0.4 * corrupted.x
    torch.testing.assert_close(lines(middle, 0.6, 0.0), corrupted.x, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_straightness_is_zero_for_lines_and_not_for_the_paths_of_the_teacher():
    exact = Quantiles()
    x1 = normals(30, 1, seed=1)
    x0 = exact(x1, 1.0, 0.0)
    assert straightness(Lines(exact), x0, x1, times=3) < 1e-10
    assert straightness(exact, x0, x1, times=3) > 0.05


def test_steps_of_a_teacher_reach_the_ends_of_its_exact_paths():
    """Second order, so 4 times the steps bring 16 times less, or so."""
    flow_map, denoiser = exact_map("vp"), exact_denoiser("vp")
    ends = lambda made: flow_map(flow_map.process.prior(made.extras["eps"]), 1.0, 0.0)  # noqa: E731
    errors = []
    for steps in (20, 80):
        objective = Reflow(ReflowOptions(teacher_steps=steps, reuse=1), teacher=denoiser)
        made = batch_of(objective, flow_map, 50)
        errors.append(float((made.x - ends(made)).square().mean().sqrt()))
    assert errors[1] < 0.01 and errors[0] / errors[1] > 8
    exact = Reflow(ReflowOptions(teacher_steps=3, reuse=1), teacher=flow_map)
    made = batch_of(exact, flow_map, 50)
    torch.testing.assert_close(made.x, ends(made), rtol=1e-9, atol=1e-9)


def test_a_pair_is_a_function_of_its_number_and_shared_by_rows():
    denoiser = mlp_denoiser("v", labels=True)
    objective = Reflow(ReflowOptions(teacher_steps=4, reuse=3, guidance=2.0, teacher="it", drop=0.5), teacher=denoiser)
    batch = {"x": torch.zeros(16, 2), "cond": {"label": torch.arange(16) % 3}}
    made = objective.prepare(denoiser, batch, KeyedNoise(0, range(16)), 8)
    leaders = [0, 0, 0, 3, 3, 3, 6, 6, 8, 8, 8, 11, 11, 11, 14, 14]
    for part in (made.x, made.extras["eps"], made.cond["label"], made.drop["label"]):
        assert torch.equal(part, part[leaders])
    assert torch.equal(made.cond["label"], batch["cond"]["label"][leaders]) and 0 < int(made.drop["label"].sum()) < 16
    alone = objective.prepare(
        denoiser, {"x": batch["x"][:8], "cond": {"label": batch["cond"]["label"][:8]}}, KeyedNoise(0, range(8)), 8
    )
    torch.testing.assert_close(alone.x, made.x[:8], rtol=1e-5, atol=1e-6)
    one = made.take(torch.tensor([3]))
    torch.testing.assert_close(follow_path(denoiser, one, 4), made.x[3:4], rtol=1e-5, atol=1e-6)
    assert not torch.equal(made.extras["u"][0], made.extras["u"][1])


def test_options_that_mean_nothing_are_refused():
    for options in ({"teacher_steps": 0}, {"reuse": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            ReflowOptions(**options)
