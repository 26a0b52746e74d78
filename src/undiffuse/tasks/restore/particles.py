"""TDS: a particle filter over the walk down. Exact as particles grow in number: the reference in few dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import AnyPosterior
from undiffuse.errors import PlanError
from undiffuse.guidance.measurement import PiGDM, posterior_variance
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import NoiseSource
from undiffuse.operators.base import LinearOperator
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time
from undiffuse.sampling.plan import Plan, Renoise, Stage
from undiffuse.sampling.solver import NOTHING, Memory, Solver
from undiffuse.tasks.restore.corrected import floor_warning, floored_number
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.walk import grid_of, process_of, walk


class Twist(PiGDM):
    """The plain answer, with the twist T(x_t) = log N(y; A mean, sy^2 + r^2 A A^T) in the extras, and beside it by how
    much the mean shifts along its gradient, (sigma^2 / alpha) grad T.

    T leaves out what all particles of an image share. Without `twisted` both are 0.
    """

    def __init__(
        self, denoiser: Denoiser, operator: LinearOperator, y: Tensor, noise_std: float, data_var: float, twisted: bool
    ) -> None:
        super().__init__(denoiser, operator, y, noise_std, data_var)
        self.twisted, self.needs_grad = twisted, twisted

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Answer without moving the mean."""
        if not self.twisted:
            post = self.denoiser(x, t, cond)
            zero = {"twist": x.new_zeros(len(x), dtype=torch.float64), "shift": torch.zeros_like(x)}
            return replace(post, extras={**post.extras, **zero})
        answer = self.denoiser.linearise(x, t, cond)
        back = self.back_projected(answer.post.mean, x, t)
        value = self.log_twist(answer.post.mean, back, posterior_variance(self.process, x, t, self.data_var))
        return replace(answer.post, extras={**answer.post.extras, "twist": value, "shift": answer.cov(back)})

    def log_twist(self, mean: Tensor, back: Tensor, variance: Any) -> Tensor:
        """Return -r^T (sy^2 + r^2 A A^T)^-1 r / 2 of the residual r, (B,), by (r - r^2 A u) / sy^2, u = `back`."""
        operator, y, std = self.measured(mean)
        residual = (y - operator(mean)).double()
        solved = residual - operator((variance * back).to(mean.dtype)).double()
        return -0.5 * (residual * solved).flatten(1).sum(1) / cast(float, std) ** 2

    def log_likelihood(self, x0: Tensor) -> Tensor:
        """Return log N(y; A x_0, sy^2) up to a constant, (B,)."""
        operator, y, std = self.measured(x0)
        return -0.5 * (y - operator(x0)).double().square().flatten(1).sum(1) / cast(float, std) ** 2


