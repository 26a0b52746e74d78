"""Restorers that push the state by a gradient through the network: DPS, also latent, PiGDM as published, MCG, PSLD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from undiffuse.guidance.measurement import PiGDM
from undiffuse.guidance.push import Direction, GradientPush, descent
from undiffuse.limits import not_negative
from undiffuse.noise import NoiseSource
from undiffuse.operators.base import per_row
from undiffuse.process.times import Time
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.ddim import DDIM
from undiffuse.sampling.pushed import Pushed
from undiffuse.tasks.restore.constraints import KnownPixels, StateFit
from undiffuse.tasks.restore.misfit import LEAST_NORM, mean_variance, misfit_descent
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.walk import grid_of, process_of, walk


@dataclass(frozen=True, kw_only=True)
class Pushing(Restorer):
    """Base: a direction in x_0, pulled back to the state.

    Args:
        eta: Share of fresh noise in a DDIM step.
        grid: Spacing of the steps.
    """

    gradient: ClassVar[bool] = True
    eta: float = 1.0
    grid: str = "t"

    def direction(self, problem: Problem, steps: int) -> Direction:
        """Return u of a mean; the state moves by J^T u after each step."""
        raise NotImplementedError

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Return what holds beside the push."""
        return ()

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down, pushed after each step."""
        return self.pushed(problem, noise, steps, self.direction(problem, steps))

    def pushed(self, problem: Problem, noise: NoiseSource, steps: int, direction: Direction) -> Solution:
        """Walk down, pushed along `direction`."""
        grid = grid_of(problem, steps, self.grid)
        denoiser = GradientPush(problem.denoiser, direction)
        constraints = self.constraints(problem)
        solver = Pushed(solver=DDIM(eta=self.eta))
        return walk(problem, noise, solver, grid, denoiser=denoiser, constraints=constraints, gradient=True)


@dataclass(frozen=True, kw_only=True)
class DPSRestorer(Pushing):
    """x' = step - scale grad_{x_t} |y - A(mean)|, the norm of each image by itself, as the published code has it.

    With a noise model the gradient is that of its log-likelihood, times the variance it takes the noise to have over
    the residual's norm, which is the same for Gaussian noise.

    Args:
        scale: zeta * steps, so that the number of steps can change; None: by the noise, 100 at 0.05 to 30 at 0.4.

    Source: Chung et al. 2022, "Diffusion posterior sampling for general noisy inverse problems", arXiv:2209.14687,
        algorithm 1.
    """

    needs: ClassVar[tuple[str, ...]] = ("differentiable",)
    any_noise: ClassVar[bool] = True
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and self.scale < 0:
            raise ValueError(f"scale={self.scale} is negative; it would push away from the measurement.")

    def zeta(self, problem: Problem, steps: int) -> float | Tensor:
        """Return the size of one step's push; one for each row where the noise depends on what was measured."""
        if self.scale is not None:
            return self.scale / steps
        if problem.noise_model is None:
            wide = min(max((problem.noise_std - 0.05) / 0.35, 0.0), 1.0)
            return (100.0 - 70.0 * wide) / steps
        share = ((mean_variance(problem).sqrt() - 0.05) / 0.35).clamp(0.0, 1.0)
        return per_row((100.0 - 70.0 * share) / steps, problem.y.new_empty(problem.rows, *problem.shape))

    def direction(self, problem: Problem, steps: int) -> Direction:
        """Return zeta times minus the gradient of the misfit."""
        zeta = self.zeta(problem, steps)
        return lambda mean, x, t: zeta * misfit_descent(problem, mean)


