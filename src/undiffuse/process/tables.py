"""Discrete schedules: a table of T noise levels, read at any time in [1/T, 1].

Entry i = 0..T-1 lies at t = (i + 1) / T. Between entries log(sigma / alpha) is interpolated linearly in t, as
diffusers and k-diffusion do. A table with zero terminal SNR has sigma / alpha = inf at t = 1, so there alpha
itself falls linearly over the last cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from undiffuse.process.schedules import Schedule

# Of a Python number torch would make such a tensor at each operation.
_MINUS_ONE = torch.tensor(-1.0, dtype=torch.float64, device="cpu")
_INFINITY = torch.tensor(math.inf, dtype=torch.float64, device="cpu")


@dataclass(frozen=True, kw_only=True)
class TableSchedule(Schedule):
    """Variance-preserving schedule from cumulative products abar_0 > ... > abar_{T-1} >= 0.

    Args:
        alphas_cumprod: abar of each entry, alpha^2; strictly decreasing in (0, 1), the last may be 0.

    Raises:
        ValueError: Fewer than 3 entries, or not strictly decreasing inside (0, 1).
    """

    name: ClassVar[str] = "table"
    t_min: float = field(init=False)
    t_max: float = field(init=False)
    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        falls = all(a > b for a, b in pairwise(table))
        if len(table) < 3 or not falls or not table[0] < 1 or table[-1] < 0:
            raise ValueError(
                "alphas_cumprod must hold at least 3 strictly decreasing values below 1, the last at least 0."
            )
        object.__setattr__(self, "t_min", 1 / len(table))
        object.__setattr__(self, "t_max", 1.0 if table[-1] > 0 else (len(table) - 1) / len(table))

    @cached_property
    def _knots(self) -> Tensor:
        """Half log-SNR of each entry with a finite one, float64."""
        abar = torch.tensor([a for a in self.alphas_cumprod if a > 0], dtype=torch.float64)
        return 0.5 * (torch.log(abar) - torch.log1p(-abar))

    @property
    def _last_alpha(self) -> float:
        """Alpha of the last finite entry."""
        return math.sqrt(next(a for a in reversed(self.alphas_cumprod) if a > 0))

    @property
    def ends_in_noise(self) -> bool:
        """Whether the last entry is pure noise: zero terminal SNR."""
        return self.alphas_cumprod[-1] == 0

    def _cell(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the left and right knot around each time and the place between them in [0, 1]."""
        knots = self._knots.to(t.device)
        place = torch.add(_MINUS_ONE, t, alpha=len(self.alphas_cumprod)).clamp_(0, len(knots) - 1)
        left = place.long().clamp_(max=len(knots) - 2)
        return knots.take(left), knots[1:].take(left), place - left

    def _tail(self, t: Tensor) -> Tensor:
        """Share of the last cell of a zero-SNR table that is left before t = 1; at least 1 before that cell."""
        return (1 - t) * len(self.alphas_cumprod)

    def _in_tail(self, t: Tensor) -> Tensor:
        return (t > self.t_max) & self.ends_in_noise

    def half_logsnr(self, t: Tensor) -> Tensor:
        """log(alpha / sigma), interpolated linearly; +inf at t = 0."""
        low, high, place = self._cell(t)
        inside = torch.where(t.bool(), torch.lerp(low, high, place), _INFINITY)
        if not self.ends_in_noise:
            return inside
        alpha = self._last_alpha * self._tail(t)
        return torch.where(self._in_tail(t), torch.log(alpha) - 0.5 * torch.log1p(-(alpha**2)), inside)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma), looking the table up once."""
        half = self.half_logsnr(t)
        double = half + half
        return torch.sigmoid(double).sqrt(), torch.sigmoid(-double).sqrt()

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(2 * self.half_logsnr(t)))

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(-2 * self.half_logsnr(t)))

    def _alpha_slope(self, t: Tensor) -> Tensor:
        # alpha = sigmoid(2l)^(1/2), so alpha' = alpha sigma^2 l'.
        inside = self._alpha(t) * self._sigma(t) ** 2 * self._logsnr_slope(t)
        return torch.where(self._in_tail(t), -self._last_alpha * len(self.alphas_cumprod), inside)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        inside = -self._sigma(t) * self._alpha(t) ** 2 * self._logsnr_slope(t)
        tail = -self._alpha(t) * self._alpha_slope(t) / self._sigma(t)
        return torch.where(self._in_tail(t), tail, inside)

    def _logsnr_slope(self, t: Tensor) -> Tensor:
        low, high, _ = self._cell(t)
        return (high - low) * len(self.alphas_cumprod)  # below t_min that of t_min, so that velocities stay invertible

    def _time(self, half_logsnr: Tensor) -> Tensor:
        knots = self._knots.to(half_logsnr.device)
        right = torch.searchsorted(-knots, -half_logsnr.contiguous()).clamp(1, len(knots) - 1)
        low, high = knots[right - 1], knots[right]
        place = right - 1 + ((half_logsnr - low) / (high - low)).clamp(0, 1)
        t = (place + 1) / len(self.alphas_cumprod)
        if not self.ends_in_noise:
            return t
        alpha = torch.sqrt(torch.sigmoid(2 * half_logsnr))
        return torch.where(half_logsnr < knots[-1], 1 - alpha / self._last_alpha / len(self.alphas_cumprod), t)


def table_from_betas(betas: Tensor, zero_terminal_snr: bool = False) -> TableSchedule:
    """Build a table from betas (T,), float64.

    Args:
        zero_terminal_snr: Shift and scale sqrt(abar) so that it ends at 0 and keeps its first value
            (Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed", algorithm 1).
    """
    root = torch.cumprod(1 - betas.double(), 0).sqrt()
    if zero_terminal_snr:
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return TableSchedule(alphas_cumprod=tuple((root**2).tolist()))


def cosine_betas(steps: int, most: float = 0.999) -> Tensor:
    """Return betas (steps,), float64, whose table follows cos^2, each cut to `most`, for the last is 1."""
    kept = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    return torch.tensor([min(1 - after / before, most) for before, after in pairwise(kept)], dtype=torch.float64)


def cosine_table_schedule(steps: int = 1000, zero_terminal_snr: bool = False) -> TableSchedule:
    """Table of the cosine schedule of Nichol and Dhariwal 2021, arXiv:2102.09672, with its last betas cut to 0.999."""
    return table_from_betas(cosine_betas(steps), zero_terminal_snr)


def ddpm_schedule(
    steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02, zero_terminal_snr: bool = False
) -> TableSchedule:
    """Linear betas of Ho et al. 2020, arXiv:2006.11239."""
    return table_from_betas(torch.linspace(beta_min, beta_max, steps, dtype=torch.float64), zero_terminal_snr)


def scaled_linear_schedule(
    steps: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012, zero_terminal_snr: bool = False
) -> TableSchedule:
    """Betas linear in their square root, as in Stable Diffusion (Rombach et al. 2022, arXiv:2112.10752)."""
    root = torch.linspace(beta_min**0.5, beta_max**0.5, steps, dtype=torch.float64)
    return table_from_betas(root**2, zero_terminal_snr)
