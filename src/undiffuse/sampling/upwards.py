"""Walking a grid upwards, from data to noise, with the solvers that walk it down.

A deterministic step is an approximation of the probability-flow ODE between two times, whichever of them is the later
one; its coefficients hold for steps of either sign. A stochastic step does not turn round: noise that it took from the
data cannot be drawn again, and the one stochastic way up is the forward kernel (`plan.Renoise`, `process.renoise`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import check_grid
from undiffuse.sampling.plan import Plan
from undiffuse.sampling.solver import Solver


def upward_plan(solver: Solver, process: object, grid: Tensor | None) -> Plan:
    """Return the plan that walks the falling `grid` (K+1,) from its last time to its first.

    Raises:
        PlanError: The solver draws noise or its own times, the process is not Gaussian, or the grid is missing, differs
            within the batch, or has an end at which the state holds nothing but data or nothing but noise.
    """
    name = type(solver).__name__
    if not isinstance(process, GaussianProcess) or solver.discrete:
        raise PlanError("only Gaussian processes have a way from data to noise that can be walked back.")
    if solver.stochastic:
        raise PlanError(
            f"{name} draws noise, which cannot be walked back; encode with a deterministic solver such as heun, or add "
            "noise with process.renoise."
        )
    if solver.draws_times:
        raise PlanError(f"{name} chooses its own times, and only downwards; walk up a grid with heun, for example.")
    if grid is None:
        raise PlanError(f"{name} needs a grid to walk up; make one with make_grid(schedule, steps, end='t_min').")
    times = check_grid(grid)
    if times.ndim != 1:
        raise PlanError(
            f"the grid has shape {tuple(times.shape)}; the way up takes one time for the whole batch, (K+1,)."
        )
    first, last = float(times[0]), float(times[-1])
    if last == 0:
        raise PlanError(
            "the grid ends at 0, where a state has no noise to follow upwards; end it at "
            f"t_min={process.schedule.t_min}: make_grid(schedule, steps, end='t_min')."
        )
    if float(process.schedule.alpha(torch.tensor(first, dtype=torch.float64))) == 0:
        raise PlanError(
            f"the grid starts at {first}, where alpha is 0 and a state holds no data; start it at "
            f"t_max={process.schedule.t_max}."
        )
    return solver.plan(process, times.flip(0))
