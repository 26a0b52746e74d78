"""DAPS: at each noise level answer the whole problem, then add the noise of the next level. Errors do not add up.

As published the answer is an ODE's end point moved by a short Langevin chain; moment-matched, it is a draw of the
Gaussian with the posterior's own mean and covariance, given the measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.linearised import Linearised
from undiffuse.guidance.covariance import MMPS
from undiffuse.guidance.measurement import posterior_variance
from undiffuse.guidance.push import descent
from undiffuse.limits import at_least_one, not_negative, positive
from undiffuse.noise import NoiseSource
from undiffuse.operators.base import LinearOperator
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import check_grid
from undiffuse.process.times import Time
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.ddim import DDIM, bridge_columns
from undiffuse.sampling.plan import AffineStage, Plan, Renoise, Stage
from undiffuse.sampling.solver import AffineSolver
from undiffuse.sampling.steps import Steps
from undiffuse.tasks.restore.corrected import floor_warning, floored, floored_number
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.walk import first_state, process_of, walk

_HIGHEST, _LOWEST, _INNER_LOWEST, _RHO = 100.0, 0.1, 0.01, 7.0
_CHAIN = 1_000_000  # more than the steps of any chain, so that every Langevin step has noise of its own


@dataclass(frozen=True, kw_only=True)
class MomentMatchedDAPS(Restorer):
    """Draws x_0 from N(mean, V) given y at each level, then the next level's state from it; V = (sigma^2 / alpha) J.

    Exact for Gaussian data, whatever the number of levels. The draw is e_0 + V A^T (A V A^T + sy^2)^-1 (y - e_1 -
    A(mean + e_0)) with e_0 ~ N(0, V) and e_1 ~ N(0, sy^2). Draws of N(0, V) need an analytic prior; for others r^2 I
    takes the place of V, with r^2 = v s^2 / (s^2 + v), whose spread is somewhat too wide.

    Args:
        highest, lowest: First and last level sigma / alpha.
        iterations: Of the linear solver where V is the prior's own.
        covariance: "exact" (needs a prior that can draw), "isotropic" (no gradients), or "auto".
    """

    default_steps: ClassVar[int] = 20
    uses_data_var: ClassVar[bool] = True
    highest: float = _HIGHEST
    lowest: float = _LOWEST
    iterations: int = 64
    covariance: Literal["auto", "exact", "isotropic"] = "auto"

    def __post_init__(self) -> None:
        positive(self, "highest", "lowest")
        at_least_one(self, "iterations")

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down the levels with fresh noise at each."""
        process = process_of(problem)
        times = level_times(process, steps, max(self.highest, self.lowest), self.lowest, problem.t_start)
        grid = check_grid([*times, 0.0])
        drawing = ConditionalDraw(problem, noise, grid, self.iterations, self.covariance)
        return walk(problem, noise, DDIM(eta=1.0, rule="mixed"), grid, denoiser=drawing)

    def check(self, problem: Problem) -> list[str]:
        """Say which covariance is used."""
        found = floor_warning(problem)
        if self.covariance == "auto" and not draws_exactly(problem.denoiser):
            found.append("this prior cannot draw from its posterior's Gaussian, so that is taken as r^2 I: too wide.")
        return found


