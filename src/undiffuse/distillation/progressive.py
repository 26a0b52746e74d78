r"""Progressive distillation: N steps become N / 2, round after round.

A round's student, which starts as its teacher, learns to land in one step of t -> s where two steps of the teacher
t -> m -> s land, z. Its DDIM step must then have the mean

    target = (z - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t),

and the loss is max(SNR_t, 1) |target - g(x_t, t, s)|^2. The next teacher is the average over the round. Times are those
of a grid uniform in t. The learning rate falls anew in every round, as in the authors' code, and the averages of the
run begin anew: students of two rounds answer different questions, so their weights must not be mixed.

Source: Salimans and Ho 2022, "Progressive distillation for fast sampling of diffusion models", arXiv:2202.00512,
algorithm 2 and appendix G.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap, Spans, step_rule
from undiffuse.distillation.objective import FlowMapObjective, advance, embed, freeze
from undiffuse.process.times import align
from undiffuse.training.ema import PowerEMA
from undiffuse.training.objectives import Corrupted, Losses, mean_over_items


class Progressive(FlowMapObjective):
    """Progressive distillation over a whole run.

    Args:
        student: The flow map that will be trained, as it starts; read for its shape.
        first_steps: Steps of the first teacher.
        rounds: Halvings.
        steps: Optimizer steps of the run, shared out evenly among the rounds.
        teacher: The first teacher; None: the student as it starts.
        average: Relative width of the average over a round.
        drop: Probability that a row's condition is replaced by its null.
    """

    spans: ClassVar[Spans] = "steps"

    def __init__(
        self,
        student: FlowMap,
        *,
        first_steps: int,
        rounds: int,
        steps: int,
        teacher: Denoiser | FlowMap | None = None,
        average: float = 0.1,
        drop: float = 0.0,
    ) -> None:
        super().__init__(teacher=teacher, drop=drop)
        self.first_steps, self.rounds, self.steps = first_steps, rounds, max(steps, rounds)
        self.last = freeze(copy.deepcopy(student))
        self.mean = freeze(copy.deepcopy(student))
        self.width = average

    def round_of(self, step: int) -> int:
        """Return the round of the optimizer step that follows `step` done ones, from 0."""
        return min(self.rounds - 1, step * self.rounds // self.steps)

    def span(self, step: int, steps: int) -> tuple[int, int]:
        """Return the first step of the round of `step`, and that of the next."""
        number = self.round_of(step)
        return self._begins(number), self._begins(number + 1)

    def _begins(self, number: int) -> int:
        """Return how many steps are done before round `number`."""
        return -(-number * self.steps // self.rounds)

    def score(self, denoiser: FlowMap, corrupted: Corrupted) -> Losses:
        """Return the weighted error of the mean with which one step lands where two of the teacher do."""
        number = self.round_of(self.steps_done)
        teacher = self.teacher if number == 0 and self.teacher is not None else self.last
        assert teacher is not None
        t, middle, s = self.times(corrupted.extras["u"][:, 0], number)
        process = denoiser.process
        x = process.corrupt(corrupted.x, t, corrupted.extras["eps"])
        with torch.no_grad():
            cond = embed(teacher, corrupted)
            landed = advance(teacher, advance(teacher, x, t, middle, cond), middle, s, cond)
            target = wanted_mean(denoiser, x, landed, t, s)
        found = denoiser.mean(x, t, s, embed(denoiser, corrupted))
        half_logsnr = process.schedule.half_logsnr(t)
        weight = torch.exp(2 * half_logsnr).clamp(min=1.0).to(x.dtype)
        return Losses(weight * mean_over_items((target - found).square()), half_logsnr)

    def times(self, u: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return start, middle and end of one step of round `number` for uniforms (B,)."""
        student_steps = self.first_steps >> (number + 1)
        first = torch.floor(u * student_steps)
        return tuple(1 - (first + part) / student_steps for part in (0.0, 0.5, 1.0))  # type: ignore[return-value]

    @torch.no_grad()
    def after_step(self, denoiser: FlowMap, step: int) -> None:
        """Average over the round; where it ends, the average is the next teacher, and the student starts from it."""
        super().after_step(denoiser, step)
        assert self.last is not None and self.mean is not None
        number = self.round_of(step - 1)
        begun = self._begins(number)
        weights, averages = list(denoiser.parameters()), [p.data for p in self.mean.parameters()]
        PowerEMA(averages, self.width).update(weights, step - begun)
        if self.round_of(step) != number:
            for own, now, mean in zip(self.last.parameters(), weights, averages, strict=True):
                own.copy_(mean)
                now.copy_(mean)


def wanted_mean(flow_map: FlowMap, x: Tensor, landed: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the mean with which one DDIM step from `x` at `t` lands on `landed` at `s`."""
    state, share = (align(c, x).to(x.dtype) for c in step_rule(flow_map.process, t, s))
    return (landed - state * x) / share