@dataclass(frozen=True, kw_only=True)
class PiGDMStepRestorer(Pushing):
    """PiGDM as published: x' = step + alpha g, which is under-dispersed where y is noisy; "pigdm" corrects the mean.

    Args:
        data_var: Variance of one element of the data; 1 as published.
        replace_known: Replace the known pixels of every answer by y and push the others alone, as the published code
            does for masks and y without noise.

    Source: Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", algorithm 1.
    """

    needs: ClassVar[tuple[str, ...]] = ("pinv",)
    data_var: float = 1.0
    replace_known: bool = False

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Replace what is known, where asked for."""
        return [KnownPixels(problem, "own")] if self.replace_known else []

    def check(self, problem: Problem) -> list[str]:
        """Refuse to replace pixels where there is no mask, and warn of their noise."""
        return KnownPixels.check(problem) if self.replace_known else []

    def direction(self, problem: Problem, steps: int) -> Direction:
        """Return alpha u."""
        wrapped = PiGDM(problem.denoiser, problem.operator, problem.y, problem.noise_std, self.data_var)
        process = process_of(problem)

        def along(mean: Tensor, x: Tensor, t: Time) -> Tensor:
            alpha, sigma = process.coefficients(t, x)
            variance = self.data_var * sigma**2 / (sigma**2 + alpha**2 * self.data_var)
            return alpha * variance * wrapped.back_projected(mean, x, t)

        return along


@dataclass(frozen=True, kw_only=True)
class MCGRestorer(Pushing):
    """x'' = step - zeta grad |A^+ (y - A mean)|^2, then the measured part is replaced by alpha y + sigma z.

    Args:
        scale: zeta = scale / |y - A mean|.

    Source: Chung et al. 2022, "Improving diffusion models for inverse problems using manifold constraints",
        arXiv:2206.00941, eq. 14 and 15.
    """

    noise: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("linear", "pinv")
    scale: float = 0.1

    def __post_init__(self) -> None:
        not_negative(self, "scale")

    def direction(self, problem: Problem, steps: int) -> Direction:
        """Return minus the gradient of the squared misfit, back-projected."""
        operator: Any = problem.operator

        def along(mean: Tensor, x: Tensor, t: Time) -> Tensor:
            residual = problem.y - operator(mean)
            size = residual.flatten(1).norm(dim=1).clamp(min=LEAST_NORM)
            zeta = (self.scale / size).reshape(-1, *[1] * (mean.ndim - 1))
            back = descent(lambda m: operator.pinv(problem.y - operator(m)).flatten(1).square().sum(1), mean)
            return zeta * back

        return along

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Replace the measured part after every step."""
        operator: Any = problem.operator
        return [StateFit(process_of(problem), operator, problem.y)]

    def check(self, problem: Problem) -> list[str]:
        """Warn of noise that will be reproduced."""
        if problem.noise_std == 0 and problem.noise_model is None:
            return []
        return [
            f"noise of {problem.noise_std:g} (model units) in y will be reproduced: this method takes y for exact; use "
            "mmps."
        ]


@dataclass(frozen=True, kw_only=True)
class PSLDRestorer(DPSRestorer):
    """Latent DPS and a pull to latents that decode and encode to themselves: gamma |z - E(A^T y + (I - A^T A) D(z))|.

    Args:
        gamma: Weight of the second term, relative to the first.

    Source: Rout et al. 2023, "Solving linear inverse problems provably via posterior sampling with latent diffusion
        models", arXiv:2307.00619, algorithm 2.
    """

    needs: ClassVar[tuple[str, ...]] = ("codec", "linear-pixels")
    experimental: ClassVar[bool] = True
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "gamma")

    def direction(self, problem: Problem, steps: int) -> Direction:
        """Return minus the gradient of both terms."""
        zeta = self.zeta(problem, steps)
        operator: Any = problem.operator

        def unglued(z: Tensor) -> Tensor:
            data = operator.decoded(z)
            glued = data + operator.pixels.adjoint(problem.y - operator.pixels(data))
            return (z - operator.encoded(glued)).flatten(1).norm(dim=1).clamp(min=LEAST_NORM)

        def along(mean: Tensor, x: Tensor, t: Time) -> Tensor:
            return zeta * (misfit_descent(problem, mean) + self.gamma * descent(unglued, mean))

        return along
