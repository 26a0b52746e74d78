"""Euler and Heun in t on the probability-flow ODE dx/dt = alpha' mean + sigma' eps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from undiffuse.limits import check_counts
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.schedules import Schedule
from undiffuse.sampling.plan import Plan
from undiffuse.sampling.solver import AffineSolver, Columns
from undiffuse.sampling.steps import Steps
from undiffuse.sampling.two_stage import two_stage_plan

_EDM_RANGE = (80.0, 0.002)  # of sigma / alpha, table 1


@dataclass(frozen=True, kw_only=True)
class Euler(AffineSolver):
    """x_s = x_t + (s - t) dx/dt. The same as DDIM on schedules that are linear in t (`rf`), and only there.

    Source: principles, section 2.5.
    """

    def coefficients(self, steps: Steps) -> Columns:
        """One Euler step."""
        by_state, by_mean = velocity_coefficients(steps.process, steps.t)
        span = steps.s - steps.t
        return Columns(1 + span * by_state, span * by_mean)


@dataclass(frozen=True, kw_only=True)
class Heun(AffineSolver):
    """The average of the velocities at both ends of an Euler step. Costs 2 evaluations per step, 1 in a step to 0.

    Source: principles, section 2.5.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[str] = "2 (1 in a step to 0)"

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Euler as predictor, then x_s = x_t + (s - t) / 2 (v_t + v_s)."""
        t, s = grid[:-1], grid[1:]
        half = 0.5 * (s - t)
        state_t, mean_t = velocity_coefficients(process, t)
        state_s, mean_s = velocity_coefficients(process, s)
        predictor = Columns(1 + 2 * half * state_t, 2 * half * mean_t)
        return two_stage_plan(
            grid, predictor, start=1 + half * state_t, first=half * mean_t, state=half * state_s, second=half * mean_s
        )


@dataclass(frozen=True, kw_only=True)
class EDMHeun(AffineSolver):
    r"""Second-order Heun in (z, rho) = (x / alpha, sigma / alpha), with optional churn.

    With d = (z - mean) / rho: z' = z + (rho' - rho) d, then z += (rho' - rho) (d + d') / 2. Before a step, churn
    raises rho by gamma = min(churn / steps, sqrt(2) - 1) with fresh noise where rho is in [churn_min, churn_max].
    Costs 2 steps - 1 evaluations to t = 0; a step from alpha = 0 (rho infinite) is a single DDIM step.

    Args:
        churn: S_churn, at least 0. ImageNet-64 used 40, CIFAR-10 (VP) 30.
        churn_min, churn_max: S_min and S_max, in rho.
        churn_noise: S_noise, the size of the fresh noise.

    Raises:
        ValueError: `churn`, `churn_min` or `churn_noise` below 0, or `churn_max` not above `churn_min`.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2. Deviation: rho is not raised beyond the
        schedule's own largest.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[str] = "2 (1 in a step to 0)"
    grid: ClassVar[str] = "karras"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = float("inf")
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        if not self.churn >= 0:
            raise ValueError(f"churn={self.churn} must be at least 0.")
        if not self.churn_noise >= 0:
            raise ValueError(f"churn_noise={self.churn_noise} must be at least 0; 1 adds as much as was missing.")
        if not 0 <= self.churn_min < self.churn_max:
            raise ValueError(
                f"churn_min={self.churn_min}, churn_max={self.churn_max} must rise: 0 <= churn_min < churn_max, "
                "both levels of sigma / alpha."
            )

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return self.churn > 0

    def published_grid(self, schedule: Schedule, steps: int) -> Tensor:
        """Return `karras` between rho = 80 and 0.002, or the schedule's own ends where they lie within, then 0."""
        check_counts(steps=steps)
        ends = schedule.time(-torch.log(torch.tensor(_EDM_RANGE, dtype=torch.float64)))
        high, low = ends.clamp(schedule.t_min, schedule.t_max).tolist()
        inner = make_grid(schedule, steps - 1, "karras", end=low, start=high)[1:] if steps > 1 else ends[:0]
        return torch.cat([ends.new_ones(1), inner, ends.new_zeros(1)])

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """DDIM as predictor, then the average of the two slopes."""
        t, s = grid[:-1], grid[1:]
        raised = self._raised(process, t, s)
        alpha_t, alpha_s = process.schedule.alpha(raised), process.schedule.alpha(s)
        rho_t, rho_s = process.schedule.sigma(raised) / alpha_t, process.schedule.sigma(s) / alpha_s
        slope_t, slope_s = 0.5 * (rho_s - rho_t) / rho_t, 0.5 * (rho_s - rho_t) / rho_s
        endless = alpha_t == 0
        ratio = torch.where(endless, process.schedule.sigma(s), alpha_s / alpha_t * (1 + 2 * slope_t))
        predictor = Columns(ratio, torch.where(endless, alpha_s, -2 * alpha_s * slope_t))
        return two_stage_plan(
            grid,
            predictor,
            start=alpha_s / alpha_t * (1 + slope_t),
            first=-alpha_s * slope_t,
            state=slope_s,
            second=-alpha_s * slope_s,
            single=endless,
            raise_from=None if not self.churn else (process, raised, self.churn_noise),
        )

    def _raised(self, process: GaussianProcess, t: Tensor, s: Tensor) -> Tensor:
        """Times after churn; those of `t` where there is none."""
        if not self.churn:
            return t
        rho = process.schedule.sigma(t) / process.schedule.alpha(t)
        gamma = (self.churn / (s < t).sum(0)).clamp(max=2**0.5 - 1)
        inside = (rho >= self.churn_min) & (rho <= self.churn_max) & (s < t) & rho.isfinite()
        higher = process.schedule.time(-torch.log(rho * (1 + gamma))).clamp(max=process.schedule.t_max)
        return torch.where(inside, torch.maximum(higher, t), t)


def velocity_coefficients(process: GaussianProcess, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (p, q) with dx/dt = p x + q mean, where sigma is not 0."""
    schedule = process.schedule
    p = schedule.sigma_slope(t) / schedule.sigma(t)
    return p, schedule.alpha_slope(t) - p * schedule.alpha(t)
