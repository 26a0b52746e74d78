r"""The noise levels that diffusers' schedulers walk, from their options: a class for each family of schedulers.

Each gives the levels rho = sigma / alpha of N steps, falling, and what the network is told at them. diffusers' classes
differ in small ways that are options here: into how many integer points a table is cut, whether they are rounded, and
where the last step ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from undiffuse.process.grids import check_grid
from undiffuse.process.schedules import Schedule
from undiffuse.process.tables import TableSchedule

Curve = Literal["karras", "exponential", "beta"]
End = Literal["zero", "sigma_min"]


@dataclass(frozen=True, kw_only=True)
class Spacing:
    """Base: where N steps lie on a schedule.

    Args:
        end: Where the last step ends: at no noise, or at the schedule's lowest level.
    """

    end: End = "zero"

    def levels(self, schedule: Schedule, steps: int) -> Tensor:
        """Return rho at the start of each step, float64 (steps,)."""
        raise NotImplementedError

    def timesteps(self, schedule: Schedule, steps: int) -> list[float]:
        """Return what diffusers tells the network at each level."""
        raise NotImplementedError

    def grid(self, schedule: Schedule, steps: int) -> Tensor:
        """Return the times of the levels and of the end; steps that would not move are left out.

        Raises:
            ValueError: `steps` below 1, or more than a table has entries.
        """
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1.")
        times = schedule.time(-torch.log(self.levels(schedule, steps)))
        last = 0.0 if self.end == "zero" else schedule.t_min
        times = torch.cat([times[times > last + 1e-9], times.new_full((1,), last)])
        return check_grid(times[torch.cat([times.diff() < 0, torch.tensor([True])])])


@dataclass(frozen=True, kw_only=True)
class TableSpacing(Spacing):
    """Entries of a table of noise levels, or a curve between two of them.

    Args:
        shape: "linspace", "leading" (the highest entries are left out, unless the steps divide the table and `offset`
            makes up for it) or "trailing".
        offset: Added to the indices of "leading".
        extra: Cut the table into steps + 1 points and drop the lowest, as the DPM-Solver, UniPC and DEIS classes do.
        whole: Whether the indices of "linspace" are rounded.
        curve: Levels between the ends of the table (with `extra`) or of the points; None for the points themselves.
        coarse: Take the points among so many entries at even distances, from the last down, whatever `shape`: those
            that latent consistency models are trained at.
    """

    shape: Literal["linspace", "leading", "trailing"] = "linspace"
    offset: int = 0
    extra: bool = False
    whole: bool = True
    curve: Curve | None = None
    coarse: int | None = None

    def points(self, total: int, steps: int) -> Tensor:
        """Return the indices of the plain shape in a table of `total` entries, falling, float64 (steps,)."""
        if self.coarse is not None:
            return self._coarse_points(total, steps)
        count = steps + self.extra if self.shape != "trailing" else steps
        if count > total:
            raise ValueError(f"steps={steps} but this table has only {total} noise levels; use fewer steps.")
        ramp = torch.arange(count, dtype=torch.float64)
        if self.shape == "trailing":
            return (total - ramp * (total / steps)).round() - 1
        if self.shape == "leading":
            index = ramp * (total // count) + self.offset
        else:
            index = torch.linspace(0, total - 1, count, dtype=torch.float64)
            index = index.round() if self.whole else index
        return index.flip(0)[:steps]

    def _coarse_points(self, total: int, steps: int) -> Tensor:
        assert self.coarse is not None
        if steps > self.coarse:
            raise ValueError(f"steps={steps} but this scheduler has original_inference_steps={self.coarse}; use fewer.")
        taken = torch.arange(steps, dtype=torch.float64) * self.coarse / steps
        return (self.coarse - taken.floor()) * (total // self.coarse) - 1

    def levels(self, schedule: Schedule, steps: int) -> Tensor:
        """Return rho of the points, linear between entries, or along the curve."""
        total = _entries(schedule)
        table = torch.exp(-schedule.half_logsnr(torch.arange(1, total + 1, dtype=torch.float64) / total))
        index = self.points(total, steps).clamp(max=total - 1)  # an offset may lead beyond the table
        left = index.long().clamp(max=total - 2)
        # An entry itself is not read by lerp, which gives NaN at the last of a table that ends in pure noise.
        between = torch.lerp(table[left], table[left + 1], index - left)
        rho = torch.where(index == index.floor(), table[index.long()], between)
        if self.curve is None:
            return rho
        high, low = (table[-1], table[0]) if self.extra else (rho[0], rho[-1])
        return curve_levels(self.curve, float(high), float(low), steps)

    def timesteps(self, schedule: Schedule, steps: int) -> list[float]:
        """Return the indices; fractional on a curve, where some of diffusers' classes round them."""
        total = _entries(schedule)
        if self.curve is None:
            return self.points(total, steps).tolist()
        return (schedule.time(-torch.log(self.levels(schedule, steps))) * total - 1).tolist()


