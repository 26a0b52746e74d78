"""DDIM and DDPM: one first-order step through the process's bridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from undiffuse.process.gaussian import BridgeRule, GaussianProcess
from undiffuse.sampling.brownian import check_path
from undiffuse.sampling.learned_variance import LearnedStage, learned_stages
from undiffuse.sampling.plan import AffineStage, Plan
from undiffuse.sampling.solver import AffineSolver, Columns, Memory
from undiffuse.sampling.steps import Steps


@dataclass(frozen=True, kw_only=True)
class DDIM(AffineSolver):
    """x_s = alpha_s mean + sqrt(sigma_s^2 - n^2) eps + n z with n = eta sigma_s sqrt(1 - e^-2h).

    At eta = 0 this is also DPM-Solver-1, DPM-Solver++-1, DEIS-1 and Euler in sigma / alpha (diffusers' "Euler").

    Args:
        eta: Share of fresh noise, 0 (deterministic) to 1 (the DDPM posterior; also "Euler ancestral", in any frame).
        rule: "ddim"; "mixed": n = eta sigma_s whatever the step, as the codes of DDRM and DDNM have it; or
            "increments", which at eta = 1 is ResShift's.
        path: Take the noise from one Brownian path, the same for every number of steps; see `sampling.brownian`.

    Raises:
        ValueError: `eta` is outside [0, 1], an unknown rule, a path without noise or with "mixed" noise.

    Source: Song et al. 2020, "Denoising diffusion implicit models", eq. 12 and 16, arXiv:2010.02502.
    """

    grid: ClassVar[str] = "t"
    eta: float = 0.0
    rule: Literal["ddim", "mixed", "increments"] = "ddim"
    path: bool = False

    def __post_init__(self) -> None:
        check_path(self.path, self.stochastic)
        if self.rule not in ("ddim", "mixed", "increments") or (self.path and self.rule != "ddim"):
            raise ValueError(
                f"rule={self.rule!r} is unknown or has no path; choose 'ddim', or 'mixed' or 'increments' without one."
            )
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} is outside [0, 1]; 0 is deterministic, 1 the DDPM posterior.")

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return self.eta > 0

    def coefficients(self, steps: Steps) -> Columns:
        """Read the step off the bridge."""
        return bridge_columns(steps, self.rule, self.eta)


@dataclass(frozen=True, kw_only=True)
class DDPM(AffineSolver):
    """Ancestral sampling: x_s drawn from q(x_s | x_t, x_0 = mean).

    Args:
        variance: "small", that of the posterior (optimal for a single data point), "large", that of
            q(x_t | x_s) (optimal for Gaussian white data), or "learned", small^(1 - v) large^v per element with the v
            in the posterior's `extras["variance"]`. The bounds are those of the step taken, whatever steps the training
            had; v means the same on every schedule of equal length alpha^2 + sigma^2. With guidance v is that of the
            conditional answer.
        path: Take the noise from one Brownian path, the same for every number of steps; see `sampling.brownian`.

    Source: Ho et al. 2020, "Denoising diffusion probabilistic models", section 3.2, arXiv:2006.11239; learned: Nichol &
        Dhariwal 2021, section 3.1, eq. 15, arXiv:2102.09672.
    """

    grid: ClassVar[str] = "t"
    variance: Literal["small", "large", "learned"] = "small"
    path: bool = False

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large", "learned"):
            raise ValueError(f"variance={self.variance!r} is unknown; choose 'small', 'large' or 'learned'.")

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return True

    @property
    def needs(self) -> str:  # type: ignore[override]
        """What it needs beyond a denoiser and a grid."""
        return "a variance head" if self.variance == "learned" else ""

    def coefficients(self, steps: Steps) -> Columns:
        """The mean of the eta = 1 bridge, with the variance asked for; the lower bound of one that is learned."""
        columns = bridge_columns(steps, "ddim", 1.0)
        return _with_large_variance(columns, steps) if self.variance == "large" else columns

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Write the coefficients of every step, with both bounds where the variance is learned."""
        if self.variance != "learned":
            return super().plan(process, grid)
        steps = Steps(process, grid)
        small = self.coefficients(steps)
        both = [self.stages(process, grid, columns) for columns in (small, _with_large_variance(small, steps))]
        return Plan(learned_stages(*both), grid)

    def step(self, stage: AffineStage, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Apply the affine rule; noise of a learned size is added after it."""
        if z is None or not isinstance(stage, LearnedStage):
            return super().step(stage, x, post, memory, z)
        moved, memory = super().step(stage, x, post, memory, None)
        return stage.add_noise(moved, z, post), memory


def _with_large_variance(columns: Columns, steps: Steps) -> Columns:
    return Columns(columns.state, columns.mean, noise=steps.process.forward_kernel(steps.s, steps.t)[1])  # type: ignore[arg-type]


def bridge_columns(steps: Steps, rule: BridgeRule, eta: float) -> Columns:
    """Write x_s = c_0 mean + c_eps eps + std z in terms of the state, with eps = (x_t - alpha_t mean) / sigma_t."""
    if eta == 0:
        state = steps.sigma_s / steps.sigma_t
        return Columns(state, steps.alpha_s - state * steps.alpha_t)
    c_x0, c_eps, std = steps.process.bridge(steps.t, steps.s, rule, eta)
    state = torch.as_tensor(c_eps) / steps.sigma_t
    return Columns(state, c_x0 - state * steps.alpha_t, noise=torch.as_tensor(std))
