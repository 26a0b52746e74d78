"""The walk that restorers share: the one sampling loop, begun from noise or from a rough answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.loop import sample
from undiffuse.sampling.solver import Solver
from undiffuse.tasks.restore.restorer import Problem, Solution


def process_of(problem: Problem) -> GaussianProcess:
    """Return the Gaussian process of a problem's prior."""
    return cast(GaussianProcess, problem.denoiser.process)


def grid_of(problem: Problem, steps: int, shape: str) -> Tensor:
    """Return a grid of `steps` steps from the problem's start to clean data.

    "clean-end" is DiffPIR's: t_j = 1 - sqrt(j / N), and one step more from `t_min`, so that its steps are shortest
    where little noise is left.
    """
    schedule = process_of(problem).schedule
    if shape == "clean-end":
        even = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        times = problem.t_start * (1 - even.sqrt()).clamp(min=0)
        times[-1] = schedule.t_min if steps > 1 else problem.t_start
        times = torch.cat([times[times >= schedule.t_min], times.new_zeros(1)])
        return times[torch.cat([times.new_ones(1, dtype=torch.bool), times.diff() < 0])]
    return make_grid(schedule, steps, shape, start=problem.t_start)


def first_state(problem: Problem, noise: NoiseSource, t: float) -> Tensor | None:
    """Return A^+ y with the noise of time `t`, where the problem starts from a rough answer; else None."""
    if problem.t_start >= 1:
        return None
    rough = problem.operator.guess(problem.y.to(problem.dtype)) if problem.x_init is None else problem.x_init
    return process_of(problem).corrupt(rough, t, noise.normal("init", 0, problem.shape, problem.dtype))


def walk(
    problem: Problem,
    noise: NoiseSource,
    solver: Solver,
    grid: Tensor,
    *,
    denoiser: Denoiser | None = None,
    constraints: Sequence[Constraint] = (),
    start: Tensor | None = None,
    gradient: bool = False,
) -> Solution:
    """Sample with the problem's prior, or with `denoiser` that wraps it.

    Args:
        start: First state; None: noise, or a rough answer where the problem says so.
        gradient: Whether every evaluation is differentiated, for the count.
    """
    progress = problem.progress
    result = sample(
        problem.denoiser if denoiser is None else denoiser,
        noise=noise,
        shape=problem.shape,
        solver=solver,
        grid=grid,
        cond=problem.cond or None,
        constraints=constraints,
        start=first_state(problem, noise, float(grid[0])) if start is None else start,
        dtype=problem.dtype,
        callback=None if progress is None else lambda seen: progress(),
    )
    return Solution(result.x, result.nfe, result.nfe if gradient else 0)
