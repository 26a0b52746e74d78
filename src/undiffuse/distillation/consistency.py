r"""Consistency training and distillation: f(x_t, t) = Phi(x_t, t, end) is the same along a path.

Two neighbouring points of a path, at rho_{n+1} > rho_n, must map to the same end:

    loss = weight * d(f(x_{n+1}, t_{n+1}), stop-gradient f(x_n, t_n)).

Training takes x_n = alpha x_0 + sigma eps at both levels, with the same x_0 and eps; distillation makes a Heun step of
the teacher from x_{n+1}. Levels are those of the `edm` grid in rho = sigma / alpha, more of them as training goes on.

The plan "ict" has no averaged target, the pseudo-Huber distance sqrt(|.|^2 + c^2) - c with c = 0.00054 sqrt(d), weight
1 / (rho_{n+1} - rho_n), and levels drawn log-normally. From data alone x_n is random given x_{n+1}, and f is exact
where it is the mean of f(x_n). So small a c makes it the geometric median instead, which differs by O(rho_{n+1} -
rho_n) for each level, that is by O(1) at the end. Over thousands of values the distance hardly varies, and the two
agree; on points in the plane one jump was 10 times farther from the data, so data alone of fewer than 64 values take
squares. The plan "original" draws levels evenly, takes squared distances
(its LPIPS needs a network of natural images), and has a target that follows the student.

f is the student's jump to the lowest level. In rho that is (e / rho) z + (1 - e / rho) g: the published c_out, and a
c_skip that differs by O(e / rho) but is 1 at rho = e likewise.

Source: Song et al. 2023, "Consistency models", arXiv:2303.01469, algorithms 2, 3; Song and Dhariwal 2023, "Improved
techniques for training consistency models", arXiv:2310.14189, sections 3.2 to 3.5.
"""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap, Spans
from undiffuse.distillation.objective import FEW_VALUES, FlowMapObjective, advance, embed, follow, freeze
from undiffuse.distillation.options import ConsistencyOptions, CTMOptions
from undiffuse.process.schedules import Schedule
from undiffuse.training.objectives import Corrupted, Losses

_POWER = 7.0  # of the grid in rho
_HUBER = 0.00054


class Consistency(FlowMapObjective):
    """Consistency training, or distillation where there is a teacher.

    Args:
        student: The flow map that will be trained, as it starts; read for its shape.
        options: Levels, loss and target.
        steps: Optimizer steps of the run, which the number of levels follows.
        teacher: Whose paths to follow; None: paths from data.
    """

    spans: ClassVar[Spans] = "clean"

    def __init__(
        self,
        student: FlowMap,
        options: ConsistencyOptions,
        *,
        steps: int,
        teacher: Denoiser | FlowMap | None = None,
    ) -> None:
        super().__init__(teacher=teacher, drop=options.drop)
        self.options, self.steps = options, max(steps, 1)
        self.target = None if options.plan == "ict" else freeze(copy.deepcopy(student))

    def levels(self, step: int) -> int:
        """Return the number of noise levels after `step` optimizer steps."""
        low, high = self.options.levels
        if self.options.plan == "ict":
            doublings = math.floor(step * (math.log2(high / low) + 1) / self.steps)
            return min(low * 2**doublings, high) + 1
        square = step / self.steps * ((high + 1) ** 2 - low**2) + low**2
        return math.ceil(math.sqrt(square) - 1) + 1 if low < high else low

    def score(self, denoiser: FlowMap, corrupted: Corrupted) -> Losses:
        """Return the weighted distance between the ends of neighbouring points."""
        low, high = consistency_range(denoiser.process.schedule, self.options)
        rho = rho_grid(self.levels(self.steps_done), low, high, corrupted.x.device)
        n = self._draw(rho, corrupted.extras["u"][:, 0])
        schedule = denoiser.process.schedule
        t, s = (schedule.time(-torch.log(rho[k])) for k in (n + 1, n))
        x, end = denoiser.process.corrupt(corrupted.x, t, corrupted.extras["eps"]), torch.full_like(t, denoiser.end)
        cond = embed(denoiser, corrupted)
        found = denoiser(x, t, end, cond)
        with torch.no_grad():
            before = self._before(denoiser, corrupted, x, t, s)
            target = self.target if self.target is not None else denoiser
            wanted = target(before, s, end, cond if target is denoiser else embed(target, corrupted))
        square = (found - wanted).square().flatten(1)
        weight = 1 / (rho[n + 1] - rho[n]) if self.options.plan == "ict" else torch.ones_like(t)
        return Losses(weight.to(x.dtype) * self._distance(square), schedule.half_logsnr(t))

    def after_step(self, denoiser: FlowMap, step: int) -> None:
        """Let the target follow: decay mu = exp(s_0 ln mu_0 / N)."""
        if isinstance(self.target, FlowMap):
            low = self.options.levels[0]
            decay = math.exp(low * math.log(self.options.target_decay) / self.levels(step - 1))
            follow(self.target, denoiser, decay)
        super().after_step(denoiser, step)

    def _before(self, denoiser: FlowMap, corrupted: Corrupted, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the point at `s` of the path through `x` at `t`."""
        if self.teacher is None:
            return denoiser.process.corrupt(corrupted.x, s, corrupted.extras["eps"])
        return advance(self.teacher, x, t, s, embed(self.teacher, corrupted), heun=True)

    def _draw(self, rho: Tensor, u: Tensor) -> Tensor:
        """Return the lower level of each pair, int64 (B,)."""
        pairs = len(rho) - 1
        if self.options.plan == "original":
            return (u * pairs).long().clamp(max=pairs - 1)
        cumulative = torch.erf((torch.log(rho) - self.options.mean) / (math.sqrt(2) * self.options.std))
        share = (cumulative[1:] - cumulative[0]) / (cumulative[-1] - cumulative[0])
        return torch.searchsorted(share, u.contiguous(), right=True).clamp(max=pairs - 1)

    def _distance(self, square: Tensor) -> Tensor:
        """Return the distance of each item from squared differences (B, d)."""
        constant = self.huber(square.shape[1])
        if constant is None:
            return square.mean(1)
        c = constant * math.sqrt(square.shape[1])
        return (square.sum(1) + c * c).sqrt() - c

    def huber(self, values: int) -> float | None:
        """Return the pseudo-Huber constant for items of so many values; None for squares."""
        if self.options.plan == "original":
            return None
        if self.options.huber is not None:
            return self.options.huber
        return None if self.teacher is None and values < FEW_VALUES else _HUBER


def consistency_range(schedule: Schedule, options: ConsistencyOptions | CTMOptions) -> tuple[float, float]:
    """Return the lowest and the highest sigma / alpha: those asked for, as far as the schedule goes."""
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    low, high = torch.exp(-schedule.half_logsnr(ends)).tolist()
    return max(low, options.rho_min), min(high, options.rho_max)


def consistency_times(schedule: Schedule, options: ConsistencyOptions | CTMOptions) -> tuple[float, float]:
    """Return the times of `consistency_range`: a student's `end` and `start`."""
    low, high = schedule.time(-torch.tensor(consistency_range(schedule, options), dtype=torch.float64).log()).tolist()
    return low, high


def rho_grid(levels: int, low: float, high: float, device: torch.device | str = "cpu") -> Tensor:
    """Return `levels` rising levels, evenly spaced in rho^(1/7), float64."""
    ends = low ** (1 / _POWER), high ** (1 / _POWER)
    return torch.linspace(*ends, levels, dtype=torch.float64, device=device) ** _POWER
