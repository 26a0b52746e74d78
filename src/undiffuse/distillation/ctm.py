r"""Consistency trajectory models: jumps from two points of one path agree, between any two times.

From x_t, x_u and s with s <= u < t, the student's jump t -> s must land where the jump u -> s from a point x_u of the
teacher's path through x_t does. Both are compared in data, after the target's jump to 0:

    |Target(Student(x_t, t, s), s, 0) - Target(Target(x_u, u, s), s, 0)|^2,    x_u = Teacher(x_t, t, u),

the target being an average of the student over training. Beside it the diagonal learns to denoise, with the weight
(1 + SNR) of the `v` prediction and levels of EDM's law. Times are those of the `edm` grid in sigma / alpha, and s also
0; the teacher walks over up to `solver_steps` of them by Heun's method. Long walks cost calls of the teacher and spare
the student learning its long jumps from slightly shorter ones, level after level. Without a teacher the target's own
diagonal takes its place.

The paper's LPIPS distance, its adversarial loss and its balance of losses by their gradients are left out.

Source: Kim et al. 2024, "Consistency trajectory models: learning probability flow ODE trajectory of diffusion",
arXiv:2310.02279, equations 8 to 11; principles, section 2.8.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap, Spans
from undiffuse.distillation.consistency import consistency_range, rho_grid
from undiffuse.distillation.objective import FlowMapObjective, advance, embed, follow, freeze
from undiffuse.distillation.options import CTMOptions
from undiffuse.process.schedules import Schedule
from undiffuse.training.objectives import Corrupted, Losses, mean_over_items
from undiffuse.training.time_samplers import LogNormalTimes


class Places(NamedTuple):
    """Positions of t, u and s in a grid of times, int64 (B,): t > u >= s."""

    t: Tensor
    u: Tensor
    s: Tensor


class CTM(FlowMapObjective):
    """Consistency trajectory models, from data or from a teacher.

    Args:
        student: The flow map that will be trained, as it starts; read for its shape.
        options: Levels, and the weight of the denoising loss.
        teacher: Whose paths to follow; None: those of the target.
    """

    spans: ClassVar[Spans] = "any"
    uniforms: ClassVar[int] = 4

    def __init__(self, student: FlowMap, options: CTMOptions, *, teacher: Denoiser | FlowMap | None = None) -> None:
        super().__init__(teacher=teacher, drop=options.drop)
        self.options = options
        target = freeze(copy.deepcopy(student))
        assert isinstance(target, FlowMap)
        self.target = target

    def score(self, denoiser: FlowMap, corrupted: Corrupted) -> Losses:
        """Return the distance between the ends of jumps, and the denoising loss."""
        loss, half_logsnr = self._jumps(denoiser, corrupted)
        if self.options.denoising:
            loss = loss + self.options.denoising * self._denoising(denoiser, corrupted)
        return Losses(loss, half_logsnr)

    def after_step(self, denoiser: FlowMap, step: int) -> None:
        """Let the target follow."""
        super().after_step(denoiser, step)
        follow(self.target, denoiser, self.options.target_decay)

    def _jumps(self, denoiser: FlowMap, corrupted: Corrupted) -> tuple[Tensor, Tensor]:
        grid = ctm_times(denoiser.process.schedule, self.options, corrupted.x.device)
        places = self.places(corrupted.extras["u"][:, 1:])
        t, u, s = (grid[place] for place in places)
        clean = torch.zeros_like(s)
        x = denoiser.process.corrupt(corrupted.x, t, corrupted.extras["eps"])
        told = embed(self.target, corrupted)
        with torch.no_grad():
            reached = self._walk(corrupted, x, grid, places)
            wanted = self.target(self.target(reached, u, s, told), s, clean, told)
        landed = denoiser(x, t, s, embed(denoiser, corrupted))
        found = self.target(landed, s, clean, told)
        return mean_over_items((found - wanted).square()), denoiser.process.schedule.half_logsnr(t)

    def places(self, u: Tensor) -> Places:
        """Return three positions from uniforms (B, 3): 0 is clean, `levels` the highest level."""
        t = 2 + torch.floor(u[:, 0] * (self.options.levels - 1)).long()
        s = torch.floor(u[:, 1] * t).long()
        lowest = torch.maximum(s, t - self.options.solver_steps).clamp(min=1)
        return Places(t, lowest + torch.floor(u[:, 2] * (t - lowest)).long(), s)

    def _walk(self, corrupted: Corrupted, x: Tensor, grid: Tensor, places: Places) -> Tensor:
        """Return the points at u of the paths through `x` at t, one level at a time."""
        held: Any = self.target.diagonal() if self.teacher is None else self.teacher
        cond = embed(held, corrupted)
        if isinstance(held, FlowMap):
            return advance(held, x, grid[places.t], grid[places.u], cond)
        for step in range(min(self.options.solver_steps, self.options.levels - 1)):
            now, then = (torch.maximum(places.t - k, places.u) for k in (step, step + 1))
            x = advance(held, x, grid[now], grid[then], cond, heun=True)
        return x

    def _denoising(self, denoiser: FlowMap, corrupted: Corrupted) -> Tensor:
        schedule = denoiser.process.schedule
        t = LogNormalTimes(schedule, self.options.time_mean, self.options.time_std)(corrupted.extras["u"][:, 0]).t
        x = denoiser.process.corrupt(corrupted.x, t, corrupted.extras["eps"])
        found = denoiser.instant(x, t, embed(denoiser, corrupted)).mean
        weight = 1 + torch.exp(2 * schedule.half_logsnr(t))
        return weight.to(x.dtype) * mean_over_items((found - corrupted.x).square())


def ctm_times(schedule: Schedule, options: CTMOptions, device: torch.device | str = "cpu") -> Tensor:
    """Return rising times, float64 (levels + 1,): 0, then the levels."""
    low, high = consistency_range(schedule, options)
    times = schedule.time(-torch.log(rho_grid(options.levels, low, high, device)))
    return torch.cat((times.new_zeros(1), times))