@dataclass(frozen=True, kw_only=True)
class FlowSpacing(Spacing):
    """Levels of the straight line alpha = 1 - sigma: even between 1 and 1 / total, shifted.

    Args:
        shift: S of sigma -> S sigma / (1 + (S - 1) sigma).
        ends_too: Shift the ends before dividing what lies between, and so the ends twice, as diffusers' FlowMatch
            schedulers do unless their shift is "dynamic".
        total: Training steps; the network is told sigma * total.
        per_step: End at 1 / steps instead of 1 / total.
    """

    shift: float = 1.0
    ends_too: bool = True
    total: int = 1000
    per_step: bool = False

    def sigmas(self, steps: int) -> Tensor:
        """Return sigma at the start of each step, falling from 1, float64 (steps,)."""
        low = torch.tensor(1 / (steps if self.per_step else self.total), dtype=torch.float64)
        low = self._shifted(low) if self.ends_too and not self.per_step else low
        return self._shifted(torch.linspace(1.0, float(low), steps, dtype=torch.float64))

    def levels(self, schedule: Schedule, steps: int) -> Tensor:
        """Return sigma / (1 - sigma), infinite at the first."""
        sigma = self.sigmas(steps)
        return sigma / (1 - sigma)

    def timesteps(self, schedule: Schedule, steps: int) -> list[float]:
        """Return sigma * total."""
        return (self.sigmas(steps) * self.total).tolist()

    def _shifted(self, sigma: Tensor) -> Tensor:
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)


@dataclass(frozen=True, kw_only=True)
class EDMSpacing(Spacing):
    """Levels between the two ends of a schedule with alpha = 1.

    Args:
        curve: "karras" or "exponential".
        rho: Exponent of "karras".
    """

    curve: Curve = "karras"
    rho: float = 7.0

    def levels(self, schedule: Schedule, steps: int) -> Tensor:
        """Return sigma along the curve."""
        ends = torch.tensor([1.0, schedule.t_min], dtype=torch.float64)
        high, low = schedule.sigma(ends).tolist()
        return curve_levels(self.curve, high, low, steps, self.rho)

    def timesteps(self, schedule: Schedule, steps: int) -> list[float]:
        """Return log(sigma) / 4."""
        return (0.25 * torch.log(self.levels(schedule, steps))).tolist()


@dataclass(frozen=True, kw_only=True)
class AngleSpacing(Spacing):
    """Levels sigma = sin^2(pi u / 2), u even from 1, on the circle alpha^2 + sigma^2 = 1, as iPNDM's scheduler has."""

    def levels(self, schedule: Schedule, steps: int) -> Tensor:
        """Return sigma / alpha, infinite at the first."""
        sigma = torch.sin(0.5 * math.pi * torch.arange(steps, 0, -1, dtype=torch.float64) / steps) ** 2
        return sigma / torch.sqrt(1 - sigma**2)

    def timesteps(self, schedule: Schedule, steps: int) -> list[float]:
        """Return the angle over pi / 2, our time of the schedule `trig`."""
        return schedule.time(-torch.log(self.levels(schedule, steps))).tolist()


@dataclass(frozen=True, kw_only=True)
class SCMSpacing(Spacing):
    """Angles of the circle that are even from pi / 2 to 0; of two steps the second begins at `middle`.

    Args:
        first, middle: Angles, as diffusers' scheduler has them by default.
    """

    first: float = 1.57080
    middle: float = 1.3

    def timesteps(self, schedule: Schedule, steps: int) -> list[float]:
        """Return the angles."""
        even = torch.linspace(self.first, 0.0, steps + 1, dtype=torch.float64)[:-1].tolist()
        return [self.first, self.middle] if steps == 2 else even

    def levels(self, schedule: Schedule, steps: int) -> Tensor:
        """Return their tangents, infinite at a right angle and above."""
        angles = torch.tensor(self.timesteps(schedule, steps), dtype=torch.float64)
        return torch.where(angles < 0.5 * math.pi, torch.tan(angles), torch.inf)


def curve_levels(curve: Curve, high: float, low: float, steps: int, rho: float = 7.0) -> Tensor:
    """Return levels from `high` to `low`, float64 (steps,): even in level^(1/rho), in its logarithm, or quantiles of
    Beta(0.6, 0.6). A single step is at `high`."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    if curve == "karras":
        top, bottom = high ** (1 / rho), low ** (1 / rho)
        return (top + ramp * (bottom - top)) ** rho
    if curve == "exponential":
        return torch.exp(math.log(high) + ramp * (math.log(low) - math.log(high)))
    from scipy.stats import beta

    return low + (high - low) * torch.from_numpy(beta.ppf((1 - ramp).numpy(), 0.6, 0.6))


def _entries(schedule: Schedule) -> int:
    if not isinstance(schedule, TableSchedule):
        raise ValueError(f"this spacing counts entries of a table; schedule {schedule.name!r} has none.")
    return len(schedule.alphas_cumprod)