class ConditionalDraw(MMPS):
    """A denoiser whose answer is a draw of x_0 given x_t and y, by matched moments; see `MomentMatchedDAPS`.

    Args:
        problem: The measurement and the prior.
        noise: Of the draws; the level's place in the grid is their step.
        grid: Times at which it will be asked.
        iterations: Of the linear solver.
        covariance: See `MomentMatchedDAPS`.
    """

    def __init__(
        self,
        problem: Problem,
        noise: NoiseSource,
        grid: Tensor,
        iterations: int,
        covariance: Literal["auto", "exact", "isotropic"] = "auto",
    ) -> None:
        operator: Any = problem.operator
        exact = covariance == "exact" or (covariance == "auto" and draws_exactly(problem.denoiser))
        std = floored(problem) if exact else floored_number(problem)  # `prox` knows one number
        super().__init__(problem.denoiser, operator, problem.y, std, iterations)
        self.noise, self.levels = noise, {t: k for k, t in enumerate(grid.tolist())}
        self.data_var = problem.data_var
        self.exact = exact
        self.needs_grad = False

    def posterior(self, x: Tensor, t: Time, cond: Any) -> Any:
        """Draw an answer."""
        if isinstance(t, Tensor):
            raise ValueError("moment-matched DAPS takes times shared by the batch; use a grid without items.")
        if self.exact:
            return super().posterior(x, t, cond)
        post = self.denoiser(x, t, cond)
        mean = post.mean + self._isotropic(post.mean, x, t)
        return cast(Any, self.process.with_mean(post, x, t, mean, "new")).replace(raw=None)

    def shift(self, answer: Linearised, x: Tensor, t: Time) -> Tensor:
        """Return a draw of x_0 - mean."""
        step = self.levels[cast(float, t)]
        if answer.draw is None:
            raise ValueError("covariance='exact' needs a prior that draws from its posterior's Gaussian.")
        operator, y, std = self.measured(x)
        linear = cast(LinearOperator, operator)
        spread = answer.draw(self.noise, step)
        return spread + self.gain(linear, answer, std, self._residual(linear, y, std, answer.post.mean + spread, step))

    def _isotropic(self, mean: Tensor, x: Tensor, t: float) -> Tensor:
        step = self.levels[t]
        operator, y, std = self.measured(x)
        linear = cast(LinearOperator, operator)
        variance = cast(float, posterior_variance(self.process, x, t, self.data_var))
        spread = variance**0.5 * self.noise.normal("probe", step, tuple(x.shape[1:]), x.dtype)
        residual = self._residual(linear, y, std, mean + spread, step)
        return spread + linear.prox(torch.zeros_like(mean), residual, std**2 / variance)

    def _residual(self, operator: LinearOperator, y: Tensor, std: float | Tensor, x0: Tensor, step: int) -> Tensor:
        e1 = std * self.noise.normal("corrector", step, tuple(y.shape[1:]), y.dtype)
        return y - e1 - operator(x0)


