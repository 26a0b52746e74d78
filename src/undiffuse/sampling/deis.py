r"""DEIS and Adams-Bashforth: polynomials through the last noises, integrated over rho = sigma / alpha."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from undiffuse.sampling.multistep import Form, Lower, Multistep, exponential_moments
from undiffuse.sampling.steps import Steps

_POINTS = 16  # of Gauss-Legendre


@dataclass(frozen=True, kw_only=True)
class DEIS(Multistep):
    r"""x_s / alpha_s = x / alpha_t + sum_j c_j eps_j, c_j = int_t^s L_j(u) rho'(u) du, over the last `order` noises.

    L_j are the Lagrange polynomials in `variable`, whose integral is closed but for "t", where it is a 16-point
    Gauss-Legendre sum of rho after integration by parts (no slope is needed, so that tables serve).

    Args:
        order: 1 to 4.
        variable: "t", the tAB of the paper; "rho", its rhoAB, which is LMS; "logrho", which diffusers calls DEIS, and
            which equals the noise form of DPM-Solver; "steps", polynomials in the number of the step with the classical
            Adams-Bashforth weights (iPNDM), for grids that are even in rho.
        lower_final: Make the last steps order 2, then 1; "few": with fewer than 15 steps; None: then, and from order 3
            on also on grids that are not even in half log-SNR.

    Raises:
        ValueError: An unknown variable or an order out of range.

    Source: Zhang and Chen 2022, "Fast sampling of diffusion models with exponential integrator", arXiv:2204.13902,
        eq. 15 and appendix; iPNDM: eq. 46 there, after Liu et al. 2022, arXiv:2202.09778.
    """

    highest: ClassVar[int] = 4
    form: ClassVar[Form] = "noise"  # type: ignore[misc]
    order: int = 3
    variable: Literal["t", "rho", "logrho", "steps"] = "t"
    lower_final: Lower = None

    def __post_init__(self) -> None:
        self.check_order()
        if self.variable not in ("t", "rho", "logrho", "steps"):
            raise ValueError(f"variable={self.variable!r} is unknown; choose 't', 'rho', 'logrho' or 'steps'.")

    @property
    def grid(self) -> str:
        """Even in the root of t for polynomials in t, as in the paper."""
        return "quadratic" if self.variable == "t" else ""

    def nodes(self, steps: Steps, count: int) -> list[Tensor]:
        """Places of the last noises along the variable, 0 at t and 1 at s."""
        if self.variable == "logrho":
            return super().nodes(steps, count)
        if self.variable == "steps":
            return [torch.full_like(steps.t, -1.0 - age) for age in range(count)]
        if self.variable == "t":
            return [(past - steps.t) / (steps.s - steps.t) for past in steps.past(count, steps.t)]
        rho = torch.exp(-steps.half_logsnr_t)
        return [(torch.exp(-past) - rho) / _rise(steps) for past in steps.past(count)]

    def moments(self, steps: Steps, count: int) -> list[Tensor]:
        """alpha_s int theta^i d rho for i = 1 .. count."""
        if self.variable == "logrho":
            return [-steps.sigma_s * moment for moment in exponential_moments(steps.h, count)]
        if self.variable == "t":
            return _quadrature(steps, count)
        rise = steps.alpha_s * _rise(steps)
        return [rise / (i + 1) for i in range(1, count + 1)]


def _rise(steps: Steps) -> Tensor:
    return steps.sigma_s / steps.alpha_s - steps.sigma_t / steps.alpha_t


def _quadrature(steps: Steps, count: int) -> list[Tensor]:
    """alpha_s (rho_s - i int theta^(i-1) rho d theta) with theta even in t."""
    places, shares = _gauss_legendre()
    column = (slice(None), *(None,) * steps.t.ndim)
    theta = places[column]
    rho = torch.exp(-steps.process.schedule.half_logsnr(torch.lerp(steps.t, steps.s, theta))) * shares[column]
    return [steps.sigma_s - i * steps.alpha_s * (theta ** (i - 1) * rho).sum(0) for i in range(1, count + 1)]


@cache
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Places in (0, 1) and their weights: eigenvalues of the Jacobi matrix of the Legendre polynomials."""
    k = torch.arange(1, _POINTS, dtype=torch.float64)
    side = k / torch.sqrt(4 * k**2 - 1)
    values, vectors = torch.linalg.eigh(torch.diag(side, 1) + torch.diag(side, -1))
    return 0.5 * (values + 1), vectors[0] ** 2
