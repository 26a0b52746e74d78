r"""Schedules of supervised restoration: x_t = alpha x_0 + (1 - alpha) y + sigma eps, a walk to a given picture.

What IR-SDE, ResShift, I2SB, InDI and RDDM publish are choices of alpha and sigma alone. With the given part taken away,
x_t - (1 - alpha) y is an ordinary Gaussian process with these schedules, so every solver and objective holds for it;
`denoisers.shift` adds the part back where the network looks. Their rules are the bridges of that process: "ddim" with
eta 1 for IR-SDE and I2SB, "brownian" with eta 1 for ResShift, eta 0 for InDI.

`spread` is the size of the noise in model units, in each paper's own meaning.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from undiffuse.process.schedules import Schedule

_LEAST = 1e-12  # share of the data at the end of a bridge: no solver need divide by a sigma of 0 there
_HALVINGS = 60  # of the interval of times: down to the last bit of a float64


@dataclass(frozen=True, kw_only=True)
class RestorationSchedule(Schedule):
    """Base: the time of a noise level is found by bisection, for it falls with the half log-SNR."""

    @abstractmethod
    def _half_logsnr(self, t: Tensor) -> Tensor: ...

    def half_logsnr(self, t: Tensor) -> Tensor:
        """log(alpha / sigma), in a form that is -inf where both vanish."""
        return torch.where(t > 0, self._half_logsnr(t), math.inf)

    def _time(self, half_logsnr: Tensor) -> Tensor:
        low = torch.full_like(half_logsnr, self.t_min if self._is_flat_below else 0.0)
        high = torch.ones_like(half_logsnr)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            too_clean = self._half_logsnr(middle) > half_logsnr
            low, high = torch.where(too_clean, middle, low), torch.where(too_clean, high, middle)
        return high

    @property
    def _is_flat_below(self) -> bool:
        """Whether the formula starts at t_min."""
        return False


@dataclass(frozen=True, kw_only=True)
class IRSDESchedule(RestorationSchedule):
    r"""alpha = e^-theta, sigma = spread sqrt(1 - e^-2theta), theta' = sin^2(pi/2 (t + c) / (1 + c)) up to scale.

    Args:
        spread: Stationary standard deviation; 10 / 255 of [0, 1].
        last: alpha at t = 1.

    Source: Luo et al. 2023, "Image Restoration with Mean-Reverting Stochastic Differential Equations",
        arXiv:2301.11699; its cosine schedule of theta in continuous time.
    """

    name: ClassVar[str] = "ir-sde"
    spread: float = 20 / 255
    last: float = 0.005
    offset: float = 0.008

    def _theta(self, t: Tensor) -> Tensor:
        return -math.log(self.last) * self._area(t) / self._area(torch.ones_like(t))

    def _area(self, t: Tensor) -> Tensor:
        rate, phase = math.pi / (1 + self.offset), math.pi * self.offset / (1 + self.offset)
        return 0.5 * t - (torch.sin(rate * t + phase) - math.sin(phase)) / (2 * rate)

    def _theta_slope(self, t: Tensor) -> Tensor:
        height = torch.sin(0.5 * math.pi * (t + self.offset) / (1 + self.offset)) ** 2
        return -math.log(self.last) * height / self._area(torch.ones_like(t))

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._theta(t))

    def _sigma(self, t: Tensor) -> Tensor:
        return self.spread * torch.sqrt(-torch.expm1(-2 * self._theta(t)))

    def _alpha_slope(self, t: Tensor) -> Tensor:
        return -self._theta_slope(t) * self._alpha(t)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        return self.spread**2 * self._theta_slope(t) * self._alpha(t) ** 2 / self._sigma(t)

    def _half_logsnr(self, t: Tensor) -> Tensor:
        theta = self._theta(t)
        return -theta - math.log(self.spread) - 0.5 * torch.log(-torch.expm1(-2 * theta))


@dataclass(frozen=True, kw_only=True)
class ResShiftSchedule(RestorationSchedule):
    r"""alpha = 1 - e, sigma = spread sqrt(e), log e from log e_1 to log e_T as u^power with u = (t T - 1) / (T - 1).

    At the times k / T it is the published table of T levels; between them it is smooth.

    Args:
        spread: kappa of the paper.
        count: T.
        power: p of the paper.
        last: e_T.

    Source: Yue et al. 2023, "ResShift: Efficient Diffusion Model for Image Super-resolution by Residual Shifting",
        arXiv:2307.12348, eq. 10.
    """

    name: ClassVar[str] = "resshift"
    t_min: float = 1 / 15
    spread: float = 2.0
    count: int = 15
    power: float = 0.3
    last: float = 0.999

    @property
    def _first(self) -> float:
        return min(0.04 / self.spread, math.sqrt(0.001)) ** 2

    @property
    def _is_flat_below(self) -> bool:
        return True

    def __post_init__(self) -> None:
        object.__setattr__(self, "t_min", 1 / self.count)

    def _unit(self, t: Tensor) -> Tensor:
        return ((t - self.t_min) / (1 - self.t_min)).clamp(min=0.0)

    def share(self, t: Tensor) -> Tensor:
        """Return e, the share of the given picture."""
        return self._first * torch.exp(math.log(self.last / self._first) * self._unit(t) ** self.power)

    def _share_slope(self, t: Tensor) -> Tensor:
        unit = self._unit(t).clamp(min=1e-9)  # infinite at the first level
        rate = math.log(self.last / self._first) * self.power * unit ** (self.power - 1) / (1 - self.t_min)
        return self.share(t) * rate

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - self.share(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.spread * self.share(t).sqrt()

    def _alpha_slope(self, t: Tensor) -> Tensor:
        return -self._share_slope(t)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        return 0.5 * self.spread * self._share_slope(t) / self.share(t).sqrt()

    def _half_logsnr(self, t: Tensor) -> Tensor:
        share = self.share(t)
        return torch.log1p(-share) - math.log(self.spread) - 0.5 * share.log()


@dataclass(frozen=True, kw_only=True)
class I2SBSchedule(RestorationSchedule):
    r"""alpha = 1 - u, sigma = spread sqrt(u (1 - u)): a Brownian bridge, of no noise at either end
    (of spread 1e-6 at t = 1, so that nothing is divided by 0).

    u(t) is the share of the time-integral of beta, whose root is linear from sqrt(beta_min) to half-way to
    sqrt(beta_max), and then mirrored.

    Args:
        spread: Root of the whole integral; by default that of the published betas.

    Source: Liu et al. 2023, "I2SB: Image-to-Image Schroedinger Bridge", arXiv:2302.05872, eq. 11 and appendix.
    """

    name: ClassVar[str] = "i2sb"
    t_max: float = 0.999
    spread: float = 0.3755906818
    beta_min: float = 1e-4
    beta_max: float = 3e-4

    def _root(self, t: Tensor) -> Tensor:
        low, high = math.sqrt(self.beta_min), math.sqrt(self.beta_max)
        return low + (high - low) * torch.minimum(t, 1 - t)

    def _half(self) -> float:
        """Integral of beta from 0 to 1/2, times 3 (sqrt(beta_max) - sqrt(beta_min))."""
        low, high = math.sqrt(self.beta_min), math.sqrt(self.beta_max)
        return (0.5 * (low + high)) ** 3 - low**3

    def share(self, t: Tensor) -> Tensor:
        """Return u, the share of the given picture, with u(1 - t) = 1 - u(t)."""
        near = (self._root(t) ** 3 - math.sqrt(self.beta_min) ** 3) / (2 * self._half())
        return torch.where(t <= 0.5, near, 1 - near)

    def _rest(self, t: Tensor) -> Tensor:
        near = (self._root(t) ** 3 - math.sqrt(self.beta_min) ** 3) / (2 * self._half())
        return torch.where(t <= 0.5, 1 - near, near).clamp(min=_LEAST)

    def _share_slope(self, t: Tensor) -> Tensor:
        rise = math.sqrt(self.beta_max) - math.sqrt(self.beta_min)
        return 3 * rise * self._root(t) ** 2 / (2 * self._half())

    def _alpha(self, t: Tensor) -> Tensor:
        return self._rest(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.spread * (self.share(t) * self._rest(t)).sqrt()

    def _alpha_slope(self, t: Tensor) -> Tensor:
        return -self._share_slope(t)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        share, rest = self.share(t), self._rest(t)
        return 0.5 * self.spread * self._share_slope(t) * (rest - share) / (share * rest).sqrt()

    def _half_logsnr(self, t: Tensor) -> Tensor:
        return 0.5 * (self._rest(t).log() - self.share(t).log()) - math.log(self.spread)


@dataclass(frozen=True, kw_only=True)
class InDISchedule(RestorationSchedule):
    """alpha = 1 - t, sigma = spread t.

    Source: Delbracio and Milanfar 2023, "Inversion by Direct Iteration: An Alternative to Denoising Diffusion for Image
        Restoration", arXiv:2303.11435, eq. 3.
    """

    name: ClassVar[str] = "indi"
    t_max: float = 0.999
    spread: float = 0.01

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return self.spread * t

    def _alpha_slope(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.spread)

    def _half_logsnr(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - t.log() - math.log(self.spread)


@dataclass(frozen=True, kw_only=True)
class RDDMSchedule(RestorationSchedule):
    """alpha = (1 - t)^2, sigma = spread t: residuals go in fast, noise evenly.

    Source: Liu et al. 2024, "Residual Denoising Diffusion Models", arXiv:2308.13712; its decreasing coefficients of the
        residual and increasing ones of the noise in continuous time, with sum_scale = spread^2.
    """

    name: ClassVar[str] = "rddm"
    t_max: float = 0.999
    spread: float = 0.1

    def _alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** 2

    def _sigma(self, t: Tensor) -> Tensor:
        return self.spread * t

    def _alpha_slope(self, t: Tensor) -> Tensor:
        return -2 * (1 - t)

    def _sigma_slope(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.spread)

    def _half_logsnr(self, t: Tensor) -> Tensor:
        return 2 * torch.log1p(-t) - t.log() - math.log(self.spread)