@dataclass(frozen=True, kw_only=True)
class LangevinDAPS(Restorer):
    """DAPS as published: an ODE from each level to the data, then a short Langevin chain, then the next level's noise.

    The chain is far from equilibrium, and that is why it works: the ODE's end point is a sample already.

    Args:
        highest, lowest: First and last level sigma / alpha.
        inner: Euler steps of the ODE.
        chain: Langevin steps per level.
        beta: Standard deviation that the chain takes the measurement's noise for, model units.
        rate: Step length of the chain at the first level; it falls to a hundredth of it, linearly.

    Source: Zhang et al. 2024, "Improving diffusion inverse problem solving with decoupled noise annealing",
        arXiv:2407.01521, algorithm 1.
    """

    needs: ClassVar[tuple[str, ...]] = ("differentiable",)
    noise: ClassVar[bool] = False
    highest: float = _HIGHEST
    lowest: float = _LOWEST
    inner: int = 5
    chain: int = 100
    beta: float = 0.01
    rate: float = 1e-4

    def __post_init__(self) -> None:
        positive(self, "highest", "lowest", "beta", "rate")
        at_least_one(self, "inner")
        not_negative(self, "chain")

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down the levels."""
        process = process_of(problem)
        times = level_times(process, steps, self.highest, self.lowest, problem.t_start)
        grid = check_grid([*times, 0.0])
        solver = Decoupled(inner=self.inner)
        chain = LangevinChain(process, problem, times, self)
        start = first_state(problem, noise, times[0])
        return walk(problem, noise, solver, grid, constraints=[chain], start=start)


@dataclass(frozen=True, kw_only=True)
class Decoupled(AffineSolver):
    """From each time of the grid by `inner` Euler steps in sigma / alpha to clean data, then up to the next time.

    Args:
        inner: Steps of the ODE, at levels spaced as EDM's, the last of them to 0.
    """

    inner: int = 5

    @property
    def stochastic(self) -> bool:
        """Whether noise is drawn: always."""
        return True

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """A group of stages for each level; the whole group is one step, and the constraints see its end."""
        entries: list[Stage | Renoise] = []
        times = grid.tolist()
        for level, (t, s) in enumerate(pairwise(times)):
            lowest = min(_INNER_LOWEST, 0.5 * _level(process, t))
            inner = level_times(process, self.inner, _level(process, t), lowest, t)
            inner[0] = t
            steps = Steps(process, check_grid([*inner, 0.0]))
            columns = bridge_columns(steps, "ddim", 0.0)
            state, mean = columns.state.tolist(), columns.mean.tolist()
            state[-1], mean[-1] = 0.0, 1.0
            for i, (a, b) in enumerate(zip(state, mean, strict=True)):
                at, to = float(steps.grid[i]), float(steps.grid[i + 1])
                closes = i == self.inner - 1
                entries.append(AffineStage(step=level, t=at, s=to, closes=closes, state=a, means=((b,),)))
            if s > 0:
                scale, std = process.forward_kernel(0.0, s)
                entries.append(Renoise(step=level, t=0.0, s=s, scale=scale, std=std))
        return Plan(tuple(entries), grid)


class LangevinChain(Constraint):
    """At clean data: a Langevin chain for the data term and N(x_0 of the ODE, sigma_j^2).

    Args:
        process: Of the denoiser.
        problem: The measurement.
        times: Of the levels.
        options: Of the chain.
    """

    def __init__(self, process: GaussianProcess, problem: Problem, times: list[float], options: LangevinDAPS) -> None:
        self.process, self.problem, self.options = process, problem, options
        self.levels = [_level(process, t) for t in times]

    def leave(self, x: Tensor, s: Time, k: int, noise: NoiseSource) -> tuple[Tensor, bool]:
        """Run the chain of level `k`."""
        options, problem = self.options, self.problem
        rate = options.rate * (1 - 0.99 * k / len(self.levels))
        centre, shape = x, tuple(x.shape[1:])
        y, data = problem.y.to(x.dtype), 1 / (2 * options.beta**2)
        for m in range(options.chain):
            if problem.operator.linear:
                linear = cast(LinearOperator, problem.operator)
                pull = 2 * data * linear.adjoint(y - linear(x))
            else:
                pull = descent(lambda v: data * (y - problem.operator(v)).flatten(1).square().sum(1), x)
            pull = pull - (x - centre) / self.levels[k] ** 2
            x = x + rate * pull + (2 * rate) ** 0.5 * noise.normal("langevin", k * _CHAIN + m, shape, x.dtype)
        return x, True


def level_times(process: GaussianProcess, count: int, highest: float, lowest: float, start: float) -> list[float]:
    """Return the times of `count` levels sigma / alpha from `highest` to `lowest`, even in their seventh root.

    They stay within what the schedule has, and at or below `start`.
    """
    schedule = process.schedule
    ends = schedule.half_logsnr(torch.tensor([min(start, schedule.t_max), schedule.t_min], dtype=torch.float64))
    first = min(highest, float(torch.exp(-ends[0])))
    last = min(max(lowest, float(torch.exp(-ends[1]))), first)
    even = torch.linspace(first ** (1 / _RHO), last ** (1 / _RHO), count, dtype=torch.float64)
    return [float(t) for t in schedule.time(-_RHO * even.log())]


def draws_exactly(denoiser: Denoiser) -> bool:
    """Whether a prior draws from the Gaussian of its posterior's moments."""
    from undiffuse.denoisers.mixture import MixtureDenoiser

    return isinstance(denoiser, MixtureDenoiser)


def _level(process: GaussianProcess, t: float) -> float:
    alpha, sigma = process.schedule.levels(torch.tensor(t, dtype=torch.float64))
    return float(sigma / alpha)
