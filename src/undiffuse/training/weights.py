r"""Loss weights in log-SNR, all as multipliers of |D - x_0|^2 where D is the posterior mean.

Every weight and every prediction kind is one function of the noise level, its logarithm:

    |output - target|^2 = ratio(kind) |D - x_0|^2,        loss = weight / ratio(prediction) * |output - target|^2,

so the network's own squared error is scaled by exp(log weight - log ratio). That never divides by a small
sigma or alpha, and is exactly 1 where the weight is the network's own (the "simple" loss of DDPM is weight
"noise" with prediction "noise"). Times must lie where `half_logsnr` is finite, [t_min, t_max].

Source: Lai et al. 2025, arXiv:2510.21890, tables 2.2 and 2.4 of our notes; papers named at each weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from undiffuse.process.schedules import Schedule


@dataclass(frozen=True)
class Levels:
    """Noise levels at times `t` of a schedule; float64 (B,) or (B, F)."""

    schedule: Schedule
    t: Tensor

    @cached_property
    def half_logsnr(self) -> Tensor:
        """log(alpha / sigma)."""
        return self.schedule.half_logsnr(self.t)

    @cached_property
    def log_snr(self) -> Tensor:
        """log(alpha^2 / sigma^2), twice `half_logsnr`."""
        return 2 * self.half_logsnr

    @cached_property
    def log_rate(self) -> Tensor:
        """log(-d half_logsnr / dt)."""
        schedule, t = self.schedule, self.t
        return torch.log(schedule.sigma_slope(t) / schedule.sigma(t) - schedule.alpha_slope(t) / schedule.alpha(t))


@dataclass(frozen=True, kw_only=True)
class LossWeight:
    """A weight by name with its parameters.

    Args:
        name: A key of `LOG_WEIGHTS`, or "own": uniform on the error of what the network predicts.
        min_snr_gamma: Ceiling of the SNR of "min-snr".
        p2_k: Offset of the SNR of "p2".
        p2_gamma: Exponent of "p2".
        bias: b of "sigmoid", in nats of log-SNR.
        data_std: Standard deviation of "edm".

    Raises:
        ValueError: The name is unknown.
    """

    name: str = "own"
    min_snr_gamma: float = 5.0
    p2_k: float = 1.0
    p2_gamma: float = 1.0
    bias: float = 0.0
    data_std: float = 1.0

    def __post_init__(self) -> None:
        if self.name != "own" and self.name not in LOG_WEIGHTS:
            raise ValueError(f"weight={self.name!r} is unknown; choose 'own' or one of {', '.join(LOG_WEIGHTS)}.")

    def log(self, levels: Levels, prediction: str = "data") -> Tensor:
        """Return the logarithm of the multiplier of |D - x_0|^2, in the shape of the times."""
        return LOG_WEIGHTS[prediction if self.name == "own" else self.name](levels, self)

    def relative(self, levels: Levels, prediction: str) -> Tensor:
        """Return the multiplier of the network's own squared error; exactly 1 where the two coincide."""
        if self.name in ("own", prediction):
            return torch.ones_like(levels.t)
        return torch.exp(self.log(levels, prediction) - LOG_WEIGHTS[prediction](levels, self))


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def _add(x: Tensor, log_constant: float) -> Tensor:
    return torch.logaddexp(x, torch.full_like(x, log_constant))


def _p2(levels: Levels, weight: LossWeight) -> Tensor:
    return levels.log_snr - weight.p2_gamma * _add(levels.log_snr, math.log(weight.p2_k))


LOG_WEIGHTS: dict[str, Callable[[Levels, LossWeight], Tensor]] = {
    # The five predictions: the weight that is uniform on the error of each is its `ratio`.
    "data": lambda levels, weight: torch.zeros_like(levels.t),
    "noise": lambda levels, weight: levels.log_snr,
    "v": lambda levels, weight: _softplus(levels.log_snr),  # also off the circle: (alpha^2 + sigma^2) / sigma^2
    "velocity": lambda levels, weight: 2 * (torch.log(levels.schedule.alpha(levels.t)) + levels.log_rate),
    "edm": lambda levels, weight: _add(levels.log_snr, -2 * math.log(weight.data_std)),
    # Published weights beyond them.
    "rf-velocity": lambda levels, weight: 2 * _softplus(levels.half_logsnr),
    "min-snr": lambda levels, weight: levels.log_snr.clamp(max=math.log(weight.min_snr_gamma)),  # Hang et al. 2023
    "p2": _p2,  # Choi et al. 2022
    "truncated-snr": lambda levels, weight: levels.log_snr.clamp(min=0.0),  # Salimans and Ho 2022
    "elbo": lambda levels, weight: levels.log_snr + levels.log_rate,  # -SNR'(t) / 2: Kingma et al. 2021
    "sigmoid": lambda levels, weight: levels.log_snr + _log_sigmoid(weight.bias - levels.log_snr),  # Hoogeboom 2024
}
"""Name -> log of the multiplier of |D - x_0|^2."""


def _log_sigmoid(x: Tensor) -> Tensor:
    return -_softplus(-x)
