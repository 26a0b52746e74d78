r"""Reflow: straight lines between the teacher's noise and its samples.

A teacher maps noise x_1 to a sample x_0 along its curved path. A student that learns the mean velocity of the straight
lines x_t = alpha x_0 + sigma x_1 between such pairs has the same densities at every t and straighter paths, so that few
Euler steps follow them: one is exact where no two lines cross, which holds in one dimension. On other schedules than
`rf` "straight" means along alpha and sigma.

The loss is that of the average velocity over t -> s of the pair's own line, whose optimum is a step with the mean
velocity whatever s is; so the student is a flow map whose jump is that step, and no denoiser: x_1 is not independent of
x_0, so its mean gives no score.

Pairs are drawn when a batch is made, from its noise and conditions alone: nothing is stored, and a run that resumes
draws the same. `reuse` rows of a batch share a pair at different times; of several processes, rows of one.

Source: Liu et al. 2023, "Flow straight and fast", arXiv:2209.03003, algorithm 1, section 2.2, theorem 3.7 and
equation 9 (straightness); principles, section 2.9.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.flow_map import FlowMap, Spans
from undiffuse.distillation.objective import FlowMapObjective, embed, gaussian
from undiffuse.distillation.options import ReflowOptions
from undiffuse.distillation.shares import spread_uniforms
from undiffuse.distillation.velocities import sample_velocity, scaled_error, velocity_of
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import KeyedNoise, NoiseSource
from undiffuse.process.grids import make_grid
from undiffuse.process.times import align
from undiffuse.sampling.flow_map import jump_grid
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver
from undiffuse.training.objectives import Corrupted, Losses, mean_over_items

_ROWS = 256  # the teacher walks with at least so many at once


class Reflow(FlowMapObjective):
    """Reflow from a teacher.

    Args:
        options: Steps of the teacher, and rows that share a pair.
        teacher: A denoiser, or a flow map to go on from, such as one that was reflowed.
    """

    spans: ClassVar[Spans] = "steps"
    uniforms: ClassVar[int] = 2

    def __init__(self, options: ReflowOptions, *, teacher: Denoiser | FlowMap) -> None:
        super().__init__(teacher=teacher, drop=options.drop)
        self.options = options

    @torch.no_grad()
    def prepare(self, denoiser: FlowMap, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Put the teacher's sample in the place of the data, with the noise and the conditions that it is made from."""
        assert self.teacher is not None
        made = super().prepare(denoiser, batch, noise, batch_size)
        row = torch.arange(len(made.x), device=made.x.device)
        leaders, place = torch.unique(row - row % batch_size % self.options.reuse, return_inverse=True)
        asked = [made.take(part) for part in leaders.split(max(batch_size, _ROWS))]
        x0 = torch.cat([follow_path(self.teacher, one, self.options.teacher_steps) for one in asked])
        shared = made.take(leaders[place])
        times = spread_uniforms(noise, batch_size)  # the rows that share a pair far from each other
        extras = {"eps": shared.extras["eps"], "u": torch.stack((times, made.extras["u"][:, 1]), dim=1)}
        return replace(shared, x=x0[place], target=x0[place], t=made.t, extras=extras)

    def score(self, denoiser: FlowMap, corrupted: Corrupted) -> Losses:
        """Return the squared error of the average velocity along the lines of the pairs."""
        process, eps = denoiser.process, corrupted.extras["eps"]
        u, low = corrupted.extras["u"], process.schedule.t_min
        t = 1 - (1 - low) * u[:, 0]
        s = t * u[:, 1]
        x = process.corrupt(corrupted.x, t, eps)
        line = (x - process.corrupt(corrupted.x, s, eps)) / align(t - s, x).to(x.dtype)
        found = denoiser.average_velocity(x, t, s, embed(denoiser, corrupted))
        error = scaled_error(process, found - line, t)
        return Losses(
            mean_over_items(error.square()), process.schedule.half_logsnr(t.clamp(max=process.schedule.t_max))
        )


def follow_path(held: Denoiser | FlowMap, corrupted: Corrupted, steps: int) -> Tensor:
    """Return the samples (B, *) at the clean ends of the paths from the noise of a batch."""
    eps, cond = corrupted.extras["eps"], embed(held, corrupted)
    process = gaussian(held)
    if isinstance(held, FlowMap):
        grid = jump_grid(held, steps).to(eps.device)
        x = process.prior(eps, held.start)
        for t, s in pairwise(grid):
            x = held(x, t.expand(len(x)), s.expand(len(x)), cond)
        return x
    return sample(
        _Told(held, cond),
        noise=KeyedNoise(0, range(len(eps)), eps.device),  # the solver draws none
        shape=tuple(eps.shape[1:]),
        solver=make_solver("dpm++2m"),
        grid=make_grid(process.schedule, steps),
        start=process.prior(eps),
        dtype=eps.dtype,
    ).x


@torch.no_grad()
def straightness(
    held: Denoiser | FlowMap, x0: Tensor, x1: Tensor, cond: dict[str, Tensor] | None = None, times: int = 32
) -> float:
    """Return int E |velocity of the line - velocity of the model|^2 dt; 0 where the lines are the model's paths.

    Args:
        held: Whose velocity.
        x0, x1: Samples and the noise that they come from, (B, *).
        cond: Their conditions.
        times: Number of times in the integral, by the midpoint rule.

    Source: Liu et al. 2023, arXiv:2209.03003, equation 9.
    """
    process, embedded, total = gaussian(held), held.embed(cond, len(x0)), 0.0
    for k in range(times):
        t = torch.full((len(x0),), (k + 0.5) / times, dtype=torch.float64, device=x0.device)
        x = process.corrupt(x0, t, x1)
        error = sample_velocity(process, x0, x1, t) - velocity_of(held, x, t, embedded)
        total += float(error.square().flatten(1).sum(1).mean()) / times
    return total


class _Told(Wrapper):
    """A denoiser whose conditions are embedded already, some of them dropped."""

    def __init__(self, denoiser: Denoiser, cond: Embedded | None) -> None:
        super().__init__(denoiser)
        self.cond = cond

    def embed(self, cond: Any, batch: int, drop: Any = None) -> Embedded | None:
        """Return what was embedded."""
        return self.cond
