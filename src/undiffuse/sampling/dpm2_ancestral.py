r"""DPM-Solver-2 with fresh noise in every step, k-diffusion's "DPM2 ancestral"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.plan import Plan
from undiffuse.sampling.solver import AffineSolver, Columns
from undiffuse.sampling.steps import Steps
from undiffuse.sampling.two_stage import two_stage_plan


@dataclass(frozen=True, kw_only=True)
class DPM2Ancestral(AffineSolver):
    r"""A step of DPM-Solver-2 below the end of the step, then noise up to it. In z = x / alpha, rho = sigma / alpha,

        down = rho_s^2 / rho_t,    up = sqrt(rho_s^2 - down^2),
        z_s = z + (down - rho_t) eps(z', rho_s) + up xi,    z' = z + (rho_s - rho_t) eps(z, rho_t),

    whose middle in log rho, sqrt(rho_t down), is rho_s itself. Costs 2 evaluations per step; a step to t = 0 is of
    first order, one from alpha = 0 is that of ancestral sampling (`ddpm`), and both cost 1. Of second order in the
    variance.

    Source: k-diffusion's `sample_dpm_2_ancestral`, which is diffusers' KDPM2AncestralDiscreteScheduler.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[str] = "2 (1 in a step to 0)"

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise: always."""
        return True

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """DDIM as predictor, then the step below with the answer met there, and the noise."""
        steps = Steps(process, grid)
        endless = steps.alpha_t == 0
        alone = endless | (steps.s == 0) | (steps.s == steps.t)
        state = torch.where(endless, 0.0, steps.sigma_s / steps.sigma_t)
        predictor = Columns(
            state, steps.alpha_s - state * steps.alpha_t, noise=torch.where(endless, steps.sigma_s, 0.0)
        )
        start = steps.alpha_s / steps.alpha_t
        by_noise = steps.sigma_s * torch.exp(-steps.h) - steps.sigma_t * start  # alpha_s (down - rho_t)
        return two_stage_plan(
            grid,
            predictor,
            start=start,
            first=torch.zeros_like(start),
            state=by_noise / steps.sigma_s,
            second=-by_noise * steps.alpha_s / steps.sigma_s,
            single=endless,
            noise=torch.where(alone, 0.0, steps.sigma_s * torch.sqrt(-torch.expm1(-2 * steps.h))),
        )
