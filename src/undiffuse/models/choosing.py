"""Which solver, grid and shape of states a call of `Model.sample` gets, where it says so and where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grid_names import PUBLISHED
from undiffuse.process.grids import uniform_grid
from undiffuse.sampling.flow_map import Jumps, default_solver, jump_grid
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.solver import Solver

if TYPE_CHECKING:
    from undiffuse.models.model import Model
    from undiffuse.sampling.diffusers_setup import DiffusersSetup

_STEPS = 25


def solver_of(
    model: Model, solver: str | Solver | None, steps: int | None, options: dict[str, Any], own: DiffusersSetup | None
) -> Solver:
    """Return the solver that a call names, else that of the model.

    Args:
        model: The model.
        solver: Of the call.
        steps: Of the call.
        options: Of a solver given by name.
        own: The scheduler that came with the model.

    Raises:
        ValueError: An unknown name, or options for a solver that is built already.
    """
    if isinstance(solver, Solver):
        if options:
            raise ValueError("solver_options belong to a solver given by name; this one is built already.")
        return solver
    name = solver or model.defaults.get("solver")
    if name is None and own is not None and not options:
        return own.solver
    name = name or _usual_solver(model)
    if name == "first-hitting":
        options = {"steps": _count(model, steps), **options}
    return make_solver(name, **options)


def grid_of(
    model: Model,
    solver: Solver,
    grid: str | Tensor | Sequence[float] | None,
    steps: int | None,
    own: DiffusersSetup | None,
) -> Tensor | None:
    """Return the times to walk; None for solvers that draw their own. Arguments as those of `solver_of`.

    Raises:
        ValueError: A grid or a number of steps for what has its own, an unknown spacing, or what is no list of times.
    """
    process = model.process
    grid = grid if grid is None or isinstance(grid, (str, Tensor)) else _times(grid)
    if grid is not None and solver.draws_times and (solver.discrete or not isinstance(grid, Tensor)):
        raise ValueError(f"{type(solver).__name__} draws its own times; leave the grid out.")
    if isinstance(grid, Tensor):
        if steps is not None:
            raise ValueError(f"steps={steps} was given beside a grid, which has its own; leave one out.")
        return grid
    if solver.draws_times:
        _check_steps(solver, steps)
        return None
    count = _count(model, steps)
    shape: Any = grid or model.defaults.get("grid")
    if shape == PUBLISHED and grid is None and not solver.grid:
        shape = None  # the default is another solver's
    if isinstance(solver, Jumps) and isinstance(model.module, FlowMap):
        if shape == PUBLISHED:
            raise ValueError("a flow map jumps and has no published grid; use grid='t'.")
        return jump_grid(model.module, 1 if count is None else count, shape or "t")
    if shape is None and own is not None:
        return own.grid(_STEPS if count is None else count)
    if isinstance(process, GaussianProcess):
        return solver.named_grid(process.schedule, _STEPS if count is None else count, shape or "logsnr")
    if grid not in (None, "t"):
        raise ValueError(f"grid={grid!r} is a spacing in noise level, which tokens do not have; leave it out.")
    return uniform_grid(model.state_spec.shape[0] if count is None else count)


def shape_of(model: Model, size: Sequence[int] | None) -> tuple[int, ...]:
    """Return the shape of one state for images of `size` (height, width) in pixels; that of the spec for None.

    Raises:
        ValueError: The model makes no images, or none of that size.
    """
    spec, shape = model.spec, model.state_spec.shape
    if size is None:
        return shape
    if spec.kind != "image":
        raise ValueError(f"size={tuple(size)} is for images; this model makes {spec.noun}. Leave it out.")
    if model.state_spec.is_discrete:
        raise ValueError(f"size={tuple(size)}, but a model of tokens makes pictures of one size; leave it out.")
    factor = max(1, spec.shape[-1] // shape[-1])  # pixels per latent
    options = getattr(getattr(model.module, "backbone", None), "options", None)
    stride = factor * getattr(options, "patch", 1)
    if len(size) != 2 or any(side < 1 or side % stride for side in size):
        known = f" The model was trained on {_sizes(spec.sizes)}." if spec.sizes else ""
        raise ValueError(
            f"size={tuple(size)} does not fit; give height and width, each a multiple of {stride} pixels.{known}"
        )
    return (shape[0], size[0] // factor, size[1] // factor)


def _times(grid: Any) -> Tensor:
    try:
        return torch.as_tensor(grid, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"grid={grid!r} is neither the name of a spacing nor times; give 'logsnr', or falling times such as "
            f"[1.0, 0.5, 0.0]."
        ) from None


def _usual_solver(model: Model) -> str:
    if isinstance(model.module, FlowMap):
        return default_solver(model.module)
    if model.module.causal:
        return "left-to-right"
    if isinstance(model.process, CategoricalProcess):
        return "first-hitting" if model.process.kind == "absorbing" else "ancestral"
    return "dpm++2m"


def _check_steps(solver: Solver, steps: int | None) -> None:
    """Refuse a number of steps that a solver with times of its own would not take.

    Raises:
        ValueError: It has none, or another one.
    """
    own = getattr(solver, "steps", None)
    if steps is None or steps == own:
        return
    name = type(solver).__name__
    if not solver.discrete:
        raise ValueError(f"steps={steps}, but {name} chooses its own; leave steps out and set rtol.")
    if hasattr(solver, "steps"):
        raise ValueError(f"steps={steps}, but this {name} was built with steps={own}; set it in one place.")
    raise ValueError(f"steps={steps}, but {name} takes one for each token; leave steps out.")


def _count(model: Model, steps: int | None) -> int | None:
    return steps if steps is not None else model.defaults.get("steps")


def _sizes(sizes: Sequence[tuple[int, int]], most: int = 8) -> str:
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:most])
    return shown + (", ..." if len(sizes) > most else "")
