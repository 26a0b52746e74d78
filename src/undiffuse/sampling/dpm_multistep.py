r"""DPM-Solver++ 2M and its stochastic family SDE-DPM-Solver++ 2M."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from undiffuse.sampling.solver import AffineSolver, Columns
from undiffuse.sampling.steps import Steps

_FEW_STEPS = 15  # below it the last step is of first order, as in the authors' code and in diffusers


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(AffineSolver):
    r"""Second-order multistep solver in the posterior mean.

    With l the half log-SNR, h = l_s - l_t, H = (1 + tau^2) h and r = (l_t - l_prev) / h,

        x_s = (sigma_s / sigma_t) e^(-tau^2 h) x - alpha_s expm1(-H) [D + (D - D_prev) / (2r)] + n z,
        n = sigma_s sqrt(1 - e^(-2 tau^2 h)).

    The first step of each element, and a step to t = 0, is of first order.

    Args:
        tau: Temperature of the reverse SDE: 0 is the probability-flow ODE, 1 the reverse SDE (k-diffusion's eta is
            tau^2). All values have the same marginals.
        variant: Weight of the difference term: "midpoint" as above, or "heun", alpha_s (expm1(-H) / H + 1) / r.
        lower_final: Make the last step first order; None: where there are fewer than 15 steps.

    Raises:
        ValueError: `tau` below 0 or an unknown variant.

    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2 and appendix, arXiv:2211.01095.
    """

    order: ClassVar[int] = 2
    tau: float = 0.0
    variant: Literal["midpoint", "heun"] = "midpoint"
    lower_final: bool | None = None

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise ValueError(f"tau={self.tau} must be at least 0; 0 is deterministic, 1 the reverse SDE.")
        if self.variant not in ("midpoint", "heun"):
            raise ValueError(f"variant={self.variant!r} is unknown; choose 'midpoint' or 'heun'.")

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return self.tau > 0

    def coefficients(self, steps: Steps) -> Columns:
        """The formula above, with the memory as a difference D_prev - D."""
        heat, h = self.tau**2, steps.h
        kept = torch.exp(-heat * h) if heat else 1.0  # 0 * h is NaN where h is infinite
        decay = torch.expm1(-(1 + heat) * h)
        (before,) = steps.past(1)
        slope = 0.5 * decay if self.variant == "midpoint" else -(decay / ((1 + heat) * h) + 1)
        memory = steps.alpha_s * slope * h / (steps.half_logsnr_t - before)
        first_order = self._lowered(steps, before.isnan())
        noise = steps.sigma_s * torch.sqrt(-torch.expm1(-2 * heat * h)) if heat else None
        past = ((torch.where(first_order, 0.0, memory),),)
        return Columns(steps.sigma_s / steps.sigma_t * kept, -steps.alpha_s * decay, past, noise)

    def _lowered(self, steps: Steps, first: Tensor) -> Tensor:
        """Mark the steps of first order: each element's `first`, and its last one where that is to be lowered."""
        few = steps.count < _FEW_STEPS if self.lower_final is None else self.lower_final
        return first if few is False else first | (steps.s == steps.grid[-1]) & (steps.s < steps.t) & few
