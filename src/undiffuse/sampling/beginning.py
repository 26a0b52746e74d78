"""What a run begins with: a solver that fits, the first state, and the plan of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import check_grid
from undiffuse.process.times import Time, align
from undiffuse.sampling.constraints import Constraint, Replacement, enter_all
from undiffuse.sampling.left_to_right import LeftToRight
from undiffuse.sampling.plan import Plan, row_time
from undiffuse.sampling.solver import Solver
from undiffuse.sampling.upwards import upward_plan


def check_solver(denoiser: Denoiser, solver: Solver, constraints: Sequence[Constraint]) -> None:
    """Refuse a solver that does not fit what it walks.

    Raises:
        PlanError: It does not.
    """
    _check_source(denoiser.process, solver)
    _check_reading(denoiser, solver)
    _check_counting(solver, constraints)


def _check_source(process: Any, solver: Solver) -> None:
    """Refuse fresh noise where the noise that a denoiser knows is paired with data."""
    if getattr(process, "source", "gaussian") == "data" and solver.stochastic:
        raise PlanError(
            "this model's noise is paired with its data (source='data'), so its paths have no stochastic form; use a "
            "deterministic solver such as dpm++2m or euler."
        )


def _check_reading(denoiser: Denoiser, solver: Solver) -> None:
    """Refuse to open masks in another order than the one that the network knows."""
    if denoiser.causal != isinstance(solver, LeftToRight):
        raise PlanError(
            "this network reads from left to right; use solver=left-to-right."
            if denoiser.causal
            else "solver=left-to-right needs a network with a causal mask (model.causal=true); use another solver."
        )


def _check_counting(solver: Solver, constraints: Sequence[Constraint]) -> None:
    """Refuse to count masks once where known tokens are masked anew in every step."""
    if solver.reads_start and any(isinstance(constraint, Replacement) for constraint in constraints):
        raise PlanError(
            f"{type(solver).__name__} counts the masks of the start, and Replacement masks known tokens anew in every "
            "step; use solver=ancestral with it, or Known, which is exact where the process is absorbing."
        )


def first_plan(
    process: GaussianProcess | CategoricalProcess,
    solver: Solver,
    grid: Tensor | None,
    x: Tensor,
    constraints: Sequence[Constraint],
    noise: NoiseSource,
    *,
    is_state: bool,
    up: bool,
) -> tuple[Plan, Tensor]:
    """Return the plan and the state that it begins with; without `is_state`, x is noise so far."""
    if up:
        plan: Plan | None = upward_plan(solver, process, grid)
    else:
        plan = None if grid is None or solver.reads_start else solver.prepare(process, grid, x, noise)
    known_grid = plan.grid if plan is not None else None if grid is None else check_grid(grid)
    first = 1.0 if known_grid is None else row_time(known_grid[0])
    if not is_state:
        x = first_state(process, x, first, constraints)
    if plan is None:  # a solver that draws its own times, or counts masks, looks at what is known
        x = enter_all(constraints, x, first, 0, noise)
        plan = solver.prepare(process, grid, x, noise)
    return plan.to(x), x


def drawn(
    process: GaussianProcess | CategoricalProcess, noise: NoiseSource, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return the random numbers that the first state is made of, in its shape."""
    gaussian = isinstance(process, GaussianProcess)
    return noise.normal("init", 0, shape, dtype) if gaussian else noise.uniform("init", 0, shape)


def first_state(
    process: GaussianProcess | CategoricalProcess, numbers: Tensor, first: Time, constraints: Sequence[Constraint]
) -> Tensor:
    """Return the state of pure noise at the times `first`."""
    given = [constraint.known for constraint in constraints if constraint.known is not None]
    known = torch.stack(torch.broadcast_tensors(*given)).any(0) if given else None
    if isinstance(process, GaussianProcess):
        try:
            return process.prior(numbers, first, known)
        except ValueError as error:
            raise PlanError(
                f"{error} Let the grid begin at 1, or give start, the noisy data there (Python)."
            ) from error
    begun = torch.as_tensor(first) < 1
    if bool(begun.any()) and (known is None or bool((align(begun.to(known.device), numbers) & ~known).any())):
        raise PlanError(
            "the grid starts below t = 1, where tokens are partly data; let it begin at 1, or give start, the noisy "
            "tokens (Python)."
        )
    return process.prior(numbers)


def check_start(
    process: GaussianProcess | CategoricalProcess, start: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return a given state in the dtype of the run."""
    if tuple(start.shape[1:]) != tuple(shape):
        raise PlanError(f"start has item shape {tuple(start.shape[1:])}; the model's items are {tuple(shape)}.")
    return start if isinstance(process, CategoricalProcess) else start.to(dtype)
