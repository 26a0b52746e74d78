"""Time grids: float64 tensors of falling times, steps first.

A grid has shape (K+1,) for times shared by the batch, (K+1, 1, F) or (K+1, B, F) for times per frame or element,
or (K+1, B, 1) for times per item. Per element it never rises, and something moves in every row. It ends at 0, or
at `schedule.t_min` for those who want the last denoising step left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import gt
from typing import Literal, get_args

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.limits import check_counts
from undiffuse.noise import KeyedNoise
from undiffuse.process.grid_names import GridShape, check_grid_name, read_limits
from undiffuse.process.schedules import Schedule
from undiffuse.process.tables import TableSchedule

End = Literal["zero", "t_min"]


def make_grid(
    schedule: Schedule, steps: int, shape: GridShape | str = "logsnr", end: End | float = "zero", start: float = 1.0
) -> Tensor:
    """Return a grid of `steps` steps from `start` down to `end` (0, `t_min`, or a time), float64 (steps + 1,).

    Shapes: "t" uniform in t; "logsnr" (= "exponential") uniform in half log-SNR; "karras" uniform in
    (sigma/alpha)^(1/7); "quadratic" uniform in sqrt(t); "beta" the quantiles of Beta(0.6, 0.6); "linspace",
    "leading", "trailing" diffusers' integer spacings of a table schedule. Shapes that are laid out in noise level
    run between `t_max` and `t_min` (or `end`) and are followed by the step to 0 where that is the end; their first
    time is then moved to `start`.

    "logsnr:LOW:HIGH:BEND" runs between two values of half log-SNR and then to 0, as fits a model's own curves (see
    `undiffuse solvers --on`): LOW is noise, HIGH data, and BEND in (-1, 1), 0 where left out, makes the first steps
    1 + BEND times as long as even ones, and the last 1 - BEND times.

    Raises:
        ValueError: Unknown shape or end, limits that are none, an end outside [t_min, start), `steps` below 1, `start`
            outside (t_min, 1], or more integer steps than a table has entries.
    """
    if shape.startswith("logsnr:"):
        return _limited_grid(schedule, steps, shape, end, start)
    if shape not in get_args(GridShape):
        check_grid_name(shape)
        raise ValueError(f"grid {shape!r} is one of a solver, and here none is named; use a grid such as 'logsnr'.")
    if end not in get_args(End) and not (isinstance(end, float) and schedule.t_min <= end < start):
        raise ValueError(f"end={end!r} is unknown; choose 'zero', 't_min' or a time from {schedule.t_min} to {start}.")
    if not schedule.t_min < start <= 1:
        raise ValueError(f"start={start} must lie above t_min={schedule.t_min} and be at most 1.")
    if shape == "t" and end == "zero":
        return uniform_grid(steps, start)
    check_counts(steps=steps)
    if shape in ("linspace", "leading", "trailing"):
        return _table_grid(schedule, steps, shape, end, start)
    low = end if isinstance(end, float) else schedule.t_min
    points = _SHAPES[shape](schedule, steps if end == "zero" else steps + 1, min(start, schedule.t_max), low)
    points[0] = start
    points = torch.cat([points, points.new_zeros(1)]) if end == "zero" else points
    return check_grid(points)


def uniform_grid(steps: int, start: float = 1.0) -> Tensor:
    """Return times uniform in t from `start` to 0, float64 (steps + 1,); it needs no schedule.

    Raises:
        ValueError: `steps` below 1.
    """
    check_counts(steps=steps)
    return torch.linspace(start, 0.0, steps + 1, dtype=torch.float64)


def check_grid(grid: Tensor | Sequence[float], x_shape: tuple[int, ...] | None = None) -> Tensor:
    """Return `grid` as float64 if it is one, with the shape (B, ...) of the state it must fit.

    Raises:
        PlanError: Wrong shape, fewer than two rows, times outside [0, 1], a time that rises, or a row in which
            nothing moves; the message names the step and element.
    """
    grid = torch.as_tensor(grid, dtype=torch.float64)
    if grid.ndim not in (1, 3) or grid.shape[0] < 2:
        raise PlanError(
            f"a grid of shape {tuple(grid.shape)} was given; expected (K+1,), or (K+1, B or 1, F or 1), with K at "
            "least 1."
        )
    if grid.ndim == 1 and _falls(grid.tolist()):
        return grid
    low, high = torch.aminmax(grid)
    if not (low >= 0 and high <= 1):
        raise PlanError("the grid has times outside [0, 1] or NaN; 0 is clean data and 1 is noise.")
    falls = -grid.diff(dim=0)
    if bool((falls < 0).any()):
        step, *element = (falls < 0).nonzero()[0].tolist()
        where = f" of item {element[0]}, frame {element[1]}" if element else ""
        raise PlanError(
            f"the grid rises at step {step}{where}; times must fall, such as 1,0.6,0.2,0 (process.renoise goes up)."
        )
    still = (falls.reshape(len(falls), -1) == 0).all(dim=1)
    if bool(still.any()):
        raise PlanError(f"nothing moves in step {int(still.nonzero()[0, 0])} of the grid; drop that row.")
    if grid.ndim == 3 and x_shape is not None:
        _check_fit(grid, x_shape)
    return grid


def sync(times: Tensor, frames: int) -> Tensor:
    """Give every frame the same times: (K+1,) -> (K+1, 1, frames)."""
    return times[:, None, None].expand(-1, 1, frames).contiguous()


def known(times: Tensor, frames: int, index: Sequence[int], level: float = 0.0) -> Tensor:
    """Hold frames `index` at `level` times the others' time (0: exactly known, 1: free); (K+1, 1, frames).

    Raises:
        ValueError: A frame outside the clip, one named twice, or a level outside [0, 1].
    """
    if not 0 <= level <= 1:
        raise ValueError(f"level={level} is outside [0, 1]; 0 is a hard condition, 1 none.")
    chosen = [i + frames if i < 0 else i for i in index]
    if any(not 0 <= i < frames for i in chosen) or len(set(chosen)) < len(chosen):
        raise ValueError(f"known frames {list(index)} must be different frames of a clip of {frames}.")
    grid = sync(times, frames)
    grid[:, :, chosen] *= level
    return grid


def pyramid(steps: int, frames: int, lag: int) -> Tensor:
    """Frame f runs `lag` rows behind frame f - 1 (the last frame first where `lag` is negative); uniform in t.

    Returns (steps + |lag| (frames - 1) + 1, 1, frames). Source: Chen et al. 2024, "Diffusion forcing".
    """
    if steps < 1 or frames < 1:
        raise ValueError(f"steps={steps} and frames={frames} must be at least 1.")
    rows = torch.arange(steps + abs(lag) * (frames - 1) + 1, dtype=torch.float64)[:, None]
    delays = abs(lag) * torch.arange(frames, dtype=torch.float64)
    grid = (1 - (rows - delays) / steps).clamp(0, 1)
    return (grid.flip(1) if lag < 0 else grid)[:, None, :]


def autoregressive(steps: int, frames: int) -> Tensor:
    """One frame after the other: the pyramid with lag = steps."""
    return pyramid(steps, frames, steps)


def random_monotone(rows: int, frames: int, seed: int = 0) -> Tensor:
    """A random falling path per frame from 1 to 0 in `rows` steps, (rows + 1, 1, frames); for tests."""
    inner = KeyedNoise(seed, [0]).uniform("time", 0, (rows - 1, frames))[0].sort(dim=0, descending=True).values
    ends = inner.new_ones(1, frames)
    return torch.cat([ends, inner, 0 * ends])[:, None, :]


def _falls(times: list[float]) -> bool:
    """Whether times lie in [0, 1] and each is below the one before."""
    return times[0] <= 1 and times[-1] >= 0 and all(map(gt, times, times[1:]))


def _check_fit(grid: Tensor, x_shape: tuple[int, ...]) -> None:
    batch, frames = grid.shape[1:]
    if batch not in (1, x_shape[0]) or (frames != 1 and (len(x_shape) < 2 or frames != x_shape[1])):
        raise PlanError(
            f"the grid is for {batch} items of {frames} frames but the state has shape {tuple(x_shape)}; expected "
            f"(K+1, 1 or {x_shape[0]}, 1 or {x_shape[1] if len(x_shape) > 1 else 1})."
        )


# -- shapes of shared grids: `count` points from `start` down to `low` ------------------------------


def _uniform(schedule: Schedule, count: int, start: float, low: float) -> Tensor:
    return torch.linspace(start, low, count, dtype=torch.float64)


def _logsnr(schedule: Schedule, count: int, start: float, low: float) -> Tensor:
    first, last = _ends(schedule, start, low)
    return schedule.time(torch.linspace(first, last, count, dtype=torch.float64))


def _karras(schedule: Schedule, count: int, start: float, low: float, rho: float = 7.0) -> Tensor:
    first, last = (math.exp(-half / rho) for half in _ends(schedule, start, low))
    return schedule.time(-rho * torch.log(torch.linspace(first, last, count, dtype=torch.float64)))


def _quadratic(schedule: Schedule, count: int, start: float, low: float) -> Tensor:
    return torch.linspace(start**0.5, low**0.5, count, dtype=torch.float64) ** 2


def _beta(schedule: Schedule, count: int, start: float, low: float) -> Tensor:
    from scipy.stats import beta

    quantiles = torch.from_numpy(beta.ppf(torch.linspace(1, 0, count, dtype=torch.float64).numpy(), 0.6, 0.6))
    return low + (start - low) * quantiles


_SHAPES: dict[str, Callable[[Schedule, int, float, float], Tensor]] = {
    "t": _uniform,
    "logsnr": _logsnr,
    "exponential": _logsnr,
    "karras": _karras,
    "quadratic": _quadratic,
    "beta": _beta,
}


def _ends(schedule: Schedule, start: float, low: float) -> list[float]:
    return schedule.half_logsnr(torch.tensor([start, low], dtype=torch.float64)).tolist()


def _limited_grid(schedule: Schedule, steps: int, shape: str, end: End | float, start: float) -> Tensor:
    """The grid of "logsnr:LOW:HIGH:BEND"; a `start` below the time of LOW takes its place."""
    check_counts(steps=steps)
    if end != "zero":
        raise ValueError(f"grid {shape!r} has a last noise level of its own and ends at 0; end={end!r} has no place.")
    low, high, bend = _limits(shape, schedule)
    low = max(low, _ends(schedule, min(start, schedule.t_max), schedule.t_min)[0])
    even = torch.linspace(0, 1, steps, dtype=torch.float64)
    points = schedule.time(low + (high - low) * (even + bend * torch.sin(math.pi * even) / math.pi))
    points[0] = start
    return check_grid(torch.cat([points, points.new_zeros(1)]))


def _limits(shape: str, schedule: Schedule) -> tuple[float, float, float]:
    """Return LOW, HIGH and BEND."""
    low, high, bend = read_limits(shape)
    least, most = _ends(schedule, schedule.t_max, schedule.t_min)
    if not (least <= low < high <= most and abs(bend) < 1):
        raise ValueError(
            f"grid {shape!r} needs {least:.4g} <= LOW < HIGH <= {most:.4g}, the half log-SNRs of this schedule, and "
            "BEND in (-1, 1)."
        )
    return low, high, bend


def _table_grid(schedule: Schedule, steps: int, shape: str, end: End | float, start: float) -> Tensor:
    """diffusers' integer timesteps of a table of T entries, as times (i + 1) / T."""
    if not isinstance(schedule, TableSchedule):
        raise ValueError(
            f"grid {shape!r} counts entries of a table; schedule {schedule.name!r} has none. Use 't' or 'logsnr'."
        )
    if start != 1.0 or isinstance(end, float):
        raise ValueError(f"grid {shape!r} has its own first and last entry; start={start}, end={end!r} do not fit.")
    total = len(schedule.alphas_cumprod)
    count = steps if end == "zero" else steps + 1
    if count > total:
        raise ValueError(f"steps={steps} but this table has only {total} noise levels; use fewer steps.")
    if shape == "linspace":
        index = torch.linspace(0, total - 1, count, dtype=torch.float64).round().tolist()[::-1]
    elif shape == "leading":
        index = [k * (total // count) for k in reversed(range(count))]
    else:  # it starts at the top and never reaches entry 0 by itself, unlike the two above
        index = [round(total - k * (total / steps)) - 1 for k in range(steps)] + [0] * (count - steps)
    times = [(i + 1) / total for i in index]
    return check_grid([*times, 0.0] if end == "zero" else times)
