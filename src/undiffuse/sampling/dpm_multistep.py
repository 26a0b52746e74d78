r"""DPM-Solver and DPM-Solver++ in their multistep forms, and the stochastic family SDE-DPM-Solver++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from undiffuse.sampling.brownian import check_path
from undiffuse.sampling.multistep import FEW_STEPS, Form, Lower, Multistep, exponential_moments
from undiffuse.sampling.solver import Columns
from undiffuse.sampling.steps import Steps


@dataclass(frozen=True, kw_only=True)
class DPMMultistep(Multistep):
    r"""Multistep solver of order 1 to 3 whose polynomials run in half log-SNR.

    With l the half log-SNR, h = l_s - l_t, H = (1 + tau^2) h, r0 = (l_t - l_1) / h, r1 = (l_1 - l_2) / h,

        x_s = (sigma_s / sigma_t) e^(-tau^2 h) x - alpha_s expm1(-H) D + alpha_s p2 A - 2 alpha_s p3 B + n z,
        n = sigma_s sqrt(1 - e^(-2 tau^2 h)),    p2 = expm1(-H) / H + 1,    p3 = p2 / H - 1/2,
        D10 = (D - D_1) / r0,    D11 = (D_1 - D_2) / r1,    B = (D10 - D11) / (r0 + r1),    A = D10 + r0 B,

    at order 3; order 2 has A = D10 and B = 0, and "midpoint" takes -expm1(-H) / 2 instead of p2. The noise form is
    the same with alpha and sigma, mean and noise exchanged and h negative. The first steps of each element, and a step
    to t = 0, have lower order.

    Args:
        order: 1, 2 or 3.
        form: "data" is DPM-Solver++, "noise" DPM-Solver.
        tau: Temperature of the reverse SDE: 0 is the probability-flow ODE, 1 the reverse SDE (k-diffusion's eta is
            tau^2). All values have the same marginals.
        variant: Weight of the difference in steps of order 2: "midpoint", or "heun" for p2 itself.
        published: Third-order steps as published, with p3 B in place of 2 p3 B, which makes them second order; also
            the authors' lowering of last orders, with fewer than 15 steps only. "diffusers" is the stochastic rule of
            that library, (1 + p3) B, which is of first order.
        lower_final: Make the last steps order 2, then 1; "few": with fewer than 15 steps; None: then, and at order 3
            also on grids that are not even in half log-SNR.
        path: Take the noise from one Brownian path, the same for every number of steps; see `sampling.brownian`.

    Raises:
        ValueError: `order` out of range, `tau` below 0, an unknown variant or form, or options that do not go together.

    Source: Lu et al. 2022, "DPM-Solver++", arXiv:2211.01095, algorithm 2 and appendix; the factor 2: principles,
        section 2.5.
    """

    grid: ClassVar[str] = "logsnr"
    order: int = 2
    form: Form = "data"
    tau: float = 0.0
    variant: Literal["midpoint", "heun"] = "midpoint"
    published: bool | Literal["diffusers"] = False
    lower_final: Lower = None
    path: bool = False

    def __post_init__(self) -> None:
        self.check_order()
        check_path(self.path, self.stochastic)
        if not self.tau >= 0:
            raise ValueError(f"tau={self.tau} must be at least 0; 0 is deterministic, 1 the reverse SDE.")
        if self.variant not in ("midpoint", "heun"):
            raise ValueError(f"variant={self.variant!r} is unknown; choose 'midpoint' or 'heun'.")
        if self.tau and self.form == "noise":
            raise ValueError(f"tau={self.tau} belongs to form 'data'; the noise form has no stochastic family here.")
        if self.published not in (False, True, "diffusers"):
            raise ValueError(f"published={self.published!r} is unknown; choose True, False or 'diffusers'.")
        if self.published and self.order < 3:
            raise ValueError(f"published={self.published!r} is about order 3; this solver has order {self.order}.")
        if self.published == "diffusers" and not self.tau:
            raise ValueError("published='diffusers' is a stochastic rule; give tau=1, or published=True for tau=0.")

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return self.tau > 0

    @property
    def temperature(self) -> float:
        """tau."""
        return self.tau

    def first_order(self, steps: Steps) -> Columns:
        """DDIM, or the exact step of the reverse SDE for a constant mean."""
        if not self.tau:
            return super().first_order(steps)
        heat, h = self.tau**2, steps.h
        state = steps.sigma_s / steps.sigma_t * torch.exp(-heat * h)
        noise = steps.sigma_s * torch.sqrt(-torch.expm1(-2 * heat * h))
        return Columns(state, -steps.alpha_s * torch.expm1(-(1 + heat) * h), noise=noise)

    def moments(self, steps: Steps, count: int) -> list[Tensor]:
        """-alpha_s i! c_i(-H), or -sigma_s i! c_i(h) for the noise."""
        y = steps.h if self.form == "noise" else -(1 + self.tau**2) * steps.h
        scale = -(steps.sigma_s if self.form == "noise" else steps.alpha_s)
        if count == 1 and self.variant == "midpoint":
            return [scale * 0.5 * torch.expm1(y)]
        found = exponential_moments(y, count)
        if count == 2 and self.published:
            found[1] = 0.5 * found[1] + (self.published == "diffusers")
        return [scale * moment for moment in found]

    def lowered(self, steps: Steps) -> bool | Tensor:
        """The authors lower last orders by the number of steps alone."""
        if self.published and self.lower_final is None:
            return steps.count < FEW_STEPS
        return super().lowered(steps)
