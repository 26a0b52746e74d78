"""Where a model is asked: times with what they stand for, and the order in which they are visited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.schedules import Schedule
from undiffuse.process.tables import TableSchedule

TARGETS = ("eps", "x0", "v", "velocity")
"""Forms of a denoising error: of the noise, the data, the angle prediction v, and the flow's velocity dx/dt."""


@dataclass(frozen=True, kw_only=True)
class TimeGrid:
    """Times at which errors are measured.

    Args:
        times: Rising, float64 (n,).
        half_logsnr: log(alpha / sigma) there, float64 (n,). Of tokens log-odds of being kept, halved.
        widths: n times the stretch of half log-SNR that each stands for, float64 (n,), so that the mean of
            width * |eps error|^2 is the integral of the evidence bound. Ones for tokens.
        forms: Target -> what an error of x_0 is multiplied with to be an error of that, float64 (n,).
    """

    times: Tensor
    half_logsnr: Tensor
    widths: Tensor
    forms: dict[str, Tensor] = field(default_factory=dict)


def gaussian_grid(
    process: GaussianProcess,
    n: int | Sequence[float] | Tensor,
    spacing: str = "t",
    between: tuple[float, float] | None = None,
) -> TimeGrid:
    """Return `n` times in the middle of equal cells of t or of log-SNR, or those that are given.

    A model of T discrete steps is asked at these alone.

    Args:
        process: Says what the times mean.
        n: How many; or the times themselves, rising.
        spacing: "t", or "logsnr" from the schedule's t_max to its t_min.
        between: Lowest and highest time of the cells; None: 0 and 1.

    Raises:
        ValueError: `n` below 1 or above the model's steps, times outside of (0, 1], or times that do not rise.
    """
    schedule = process.schedule
    if isinstance(n, int):
        low, high = _ends(schedule, between)
        times, edges = _cells(schedule, n, spacing, low, high)
    else:
        times = _given(n)
        edges = _halfway(schedule.half_logsnr(times.clamp(schedule.t_min, schedule.t_max)))
    times = times.clamp(schedule.t_min, schedule.t_max)
    half_logsnr = schedule.half_logsnr(times)
    widths = -len(times) * edges.diff()
    return TimeGrid(times=times, half_logsnr=half_logsnr, widths=widths, forms=_forms(schedule, times, half_logsnr))


def visit_order(n: int) -> list[int]:
    """Return 0..n-1 so that the first m are spread well for every m: floor(n v_j), v_j van der Corput's sequence.

    It begins with 1/2, 1/4, 3/4, for the first time of a grid tells least.
    """
    order: dict[int, None] = {}
    j = 1
    while len(order) < n:
        order.setdefault(math.floor(n * _reversed_bits(j)))
        j += 1
    return list(order)


