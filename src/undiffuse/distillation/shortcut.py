r"""Shortcut models: one step of 2d is two steps of d.

A share of each batch (a quarter) learns that a jump over 2d lands where two jumps over d do, for steps of a grid of
1, 2, 4, ... jumps uniform in t; the rest is flow matching on the diagonal, s = t. Half steps of the finest grid are
Euler's (here DDIM's) with the diagonal, which ties the jumps to it. Targets have stop-gradient, by an average of the
student over training, or by the student itself. Errors are those of average velocities, in units of `scaled_error`.

With a teacher the diagonal follows the teacher's velocity, guidance folded in, instead of that of single samples.

Source: Frans et al. 2024, "One step diffusion via shortcut models", arXiv:2410.12557, equations 4, 5 and algorithm 1;
principles, section 2.8.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap, Spans, step_rule
from undiffuse.distillation.objective import FlowMapObjective, embed, follow, freeze
from undiffuse.distillation.options import ShortcutOptions
from undiffuse.distillation.shares import first_rows, spread
from undiffuse.distillation.velocities import sample_velocity, scaled_error, velocity_of
from undiffuse.process.schedules import Schedule
from undiffuse.process.times import align
from undiffuse.training.objectives import Corrupted, Losses, mean_over_items
from undiffuse.training.time_samplers import UniformTimes


class Shortcut(FlowMapObjective):
    """Shortcut models from data, or from a teacher's velocity.

    Args:
        student: The flow map that will be trained, as it starts; read for its shape.
        options: Share, grid and target.
        teacher: Whose velocity the diagonal follows; None: that of single samples.
    """

    spans: ClassVar[Spans] = "any"
    uniforms: ClassVar[int] = 2

    def __init__(
        self, student: FlowMap, options: ShortcutOptions, *, teacher: Denoiser | FlowMap | None = None
    ) -> None:
        super().__init__(teacher=teacher, drop=options.drop)
        self.options = options
        self.target = freeze(copy.deepcopy(student)) if options.target_decay else None

    def score(self, denoiser: FlowMap, corrupted: Corrupted) -> Losses:
        """Return the squared error of the average velocity over jumps and on the diagonal."""
        process = denoiser.process
        jumps = first_rows(self.options.share, len(corrupted.x))
        t, s = self.times(process.schedule, corrupted.extras["u"], jumps)
        x = process.corrupt(corrupted.x, t, corrupted.extras["eps"])
        with torch.no_grad():
            head = self._landed(denoiser, corrupted.rows(0, jumps), x[:jumps], t[:jumps], s[:jumps])
            tail = self._velocity(denoiser, corrupted.rows(jumps, len(x)), x[jumps:], t[jumps:])
        found = denoiser.average_velocity(x, t, s, embed(denoiser, corrupted))
        error = scaled_error(process, found - torch.cat((head, tail)), t)
        return Losses(mean_over_items(error.square()), _level(process.schedule, t))

    def times(self, schedule: Schedule, u: Tensor, jumps: int) -> tuple[Tensor, Tensor]:
        """Return (t, s) float64 (B,) from uniforms (B, 2): steps of a coarse grid, then times of the diagonal."""
        place = spread(u[:, 0])
        count = 2.0 ** torch.floor(u[:jumps, 1] * (self.options.finest.bit_length() - 1))
        first = torch.floor(place[:jumps] * count)
        diagonal = UniformTimes(schedule)(place[jumps:]).t
        return torch.cat((1 - first / count, diagonal)), torch.cat((1 - (first + 1) / count, diagonal))

    def after_step(self, denoiser: FlowMap, step: int) -> None:
        """Let the target follow."""
        super().after_step(denoiser, step)
        if isinstance(self.target, FlowMap):
            follow(self.target, denoiser, self.options.target_decay)

    def _landed(self, denoiser: FlowMap, corrupted: Corrupted, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the average velocity from `t` to where two half steps land at `s`."""
        if not len(x):
            return x
        held = self.target if isinstance(self.target, FlowMap) else denoiser
        cond = embed(held, corrupted)
        smallest = (t - s) * self.options.finest < 2.5  # of exact binary fractions: 2, or at least 4
        middle = (t + s) / 2
        landed = _half(held, _half(held, x, t, middle, smallest, cond), middle, s, smallest, cond)
        return (x - landed) / align(t - s, x).to(x.dtype)

    def _velocity(self, denoiser: FlowMap, corrupted: Corrupted, x: Tensor, t: Tensor) -> Tensor:
        if self.teacher is not None:
            return velocity_of(self.teacher, x, t, embed(self.teacher, corrupted))
        return sample_velocity(denoiser.process, corrupted.x, corrupted.extras["eps"], t)


def _half(held: FlowMap, x: Tensor, t: Tensor, s: Tensor, smallest: Tensor, cond: Any) -> Tensor:
    """Return the state at `s`: by a jump, or where steps are `smallest` by a DDIM step with the diagonal."""
    mean = held.mean(x, t, torch.where(smallest, t, s), cond)
    state, share = (align(c, x).to(x.dtype) for c in step_rule(held.process, t, s))
    return state * x + share * mean


def _level(schedule: Schedule, t: Tensor) -> Tensor:
    """Return half log-SNR, finite also where a jump starts at pure noise."""
    return schedule.half_logsnr(t.clamp(max=schedule.t_max))
