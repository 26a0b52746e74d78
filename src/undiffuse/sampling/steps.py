"""`Steps`: a grid seen as steps, with the schedule's levels along it looked up once."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from undiffuse.process.gaussian import GaussianProcess


class Steps:
    """Start and end of every step, and what the schedule says there, float64 (K,) or (K, B, F).

    Args:
        process: Gaussian process.
        grid: Checked grid, (K+1,) or (K+1, B, F).
    """

    def __init__(self, process: GaussianProcess, grid: Tensor) -> None:
        self.process = process
        self.grid = grid

    @cached_property
    def t(self) -> Tensor:
        """Start of each step."""
        return self.grid[:-1]

    @cached_property
    def s(self) -> Tensor:
        """Its end."""
        return self.grid[1:]

    @cached_property
    def _levels(self) -> tuple[Tensor, Tensor]:
        return self.process.levels_along(self.grid)

    @cached_property
    def _half_logsnr(self) -> Tensor:
        alpha, sigma = self._levels
        return torch.log(alpha) - torch.log(sigma)

    @cached_property
    def alpha_t(self) -> Tensor:
        """Signal scale at the start of each step."""
        return self._levels[0][:-1]

    @cached_property
    def alpha_s(self) -> Tensor:
        """Signal scale at its end."""
        return self._levels[0][1:]

    @cached_property
    def sigma_t(self) -> Tensor:
        """Noise scale at the start of each step."""
        return self._levels[1][:-1]

    @cached_property
    def sigma_s(self) -> Tensor:
        """Noise scale at its end."""
        return self._levels[1][1:]

    @cached_property
    def half_logsnr_t(self) -> Tensor:
        """Half log-SNR at the start of each step."""
        return self._half_logsnr[:-1]

    @cached_property
    def h(self) -> Tensor:
        """Rise of half log-SNR in each step."""
        return self._half_logsnr.diff(dim=0)

    @property
    def count(self) -> int | Tensor:
        """Number of steps in which something moves, of each element where the grid has elements."""
        return len(self.grid) - 1 if self.grid.ndim == 1 else (self.s < self.t).sum(0)

    @cached_property
    def left(self) -> Tensor:
        """Number of steps from each on in which each element moves, of a grid that has elements."""
        return (self.s < self.t).flip(0).cumsum(0).flip(0)

    @cached_property
    def even(self) -> bool | Tensor:
        """Whether steps are even in half log-SNR, of each element, but for those from alpha = 0 and to sigma = 0."""
        if self.grid.ndim == 1:
            lengths = [h for h in self.h.tolist() if h < math.inf]
            return max(lengths, default=0.0) <= 1.001 * min(lengths, default=0.0)
        inside = self.h.isfinite() & (self.s < self.t)
        longest = torch.where(inside, self.h, 0.0).amax(0)
        return longest <= 1.001 * torch.where(inside, self.h, torch.inf).amin(0)

    def past(self, memory: int, values: Tensor | None = None) -> list[Tensor]:
        """Half log-SNR, or `values`, at the start of the `memory` moving steps before each, newest first; NaN for none.

        A frozen element keeps its history: its earlier steps are those in which it moved.
        """
        values = self.half_logsnr_t if values is None else values
        if self.grid.ndim == 1:
            none = self.grid.new_full((memory,), torch.nan)
            padded = torch.cat([none, values])
            return [padded[memory - 1 - age : len(padded) - 1 - age] for age in range(memory)]
        moved = self.t > self.s
        recent = [torch.full_like(self.t[0], torch.nan)] * memory
        rows: list[list[Tensor]] = [[] for _ in range(memory)]
        for k in range(len(moved)):
            for slot, value in zip(rows, recent, strict=True):
                slot.append(value)
            shifted = [values[k], *recent[:-1]]
            recent = [torch.where(moved[k], new, old) for new, old in zip(shifted, recent, strict=True)]
        return [torch.stack(slot) for slot in rows]