def time_sets(n: int, counts: Sequence[int], order: str) -> list[list[int]]:
    """Return the times (indices) that each round adds, rising.

    Args:
        n: Times of the grid.
        counts: How many are to be known after each round, rising to `n`.
        order: "corput": the first of `visit_order`, so exactly `counts`; "reference": evenly spread ones for each
            round, which are not nested, so that later rounds know a few more. Source: the code of Li et al. 2023.
    """
    known: set[int] = set()
    added = []
    for count in counts:
        stride = n // count
        wanted = visit_order(n)[:count] if order == "corput" else list(range(n))[stride // 2 :: stride][:count]
        fresh = sorted(set(wanted) - known) if count < n else sorted(set(range(n)) - known)
        known.update(fresh)
        added.append(fresh)
    return added


def ratio(grid: Any, to: str, measured: str) -> Tensor:
    """Return what an error measured as one target is multiplied with to be that of another, float64 (n,).

    Args:
        grid: A `TimeGrid`, or what else has its `forms`.
        to: Wanted target.
        measured: Target of the error.
    """
    return grid.forms[to] / grid.forms[measured]


def _ends(schedule: Schedule, between: tuple[float, float] | None) -> tuple[float, float]:
    if between is None:
        return 0.0, 1.0
    low, high = between
    if not 0 <= low < high <= 1:
        raise ValueError(f"times between {low} and {high} are none; give two times in [0, 1], the lower first.")
    return low, high


def _cells(schedule: Schedule, n: int, spacing: str, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return the middles (n,) of cells as times, and their edges (n + 1,) as half log-SNR, falling."""
    if n < 1:
        raise ValueError(f"{n} times: at least 1 is needed.")
    share = torch.arange(2 * n + 1, dtype=torch.float64) / (2 * n)
    limits = torch.tensor([max(low, schedule.t_min), min(high, schedule.t_max)], dtype=torch.float64)
    if spacing == "logsnr":
        top, bottom = schedule.half_logsnr(limits)
        places = torch.lerp(top, bottom, share)
        times = schedule.time(places[1::2])
        return _snapped(schedule, times, n), places[::2]
    if spacing != "t":
        raise ValueError(f"spacing={spacing!r} of times is unknown; choose 't' or 'logsnr'.")
    places = low + (high - low) * share
    edges = schedule.half_logsnr(places[::2].clamp(float(limits[0]), float(limits[1])))
    return _snapped(schedule, places[1::2], n), edges


def _snapped(schedule: Schedule, times: Tensor, n: int) -> Tensor:
    """Return times as they are, or where a model knows T discrete ones, the nearest of these."""
    if not isinstance(schedule, TableSchedule):
        return times
    total = len(schedule.alphas_cumprod)
    if n > total:
        raise ValueError(f"{n} times, but this model was trained on {total} discrete steps; ask for at most {total}.")
    entries = torch.floor(times * total).clamp(0, total - 1)  # entry i lies at (i + 1) / T
    for k in range(1, n):  # cells narrower than a step, as some of log-SNR are, would ask twice
        entries[k] = torch.maximum(entries[k], entries[k - 1] + 1)
    for k in range(n - 1, -1, -1):
        entries[k] = entries[k].clamp(max=total - n + k)
    return (entries + 1) / total


def _given(times: Sequence[float] | Tensor) -> Tensor:
    given = torch.as_tensor(times, dtype=torch.float64)
    if given.ndim != 1 or len(given) == 0 or not bool(((given > 0) & (given <= 1)).all()):
        raise ValueError(f"times={times} must be a list of numbers above 0 and at most 1.")
    if bool((given.diff() <= 0).any()):
        raise ValueError("the times must rise, each once.")
    return given


def _halfway(places: Tensor) -> Tensor:
    """Return the edges (n + 1,) half-way between places (n,); the outer cells are symmetric."""
    if len(places) == 1:
        return torch.stack([places[0] + 0.5, places[0] - 0.5])
    inner = (places[1:] + places[:-1]) / 2
    first, last = 2 * places[:1] - inner[:1], 2 * places[-1:] - inner[-1:]
    return torch.cat([first, inner, last])


def _forms(schedule: Schedule, t: Tensor, half_logsnr: Tensor) -> dict[str, Tensor]:
    """Return what turns an error e of x_0 into those of other targets: all are multiples of it at a given x_t.

    eps: alpha / sigma; v: sqrt(alpha^2 + sigma^2) / sigma; dx/dt = alpha' x_0 + sigma' eps: alpha |d half_logsnr / dt|.
    """
    alpha, sigma = schedule.levels(t)
    slope = schedule.alpha_slope(t) / alpha - schedule.sigma_slope(t) / sigma
    eps = half_logsnr.exp()
    return {
        "eps": eps,
        "x0": torch.ones_like(eps),
        "v": torch.sqrt(alpha**2 + sigma**2) / sigma,
        "velocity": alpha * slope.abs(),
    }


def _reversed_bits(j: int) -> float:
    """Return van der Corput's j-th number in base 2: the bits of j behind the point, in reverse."""
    value, place = 0.0, 0.5
    while j:
        value += place * (j & 1)
        j >>= 1
        place /= 2
    return value
