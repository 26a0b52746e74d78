"""DDIM and DDPM: one first-order step through the process's bridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from undiffuse.process.gaussian import BridgeRule
from undiffuse.sampling.solver import AffineSolver, Columns
from undiffuse.sampling.steps import Steps


@dataclass(frozen=True, kw_only=True)
class DDIM(AffineSolver):
    """x_s = alpha_s mean + sqrt(sigma_s^2 - n^2) eps + n z with n = eta sigma_s sqrt(1 - e^-2h).

    At eta = 0 this is also DPM-Solver-1, DPM-Solver++-1, DEIS-1 and Euler in sigma / alpha (diffusers' "Euler").

    Args:
        eta: Share of fresh noise, 0 (deterministic) to 1 (the DDPM posterior).

    Raises:
        ValueError: `eta` is outside [0, 1].

    Source: Song et al. 2020, "Denoising diffusion implicit models", eq. 12 and 16, arXiv:2010.02502.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} is outside [0, 1]; 0 is deterministic, 1 the DDPM posterior.")

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return self.eta > 0

    def coefficients(self, steps: Steps) -> Columns:
        """Read the step off the bridge."""
        return bridge_columns(steps, "ddim", self.eta)


@dataclass(frozen=True, kw_only=True)
class DDPM(AffineSolver):
    """Ancestral sampling: x_s drawn from q(x_s | x_t, x_0 = mean).

    Args:
        variance: "small", that of the posterior (optimal for a single data point), or "large", that of
            q(x_t | x_s) (optimal for Gaussian white data).

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", section 3.2, arXiv:2006.11239.
    """

    variance: Literal["small", "large"] = "small"

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ValueError(f"variance={self.variance!r} is unknown; choose 'small' or 'large'.")

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return True

    def coefficients(self, steps: Steps) -> Columns:
        """The mean of the eta = 1 bridge, with the variance asked for."""
        columns = bridge_columns(steps, "ddim", 1.0)
        if self.variance == "small":
            return columns
        return Columns(columns.state, columns.mean, noise=steps.process.forward_kernel(steps.s, steps.t)[1])  # type: ignore[arg-type]


def bridge_columns(steps: Steps, rule: BridgeRule, eta: float) -> Columns:
    """Write x_s = c_0 mean + c_eps eps + std z in terms of the state, with eps = (x_t - alpha_t mean) / sigma_t."""
    if eta == 0:
        state = steps.sigma_s / steps.sigma_t
        return Columns(state, steps.alpha_s - state * steps.alpha_t)
    c_x0, c_eps, std = steps.process.bridge(steps.t, steps.s, rule, eta)
    state = torch.as_tensor(c_eps) / steps.sigma_t
    return Columns(state, c_x0 - state * steps.alpha_t, noise=torch.as_tensor(std))
