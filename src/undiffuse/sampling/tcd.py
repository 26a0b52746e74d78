r"""TCD: steps of models distilled along their trajectories, below the end of a step and back up with noise.

From t the step goes deterministically to a time t' below its end s, and fresh noise brings the state up to s:

    t' = t_min + (1 - gamma) (s - t_min),    x_s = (alpha_s / alpha') (alpha' mean + sigma' eps) + noise,

with t' rounded down to an entry where the schedule is a table. gamma = 0 is DDIM; at gamma = 1 nothing is kept of the
noise but that of t_min. The rule of flow maps (`sampling.flow_map`) is the same with the share in sigma / alpha.

Source: Zheng et al. 2024, "Trajectory consistency distillation", arXiv:2402.19159, algorithm 4; diffusers'
TCDScheduler.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.process.schedules import Schedule
from undiffuse.process.tables import TableSchedule
from undiffuse.sampling.solver import AffineSolver, Columns
from undiffuse.sampling.steps import Steps

_SLACK = 1e-6  # of an index, which a division of times may leave just below a whole number


@dataclass(frozen=True, kw_only=True)
class TCD(AffineSolver):
    """See the module.

    Args:
        gamma: How far below its end a step goes, as a share of the time left: 0 (none) to 1. diffusers calls it eta.

    Raises:
        ValueError: `gamma` is outside [0, 1].
    """

    gamma: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma} is outside [0, 1]; 0 is deterministic, 0.3 usual.")

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return self.gamma > 0

    def coefficients(self, steps: Steps) -> Columns:
        """Compose the deterministic step to t' with the kernel from t' to s."""
        schedule = steps.process.schedule
        alpha, sigma = schedule.levels(self.below(schedule, steps.s))
        up = steps.alpha_s / alpha
        state = up * sigma / steps.sigma_t
        std = (steps.sigma_s**2 - (up * sigma) ** 2).clamp(min=0).sqrt()
        return Columns(state, steps.alpha_s - state * steps.alpha_t, noise=std if self.stochastic else None)

    def below(self, schedule: Schedule, s: Tensor) -> Tensor:
        """Return t' for the ends `s` of steps; what lies at or below t_min stays."""
        time = schedule.t_min + (1 - self.gamma) * (s - schedule.t_min)
        if isinstance(schedule, TableSchedule) and self.gamma:
            entries = len(schedule.alphas_cumprod)
            time = torch.floor(time * entries + _SLACK) / entries
        return torch.where(s <= schedule.t_min, s, torch.minimum(time, s))
