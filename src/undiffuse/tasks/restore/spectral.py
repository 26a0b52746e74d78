r"""DDRM: a step of its own for every singular value of the operator.

In the coordinates of V, with levels S = sigma / alpha and n = sy / s the noise of a measured coefficient, each
coefficient is drawn so that the noise it carries at level S is exactly S, whether it comes from the measurement or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.operators.base import SVDOperator
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.plan import Plan, Renoise, Stage
from undiffuse.sampling.solver import NOTHING, Memory, Solver
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.walk import first_state, grid_of, process_of, walk

_NO_SINGULAR = 1e-10  # of the largest: below it a direction counts as not measured


@dataclass(frozen=True, kw_only=True)
class Spectral(Solver):
    """Base: steps that know a measurement by its singular values.

    Args:
        operator, y, noise_std: The measurement.
        process: Of the denoiser.
    """

    operator: SVDOperator
    y: Tensor
    noise_std: float
    process: GaussianProcess

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise: always."""
        return True

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return singular values, where they are positive, 1 / s there (0 elsewhere), and U^T y."""
        s = self.operator.singulars(x)
        measured = s > _NO_SINGULAR * s.max()
        ratio = torch.where(measured, 1 / torch.where(measured, s, 1.0), 0.0)
        return s, measured, ratio, self.operator.Ut(self.y.to(x.dtype))

    def first(self, z: Tensor, t: float) -> Tensor:
        """Return the first state at time `t` from normals (B, *): N(y~, S^2 - n^2) where n < S, else N(0, S^2)."""
        alpha, sigma = cast(tuple[float, float], self.process.coefficients(t, z))
        _, measured, ratio, told = self.coefficients(z)
        level = sigma / max(alpha, 1e-8)
        noise = self.noise_std * ratio
        known = measured & (noise < level)
        std = torch.where(known, (level**2 - noise**2).clamp(min=0).sqrt(), level)
        mean = torch.where(known, ratio * told, 0.0)
        return self.operator.V(alpha * mean + alpha * std * self.operator.Vt(z)) if alpha else sigma * z


@dataclass(frozen=True, kw_only=True)
class SpectralStep(Spectral):
    """The step of DDRM. With x~ = V^T x_t / alpha, x~0 = V^T mean, y~ = U^T y / s and c = sqrt(1 - eta^2):

    - s = 0:  N(x~0 + c S' (x~ - x~0) / S, eta^2 S'^2)
    - n > S': N(x~0 + c S' (y~ - x~0) / n, eta^2 S'^2)
    - n <= S': N((1 - eta_b) x~0 + eta_b y~, S'^2 - eta_b^2 n^2)

    Args:
        operator, y, noise_std: The measurement.
        eta, eta_b: Shares, in [0, 1].
        process: Of the denoiser.

    Source: Kawar et al. 2022, "Denoising diffusion restoration models", arXiv:2201.11793, eq. 7 and 8.
    """

    eta: float = 0.85
    eta_b: float = 1.0

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """One stage per step.

        Raises:
            PlanError: The grid has times per element.
        """
        if grid.ndim != 1:
            raise PlanError("DDRM takes times shared by the batch; this grid has times per element.")
        times = grid.tolist()
        return Plan(tuple(Stage(step=k, t=t, s=s) for k, (t, s) in enumerate(pairwise(times))), grid)

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw normals of the state's shape."""
        return noise.normal("step", entry.step, tuple(x.shape[1:]), x.dtype)

    def step(self, stage: Stage, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Draw every coefficient at the level of `stage.s`."""
        assert z is not None
        alpha, sigma = cast(tuple[float, float], self.process.coefficients(stage.t, x))
        alpha_s, sigma_s = cast(tuple[float, float], self.process.coefficients(stage.s, x))
        level, kept = sigma_s / alpha_s, (1 - self.eta**2) ** 0.5
        clean = self.operator.Vt(post.mean)
        # (x~ - x~0) / S is the noise that the answer implies, whatever alpha is.
        implied = self.operator.Vt((x - alpha * post.mean) / sigma)
        s, measured, ratio, told = self.coefficients(x)
        noisy = self.noise_std > level * s  # n > S'
        eps = torch.where(measured, (told - s * clean) / self.noise_std if self.noise_std else 0.0, implied)
        uncertain = ~measured | noisy
        mean = torch.where(uncertain, clean + kept * level * eps, (1 - self.eta_b) * clean + self.eta_b * ratio * told)
        rest = (level**2 - (self.eta_b * self.noise_std * ratio) ** 2).clamp(min=0).sqrt()
        std = torch.where(uncertain, self.eta * level, rest)
        return alpha_s * self.operator.V(mean + std * self.operator.Vt(z)), NOTHING


@dataclass(frozen=True, kw_only=True)
class DDRMRestorer(Restorer):
    """Denoising diffusion restoration; see `SpectralStep`. With eta_b = 1 it is also DDNM+.

    Args:
        eta: Share of fresh noise; None: 0.85, or 1 for operators with many different singular values.
        eta_b: Share of the measurement where it is less noisy than the level.
        grid: Spacing of the steps.
    """

    needs: ClassVar[tuple[str, ...]] = ("svd",)
    default_steps: ClassVar[int] = 100
    eta: float | None = None
    eta_b: float = 1.0
    grid: str = "t"

    def __post_init__(self) -> None:
        if not 0 <= self.eta_b <= 1 or not (self.eta is None or 0 <= self.eta <= 1):
            raise ValueError(f"eta={self.eta} and eta_b={self.eta_b} must lie in [0, 1].")

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down coefficient by coefficient."""
        operator = cast(SVDOperator, problem.operator)
        eta = self.eta if self.eta is not None else 1.0 if _spread_out(operator) else 0.85
        solver = SpectralStep(
            operator=operator,
            y=problem.y,
            noise_std=problem.noise_std,
            process=process_of(problem),
            eta=eta,
            eta_b=self.eta_b,
        )
        grid = grid_of(problem, steps, self.grid)
        start = first_state(problem, noise, float(grid[0]))
        if start is None:
            z = noise.normal("init", 0, problem.shape, problem.dtype)
            start = solver.first(z, float(grid[0]))
        return walk(problem, noise, solver, grid, start=start)


def _spread_out(operator: SVDOperator) -> bool:
    """Whether positive singular values differ by more than a factor of 2, as those of a blur do."""
    s = operator.singulars()
    positive = s[s > _NO_SINGULAR * s.max()]
    return bool(positive.max() > 2 * positive.min())
