"""The noise behind an item, and the item behind a noise: the probability-flow ODE walked both ways.

Encoding is sampling up a grid: the same solvers, steps and loop. So decoding on the same grid gives the item back, up
to an error that falls with the steps at the solver's order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.subject import Subject, Wrap, subject_of
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.limits import check_counts
from undiffuse.noise import KeyedNoise
from undiffuse.process.grids import GridShape, check_grid, make_grid
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.solver import Solver

_SOLVER, _STEPS = "heun", 64
_GRID: GridShape = "logsnr"
_BATCH = 256


@torch.no_grad()
def encode_noise(
    model: Any,
    x: Tensor,
    *,
    solver: str | Solver = _SOLVER,
    steps: int = _STEPS,
    grid: GridShape | Tensor = _GRID,
    t_min: float | None = None,
    cond: dict[str, Any] | None = None,
    wrap: Wrap | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = _BATCH,
    listener: Listener = silent,
) -> Tensor:
    """Return the standard noise (n, *) from which the deterministic sampler makes `x`.

    `x` is taken for the state at t_min. The noise is the state at t_max over sigma, so that under a perfect model it
    has the law N(0, I) of what `Model.sample` starts from.

    Args:
        model: A `Model`, or a `Denoiser`, whose data are states in model units.
        x: Items in data units (n, *shape).
        solver: Any deterministic solver, by name or built.
        steps: Number of steps.
        grid: Name of a spacing, or falling times that do not end at 0.
        t_min: Time that stands for the data; None: the schedule's own.
        cond: Conditions, as in `Model.sample`.
        wrap: Applied to the denoiser: guidance, for example. Decode with the same.
        dtype: Of the states; None: that of float64 data under a bare denoiser, else float32.
        batch_size: Items computed at once.
        listener: Hears about progress.

    Raises:
        ValueError: A flow map, tokens, data or conditions that do not fit, or unknown names.
        PlanError: A stochastic solver, or a grid that cannot be walked upwards.
    """
    subject = subject_of(model, wrap, task="encoding")
    data = subject.check(x)
    states = subject.encode(data).to(_dtype(subject, data, dtype))
    times, rule = _grid(subject, grid, steps, t_min), _solver(solver)
    walked = _walk(subject, states, rule, times, cond, batch_size, listener, up=True)
    return walked / _sigma(subject, times)


@torch.no_grad()
def decode_noise(
    model: Any,
    z: Tensor,
    *,
    solver: str | Solver = _SOLVER,
    steps: int = _STEPS,
    grid: GridShape | Tensor = _GRID,
    t_min: float | None = None,
    cond: dict[str, Any] | None = None,
    wrap: Wrap | None = None,
    dtype: torch.dtype | None = None,
    batch_size: int = _BATCH,
    listener: Listener = silent,
) -> Tensor:
    """Return the items in data units (n, *shape) that the deterministic sampler makes of standard noise `z` (n, *).

    The inverse of `encode_noise` with the same solver, grid, conditions and wrappers; arguments and errors as there.
    The last state is that at t_min, without the last step to 0 that sampling takes.
    """
    subject = subject_of(model, wrap, task="decoding")
    if z.ndim < 2 or not z.is_floating_point() or not bool(z.isfinite().all()):
        raise ValueError(f"the noise is {z.dtype} of shape {tuple(z.shape)}; expected finite normals (n, *).")
    expected = None if subject.model is None else subject.model.state_spec.shape
    if expected is not None and tuple(z.shape[1:]) != tuple(expected):
        raise ValueError(f"the noise has items of shape {tuple(z.shape[1:])}; the model's states are {expected}.")
    times, rule = _grid(subject, grid, steps, t_min), _solver(solver)
    states = z.to(subject.device, _dtype(subject, z, dtype)) * _sigma(subject, times)
    return subject.decode(_walk(subject, states, rule, times, cond, batch_size, listener, up=False))


def _walk(
    subject: Subject,
    states: Tensor,
    solver: Solver,
    times: Tensor,
    cond: dict[str, Any] | None,
    batch_size: int,
    listener: Listener,
    up: bool,
) -> Tensor:
    check_counts(batch_size=batch_size)
    if solver.stochastic:
        raise ValueError(
            f"{type(solver).__name__} draws noise, which leaves no way back; use heun, ddim, or another without noise."
        )
    rows, task, done = subject.conditions(cond, len(states)), "encode" if up else "decode", []
    listener(Started(task, len(states), "item"))
    for low in range(0, len(states), batch_size):
        batch = states[low : low + batch_size]
        result = sample(
            subject.denoiser,
            noise=KeyedNoise(0, range(len(batch)), batch.device),
            shape=tuple(batch.shape[1:]),
            solver=solver,
            grid=times,
            cond=rows.rows(low, low + len(batch)) or None,
            start=batch,
            dtype=batch.dtype,
            up=up,
        )
        done.append(result.x)
        listener(Advanced(task, low + len(batch)))
    listener(Finished(task))
    return torch.cat(done)


def _solver(solver: str | Solver) -> Solver:
    return make_solver(solver) if isinstance(solver, str) else solver


def _grid(subject: Subject, grid: GridShape | Tensor, steps: int, t_min: float | None) -> Tensor:
    """Return falling times from t_max, where alpha is not 0, to `t_min`."""
    if isinstance(grid, Tensor):
        return check_grid(grid)
    schedule = subject.process.schedule
    low = schedule.t_min if t_min is None else float(t_min)
    return make_grid(schedule, steps, grid, low, schedule.t_max)


def _sigma(subject: Subject, times: Tensor) -> float:
    return float(subject.process.schedule.sigma(times.reshape(-1)[:1]))


def _dtype(subject: Subject, data: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    keep = data.dtype == torch.float64 and subject.model is None
    return dtype or (torch.float64 if keep else torch.float32)
