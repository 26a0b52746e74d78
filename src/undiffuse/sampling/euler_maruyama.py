"""Euler-Maruyama in t on the reverse SDE, the plainest stochastic solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from undiffuse.sampling.brownian import check_path
from undiffuse.sampling.ddim import bridge_columns
from undiffuse.sampling.euler import velocity_coefficients
from undiffuse.sampling.solver import AffineSolver, Columns
from undiffuse.sampling.steps import Steps


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(AffineSolver):
    r"""One Euler step of dx = [v - tau^2 / 2 g^2 S] dt + tau g dw, from t down to s:

        x_s = x + (s - t) v + (t - s) tau^2 / 2 g^2 S + tau g sqrt(t - s) z,

    with v the velocity of the probability-flow ODE and S = (alpha mean - x) / sigma^2 the score. Where alpha is 0, g
    is infinite; such a step is the exact one of the same temperature (SDE-DPM-Solver++ 1).

    Args:
        tau: Temperature, at least 0: 0 is Euler on the ODE, 1 the reverse SDE.
        path: Take the noise from one Brownian path, the same for every number of steps; see `sampling.brownian`.

    Raises:
        ValueError: `tau` below 0.

    Source: Song et al. 2021, arXiv:2011.13456, section 4.1; the family in tau: principles, section 2.1.
    """

    grid: ClassVar[str] = "t"
    tau: float = 1.0
    path: bool = False

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise ValueError(f"tau={self.tau} must be at least 0; 0 is deterministic, 1 the reverse SDE.")
        check_path(self.path, self.stochastic)

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return self.tau > 0

    @property
    def temperature(self) -> float:
        """tau."""
        return self.tau

    def coefficients(self, steps: Steps) -> Columns:
        """The formula above, in the state and the mean."""
        by_state, by_mean = velocity_coefficients(steps.process, steps.t)
        span = steps.t - steps.s
        if not self.tau:
            return Columns(1 - span * by_state, -span * by_mean)
        heat = self.tau**2 * steps.process.schedule.diffusion(steps.t)  # tau^2 g^2
        pull = 0.5 * span * heat / steps.sigma_t**2
        state, mean = 1 - span * by_state - pull, pull * steps.alpha_t - span * by_mean
        endless = steps.alpha_t == 0
        exact = bridge_columns(steps, "brownian", self.tau)
        assert exact.noise is not None
        return Columns(
            torch.where(endless, exact.state, state),
            torch.where(endless, exact.mean, mean),
            noise=torch.where(endless, exact.noise, torch.sqrt(heat * span)),
        )
