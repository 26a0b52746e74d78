"""Fit a grid to a model: the range of half log-SNR in which its answers turn, and how the steps fall off there.

Every schedule has more noise levels than a model has use for. Steps spent where the answer hardly changes are lost, and
at few steps that costs more than any order of a solver gains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from undiffuse.process.schedules import Schedule

_START = (-4.0, 3.5, 0.2)  # of pictures in unit variance, where most models are not far from their best
_STEPS = (0.8, 0.6, 0.25)
_SHRINK = 0.5
_LEAST_SPAN = 0.5  # of half log-SNR


@dataclass(frozen=True)
class LimitedGrid:
    """The grid "logsnr:LOW:HIGH:BEND" of `make_grid`, in numbers that read well."""

    low: float
    high: float
    bend: float = 0.0

    @property
    def name(self) -> str:
        """Its name."""
        return f"logsnr:{self.low:g}:{self.high:g}" + (f":{self.bend:g}" if self.bend else "")


def tune_grid(
    schedule: Schedule,
    error: Callable[[str], float],
    *,
    start: LimitedGrid | None = None,
    trials: int = 30,
    step: float = 1.0,
) -> LimitedGrid:
    """Return the limited grid with the smallest error found by a compass search of at most `trials` trials.

    One number after the other is moved up and down by its step, as long as the error falls; then all steps are halved.

    Args:
        schedule: Says which noise levels there are.
        error: Maps the name of a grid to an error; infinite where it cannot be run.
        start: Where to start; None: where models of pictures usually are.
        trials: How often `error` is called.
        step: Factor of the first steps of the search.
    """
    ends = schedule.half_logsnr(torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)).tolist()
    asked: dict[str, float] = {}

    def measure(point: list[float]) -> tuple[float, LimitedGrid]:
        grid = _inside(point, ends[0], ends[1])
        if grid.name not in asked:
            asked[grid.name] = error(grid.name)
        return asked[grid.name], grid

    point = list(_START) if start is None else [start.low, start.high, start.bend]
    best, grid = measure(point)
    size = step
    while len(asked) < trials and size > 0.1:
        improved = False
        for axis, sign in ((a, s) for a in range(3) for s in (1, -1)):
            if len(asked) >= trials:
                break
            moved: list[Any] = [grid.low, grid.high, grid.bend]
            moved[axis] += sign * size * _STEPS[axis]
            found, there = measure(moved)
            if found < best:
                best, grid, improved = found, there, True
        size = size if improved else size * _SHRINK
    return grid


def _inside(point: list[float], least: float, most: float) -> LimitedGrid:
    """Return the grid of a point, moved into the schedule's range and rounded inwards."""
    low = max(point[0], least + 0.01)
    high = min(max(point[1], low + _LEAST_SPAN), most - 0.01)
    low = min(low, high - _LEAST_SPAN / 2)
    return LimitedGrid(round(low, 2), round(high, 2), round(min(max(point[2], -0.9), 0.9), 2))
