r"""MeanFlow: the average velocity from its own derivative along the path.

With u(x, t, s) = (x - Phi(x, t, s)) / (t - s), differentiating (t - s) u along a path gives

    u(x, t, s) = v - (t - s) (v . du/dx + du/dt),    v = dx/dt,

so the right side, with stop-gradient and one Jacobian-vector product, is what the left side is trained to equal. On the
diagonal s = t this is flow matching. v is that of the sample, alpha' x_0 + sigma' eps, or the teacher's.

Most rows are on the diagonal (`pairs` is the share that is not). Each row's gradient is divided by
(|error|^2 + c)^p, |error|^2 being the mean over the values of an item (the sum in the paper); the logged loss is
|error|^2 itself. Such a weight moves the minimum: with p = 1/2 it is not the mean of v given x_t but its geometric
median, and it counts least the long jumps, whose errors are the largest. Over thousands of values |error|^2 hardly
varies, and that is harmless; on points in the plane it moves velocities by half their deviation where they are those of
samples, and leaves single jumps half as far again from the data where they are a teacher's. So items of fewer than 64
values take p = 0. On schedules other than `rf` errors are in units of `scaled_error`.

Sampling starts at sigma / alpha = 20 (`rho_max`) instead of t = 1. From the mean of the published law of times,
logit-normal(-0.4, 1), it is 3.4 standard deviations to that level on `rf` and 5 to t = 0.99, and our networks are told
the logarithm of the noise level, in which the rest of the way to t = 1 is as long again: a single jump from there asks
about a level that they were never shown. On points in the plane it was 30 times farther from the data. Nor can rows at
t = 1 be trained on: there the level changes so fast with t that targets with its derivative diverge.

Guidance without a teacher is folded in by guiding v with the student's own diagonal,

    v <- w v + kappa u(x, t, t | cond) + (1 - w - kappa) u(x, t, t | null),    w = (1 - kappa) scale,

which makes u(x, t, t | cond) the velocity guided by `scale`; rows without a condition learn the plain v.

Source: Geng et al. 2025, "Mean flows for one-step generative modeling", arXiv:2505.13447, equations 10, 11, 19 to 22
and table 1; principles, section 2.8.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap, Spans
from undiffuse.distillation.objective import FEW_VALUES, FlowMapObjective, embed
from undiffuse.distillation.options import MeanFlowOptions
from undiffuse.distillation.shares import PAIR, choose_rows, split_rows, take_rows
from undiffuse.distillation.velocities import sample_velocity, scaled_error, velocity_of
from undiffuse.noise import NoiseSource
from undiffuse.process.schedules import Schedule
from undiffuse.process.times import align
from undiffuse.training.objectives import Corrupted, Losses, mean_over_items
from undiffuse.training.time_samplers import LogitNormalTimes, UniformTimes

_LEAST = 1e-3  # c


class MeanFlow(FlowMapObjective):
    """MeanFlow from data, or from a teacher's velocity.

    Args:
        options: Law of times, pairs, weight and guidance.
        teacher: Whose velocity to follow, its guidance folded in; None: that of single samples.
    """

    spans: ClassVar[Spans] = "any"
    uniforms: ClassVar[int] = 2

    def __init__(self, options: MeanFlowOptions, *, teacher: Denoiser | FlowMap | None = None) -> None:
        super().__init__(teacher=teacher, drop=options.drop)
        self.options = options

    def prepare(self, denoiser: FlowMap, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Draw noise and uniforms, and choose the rows with two times."""
        made = super().prepare(denoiser, batch, noise, batch_size)
        return replace(
            made, extras=made.extras | {PAIR: choose_rows(self.options.pairs, noise, len(made.x), batch_size)}
        )

    def score(self, denoiser: FlowMap, corrupted: Corrupted) -> Losses:
        """Return the squared error of the average velocity, with the adaptive weight in its gradient."""
        process, chosen = denoiser.process, split_rows(corrupted)
        t, s = self.times(process.schedule, corrupted.extras["u"], chosen[1])
        x = process.corrupt(corrupted.x, t, corrupted.extras["eps"])
        with torch.no_grad():
            target = self._velocity(denoiser, corrupted, x, t)
            pairs = chosen[0]
            if len(pairs):
                cond = embed(denoiser, take_rows(corrupted, pairs))
                found = meanflow_target(denoiser, x[pairs], t[pairs], s[pairs], target[pairs], cond)
                target = target.index_copy(0, pairs, found.to(target.dtype))
        found = denoiser.average_velocity(x, t, s, embed(denoiser, corrupted))
        square = mean_over_items(scaled_error(process, found - target, t).square())
        weighted = square * (square.detach() + _LEAST) ** -self.power(x[0].numel())
        return Losses(square.detach() + weighted - weighted.detach(), process.schedule.half_logsnr(t))

    def power(self, values: int) -> float:
        """Return p for items of so many values."""
        if self.options.power is not None:
            return self.options.power
        return 0.0 if values < FEW_VALUES else 1.0

    def times(self, schedule: Schedule, u: Tensor, single: Tensor) -> tuple[Tensor, Tensor]:
        """Return (t, s) float64 (B,) from uniforms (B, 2): two times in order, but the same in the rows `single`."""
        law = (
            UniformTimes(schedule)
            if self.options.times == "uniform"
            else LogitNormalTimes(schedule, self.options.time_mean, self.options.time_std)
        )
        one, other = law(u[:, 0]).t, law(u[:, 1]).t
        t, s = torch.maximum(one, other), torch.minimum(one, other)
        return t, s.index_copy(0, single, t[single])

    def _velocity(self, denoiser: FlowMap, corrupted: Corrupted, x: Tensor, t: Tensor) -> Tensor:
        """Return v (B, *), guided."""
        if self.teacher is not None:
            return velocity_of(self.teacher, x, t, embed(self.teacher, corrupted))
        plain = sample_velocity(denoiser.process, corrupted.x, corrupted.extras["eps"], t)
        return plain if self.options.guidance == 1 else self._guided(denoiser, corrupted, x, t, plain)

    def _guided(self, denoiser: FlowMap, corrupted: Corrupted, x: Tensor, t: Tensor, plain: Tensor) -> Tensor:
        """Return v of the sample pushed away from the student's own velocity without a condition."""
        kappa = self.options.kappa
        scale = self.options.guidance * (1 - kappa)
        null, unconditional = _null(denoiser, corrupted)
        velocity = scale * plain + (1 - scale - kappa) * denoiser.average_velocity(x, t, t, null)
        if kappa:
            velocity = velocity + kappa * denoiser.average_velocity(x, t, t, embed(denoiser, corrupted))
        return torch.where(align(unconditional, x), plain, velocity)


def meanflow_target(flow_map: FlowMap, x: Tensor, t: Tensor, s: Tensor, velocity: Tensor, cond: Any) -> Tensor:
    """Return v - (t - s) (v . du/dx + du/dt), (B, *): the average velocity itself where it is exact."""
    along = flow_map.jvp(x, t, s, (velocity, torch.ones_like(t), torch.zeros_like(s)), cond)[1]
    return velocity - align(t - s, x).to(x.dtype) * along


def _null(denoiser: FlowMap, corrupted: Corrupted) -> tuple[Any, Tensor]:
    """Return the embedding of the batch without its conditions, and which rows have none anyway, bool (B,)."""
    rows = len(corrupted.x)
    every = torch.ones(rows, dtype=torch.bool, device=corrupted.x.device)
    gone = {name: every for name in corrupted.cond if name not in denoiser.kept_conditions}
    dropped = every
    for name in gone:
        dropped = dropped & corrupted.drop.get(name, ~every)
    return denoiser.embed(corrupted.cond, rows, gone), dropped
