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
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap, Spans, step_rule
from undiffuse.distillation.objective import FlowMapObjective, embed, follow, freeze
from undiffuse.distillation.options import ShortcutOptions
from undiffuse.distillation.shares import PAIR, choose_rows, join_rows, split_rows, take_rows
from undiffuse.distillation.velocities import sample_velocity, scaled_error, velocity_of
from undiffuse.noise import NoiseSource
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

    def prepare(self, denoiser: FlowMap, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Draw noise and uniforms, and choose the rows that learn jumps."""
        made = super().prepare(denoiser, batch, noise, batch_size)
        return replace(
            made, extras=made.extras | {PAIR: choose_rows(self.options.share, noise, len(made.x), batch_size)}
        )

    def score(self, denoiser: FlowMap, corrupted: Corrupted) -> Losses:
        """Return the squared error of the average velocity over jumps and on the diagonal."""
        process, chosen = denoiser.process, split_rows(corrupted)
        jumps, rest = chosen
        t, s = self.times(process.schedule, corrupted.extras["u"], chosen)
        x = process.corrupt(corrupted.x, t, corrupted.extras["eps"])
        with torch.no_grad():
            landed = self._landed(denoiser, take_rows(corrupted, jumps), x[jumps], t[jumps], s[jumps])
            velocity = self._velocity(denoiser, take_rows(corrupted, rest), x[rest], t[rest])
        found = denoiser.average_velocity(x, t, s, embed(denoiser, corrupted))
        error = scaled_error(process, found - join_rows(chosen, landed, velocity), t)
        return Losses(mean_over_items(error.square()), _level(process.schedule, t))

    def times(self, schedule: Schedule, u: Tensor, chosen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return (t, s) float64 (B,) from uniforms (B, 2): steps of a coarse grid, else times of the diagonal."""
        jumps, rest = chosen
        count = 2.0 ** torch.floor(u[jumps, 1] * (self.options.finest.bit_length() - 1))
        first = torch.floor(u[jumps, 0] * count)
        diagonal = UniformTimes(schedule)(u[rest, 0]).t
        t, s = (join_rows(chosen, 1 - place / count, diagonal) for place in (first, first + 1))
        return t, s

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
