"""Noise schedules in closed form: t in [0, 1] to (alpha, sigma), their slopes, and the inverse.

`x_t = alpha x_0 + sigma eps` and `half_logsnr = log(alpha / sigma)`. Every schedule has t = 0 as its isolated
clean end (alpha 1, sigma 0). Where the published formula does not reach it (`ve`, `edm`, tables) the formula
lives on [t_min, 1] and holds the value of t_min below. Methods take and return float64 tensors of any shape
and do no checking; they are called with times that `check_time` or `check_grid` has seen.

Source: Lai et al. 2025, "The Principles of Diffusion Models", arXiv:2510.21890, and the papers named below.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.process.warp import TimeWarp


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """Base: subclasses give `_alpha`, `_sigma`, their slopes and `_time`, valid for t > 0.

    Args:
        t_min: Smallest time above 0 that the formula serves.
        t_max: Largest time at which `half_logsnr` is finite and useful; 1 unless alpha vanishes there.
    """

    name: ClassVar[str]
    t_min: float = 1e-3
    t_max: float = 1.0

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _alpha_slope(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma_slope(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time(self, half_logsnr: Tensor) -> Tensor: ...

    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale; exactly 1 at t = 0."""
        return torch.where(t > 0, self._alpha(t), torch.ones_like(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale; exactly 0 at t = 0."""
        return torch.where(t > 0, self._sigma(t), torch.zeros_like(t))

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) together."""
        return self.alpha(t), self.sigma(t)

    def half_logsnr(self, t: Tensor) -> Tensor:
        """log(alpha / sigma): +inf at t = 0, -inf where alpha vanishes."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def alpha_slope(self, t: Tensor) -> Tensor:
        """d alpha / dt."""
        return self._alpha_slope(t)

    def sigma_slope(self, t: Tensor) -> Tensor:
        """d sigma / dt; infinite at t = 0 where sigma starts like a square root."""
        return self._sigma_slope(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g^2 = (sigma^2)' - 2 (alpha' / alpha) sigma^2 of the equivalent SDE, at least 0."""
        sigma = self.sigma(t)
        return 2 * sigma * (self.sigma_slope(t) - self.alpha_slope(t) / self.alpha(t) * sigma)

    def time(self, half_logsnr: Tensor) -> Tensor:
        """Inverse of `half_logsnr`; +inf gives 0, and values beyond the range give its nearest end."""
        return torch.where(half_logsnr == math.inf, 0.0, self._time(half_logsnr).clamp(0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class VPSchedule(Schedule):
    """Variance preserving with linear beta: log alpha = -t^2 (b1 - b0) / 4 - t b0 / 2.

    Source: Song et al. 2021, "Score-based generative modeling through SDEs", arXiv:2011.13456.
    """

    name: ClassVar[str] = "vp"
    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t * t * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def _alpha_slope(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) * self._alpha(t)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        return 0.5 * self._beta(t) * self._alpha(t) ** 2 / self._sigma(t)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        log_alpha = log_alpha.clamp(min=float(self._log_alpha(torch.ones((), dtype=torch.float64))))
        rise = self.beta_max - self.beta_min
        return -4 * log_alpha / (self.beta_min + torch.sqrt(self.beta_min**2 - 4 * rise * log_alpha))

    def _time(self, half_logsnr: Tensor) -> Tensor:
        return self._time_of_log_alpha(-0.5 * _softplus(-2 * half_logsnr))


@dataclass(frozen=True, kw_only=True)
class SubVPSchedule(VPSchedule):
    """Alpha of `vp`, sigma = 1 - alpha^2.

    Source: Song et al. 2021, arXiv:2011.13456.
    """

    name: ClassVar[str] = "subvp"

    def _sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self._log_alpha(t))

    def _sigma_slope(self, t: Tensor) -> Tensor:
        return self._beta(t) * self._alpha(t) ** 2

    def _time(self, half_logsnr: Tensor) -> Tensor:
        # alpha^2 + alpha e^-l = 1, so alpha = exp(-asinh(e^-l / 2)).
        return self._time_of_log_alpha(-torch.asinh(0.5 * torch.exp(-half_logsnr)))


@dataclass(frozen=True, kw_only=True)
class _ExplodingSchedule(Schedule):
    """Alpha = 1; sigma runs from sigma_min to sigma_max as a function of u = (t - t_min) / (1 - t_min)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def _unit(self, t: Tensor) -> Tensor:
        return ((t - self.t_min) / (1 - self.t_min)).clamp(min=0.0)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _alpha_slope(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _from_unit(self, u: Tensor) -> Tensor:
        return (self.t_min + (1 - self.t_min) * u).clamp(min=self.t_min)


@dataclass(frozen=True, kw_only=True)
class VESchedule(_ExplodingSchedule):
    """Variance exploding: sigma geometric from sigma_min to sigma_max.

    Source: Song et al. 2021, arXiv:2011.13456 (who use 0.01 to 50).
    """

    name: ClassVar[str] = "ve"

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** self._unit(t)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        return self._sigma(t) * math.log(self.sigma_max / self.sigma_min) / (1 - self.t_min)

    def _time(self, half_logsnr: Tensor) -> Tensor:
        return self._from_unit((-half_logsnr - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min))


@dataclass(frozen=True, kw_only=True)
class EDMSchedule(_ExplodingSchedule):
    """Sigma^(1/rho) linear in t, so that a uniform grid in t is the EDM grid.

    Source: Karras et al. 2022, "Elucidating the design space of diffusion-based generative models", eq. 5.
    """

    name: ClassVar[str] = "edm"
    rho: float = 7.0

    def _root(self, t: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return low + self._unit(t) * (high - low)

    def _sigma(self, t: Tensor) -> Tensor:
        return self._root(t) ** self.rho

    def _sigma_slope(self, t: Tensor) -> Tensor:
        rise = self.sigma_max ** (1 / self.rho) - self.sigma_min ** (1 / self.rho)
        return self.rho * self._root(t) ** (self.rho - 1) * rise / (1 - self.t_min)

    def _time(self, half_logsnr: Tensor) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return self._from_unit((torch.exp(-half_logsnr / self.rho) - low) / (high - low))


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(Schedule):
    """alpha^2 = f(t) / f(0), f = cos^2(pi/2 (t + c) / (1 + c)); written with sin(pi/2 (1 - t) / (1 + c)) so that
    alpha(1) is exactly 0, and sigma through sin(b - a) sin(b + a), which does not cancel near t = 0.

    Source: Nichol and Dhariwal 2021, "Improved denoising diffusion probabilistic models", arXiv:2102.09672.
    """

    name: ClassVar[str] = "cosine"
    t_max: float = 0.999
    offset: float = 0.008

    @property
    def _start(self) -> float:
        return 0.5 * math.pi * self.offset / (1 + self.offset)

    @property
    def _rate(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(self._rate * (1 - t)) / math.cos(self._start)

    def _sigma(self, t: Tensor) -> Tensor:
        product = torch.sin(self._rate * t) * torch.sin(self._rate * t + 2 * self._start)
        return torch.sqrt(product) / math.cos(self._start)

    def _alpha_slope(self, t: Tensor) -> Tensor:
        return -self._rate * torch.cos(self._rate * (1 - t)) / math.cos(self._start)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        return -self._alpha(t) * self._alpha_slope(t) / self._sigma(t)

    def _time(self, half_logsnr: Tensor) -> Tensor:
        cosine, sine = math.cos(self._start), math.sin(self._start)
        adjacent = torch.sqrt(torch.sigmoid(2 * half_logsnr)) * cosine
        opposite = torch.sqrt(sine**2 + torch.sigmoid(-2 * half_logsnr) * cosine**2)
        return (torch.atan2(opposite, adjacent) - self._start) / self._rate


@dataclass(frozen=True, kw_only=True)
class TrigSchedule(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2); the angle of TrigFlow is pi t / 2.

    Source: Lu and Song 2024, "Simplifying, stabilizing and scaling continuous-time consistency models".
    """

    name: ClassVar[str] = "trig"
    t_max: float = 0.999

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t))  # exactly 0 at t = 1, unlike cos(pi / 2)

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def _alpha_slope(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * self._sigma(t)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * self._alpha(t)

    def _time(self, half_logsnr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-half_logsnr)) * (2 / math.pi)


@dataclass(frozen=True, kw_only=True)
class RectifiedFlowSchedule(Schedule):
    """The straight line alpha = 1 - u, sigma = u with u = S t / (1 + (S - 1) t).

    Args:
        shift: S of the time warp; 1 is the plain line, 3 is what Stable Diffusion 3 uses.

    Source: Liu et al. 2022, "Flow straight and fast", arXiv:2209.03003; Esser et al. 2024, arXiv:2403.03206.
    """

    name: ClassVar[str] = "rf"
    t_max: float = 0.999
    shift: float = 1.0

    @property
    def _warp(self) -> TimeWarp:
        return TimeWarp(self.shift)

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - self._warp(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self._warp(t)

    def _alpha_slope(self, t: Tensor) -> Tensor:
        return -self._warp.slope(t)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        return self._warp.slope(t)

    def _time(self, half_logsnr: Tensor) -> Tensor:
        return self._warp.inverse(torch.sigmoid(-half_logsnr))


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=50.0)  # torch's default threshold of 20 costs 9 digits in float64