@dataclass(frozen=True, kw_only=True)
class TwistedStep(Solver):
    """Ancestral steps moved along the twist, with weights that make up for it, and systematic resampling.

    Args:
        process: Of the denoiser.
        twist: Says the likelihood of the last states.
        particles: Per image; an image's particles follow each other.
    """

    process: GaussianProcess
    twist: Twist
    particles: int

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise: always."""
        return True

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """One stage per step.

        Raises:
            PlanError: The grid has times per element, or does not end at clean data.
        """
        if grid.ndim != 1 or float(grid[-1]) != 0:
            raise PlanError("a particle filter takes times shared by the batch, down to 0.")
        times = grid.tolist()
        return Plan(tuple(Stage(step=k, t=t, s=s) for k, (t, s) in enumerate(pairwise(times))), grid)

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw normals of the state's shape, and two uniforms for resampling behind them, (B, D + 2)."""
        normal = noise.normal("step", entry.step, (x[0].numel(),), torch.float64)
        return torch.cat([normal, noise.uniform("corrector", entry.step, (2,))], dim=1)

    def step(self, stage: Stage, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Weigh, resample where few particles are left, and propose."""
        assert z is not None
        normal, uniform = z[:, :-2].reshape(x.shape).to(x.dtype), z[:, -2:]
        twist, mean, shift = post.extras["twist"], post.mean, post.extras["shift"]
        weights = twist if not memory.past else memory.past[0] + twist
        few = self._few(weights)
        index = torch.where(few, self._resampled(weights, uniform[:, 0]), torch.arange(len(x), device=x.device))
        x, mean, shift, twist = x[index], mean[index], shift[index], twist[index]
        weights = torch.where(few, 0.0, weights)
        if stage.s == 0:
            weights = weights + self.twist.log_likelihood(mean) - twist
            return mean[self._resampled(weights, uniform[:, 1])], NOTHING
        alpha, sigma = cast(tuple[float, float], self.process.coefficients(stage.t, x))
        c_x0, c_eps, std = cast(tuple[float, float, float], self.process.bridge(stage.t, stage.s, "ddim", 1.0))
        plain = c_x0 * mean + c_eps / sigma * (x - alpha * mean)
        push = (c_x0 - c_eps * alpha / sigma) * shift
        moved = plain + push + std * normal
        # log N(x'; plain, std) - log N(x'; plain + push, std)
        ratio = (std * normal).double().square() - (moved - plain).double().square()
        weights = weights - twist + ratio.flatten(1).sum(1) / (2 * std**2)
        return moved, Memory(past=(weights,))

    def _few(self, weights: Tensor) -> Tensor:
        """Whether less than half of an image's particles count, for each of its particles."""
        share = torch.softmax(weights.reshape(-1, self.particles), dim=1)
        effective = 1 / share.square().sum(1)
        return (effective < 0.5 * self.particles).repeat_interleave(self.particles)

    def _resampled(self, weights: Tensor, uniform: Tensor) -> Tensor:
        """Return which particle takes each place, by systematic resampling within each image."""
        share = torch.softmax(weights.reshape(-1, self.particles), dim=1)
        offset = uniform.reshape(-1, self.particles)[:, :1]
        places = (torch.arange(self.particles, device=weights.device) + offset) / self.particles
        chosen = torch.searchsorted(share.cumsum(1), places.to(share.dtype), right=True).clamp(max=self.particles - 1)
        first = torch.arange(len(share), device=weights.device)[:, None] * self.particles
        return (chosen + first).flatten()


@dataclass(frozen=True, kw_only=True)
class TDSRestorer(Restorer):
    """Twisted diffusion sampling.

    Args:
        particles: Per image.
        twisted: Move and weigh by the twist on the way; without, particles are draws of the prior that are weighed at
            the end, which is importance sampling.
        data_var: Variance of one element of the data; None: measured from the prior.
        grid: Spacing of the steps.

    Source: Wu et al. 2023, "Practical and asymptotically exact conditional sampling in diffusion models",
        arXiv:2306.17775, algorithm 1.
    """

    gradient: ClassVar[bool] = True
    couples: ClassVar[bool] = True
    uses_data_var: ClassVar[bool] = True
    particles: int = 128
    twisted: bool = True
    data_var: float | None = None
    grid: str = "t"

    def __post_init__(self) -> None:
        if self.particles < 2:
            raise ValueError(f"particles={self.particles} must be at least 2.")

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Filter, and return as many of each image's particles as it has rows."""
        each = math.ceil(self.particles / problem.samples)
        rows = torch.arange(problem.rows, device=problem.y.device).repeat_interleave(each)
        many = replace(
            problem,
            y=problem.y[rows],
            operator=problem.operator.take(rows),
            cond={name: value[rows] for name, value in problem.cond.items()},
        )
        count = each * problem.samples
        v = problem.data_var if self.data_var is None else self.data_var
        operator = cast(LinearOperator, many.operator)
        twist = Twist(many.denoiser, operator, many.y, floored_number(many), v, self.twisted)
        solver = TwistedStep(process=process_of(problem), twist=twist, particles=count)
        grid = grid_of(problem, steps, self.grid)
        found = walk(many, Repeated(noise, each), solver, grid, denoiser=twist, gradient=self.twisted)
        # Places are in order of the particles, so every each-th of them is a systematic sample again.
        return replace(found, x=found.x[each // 2 :: each], nfe=found.nfe * each, nfe_grad=found.nfe_grad * each)

    def check(self, problem: Problem) -> list[str]:
        """Say where the noise was floored, and where weights will collapse."""
        found = floor_warning(problem)
        size = math.prod(problem.shape)
        if size > 100:
            found.append(f"particle weights collapse in many dimensions (here {size}): few particles will differ.")
        return found


class Repeated:
    """A noise source whose every item stands for `count` rows with noise of their own.

    Args:
        source: Of the items.
        count: Rows per item.
    """

    def __init__(self, source: NoiseSource, count: int) -> None:
        self.source, self.count = source, count

    def normal(self, stream: str, step: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return standard normal numbers (B * count, *shape)."""
        return self.source.normal(stream, step, (self.count, *shape), dtype).flatten(0, 1)

    def uniform(self, stream: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Return float64 numbers in [0, 1), (B * count, *shape)."""
        return self.source.uniform(stream, step, (self.count, *shape)).flatten(0, 1)
