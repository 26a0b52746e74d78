"""Keep schedules: the probability that a token of the data is still itself at time `t`.

`keep(t)` falls from 1 at t = 0 to 0 (or nearly 0) at t = 1. It is the discrete world's alpha. The
second half of this file holds the schedules of MDLM under names of their own, for loading: their
`cosine` is not ours, and most of them stop a little above 0. Only what is lost, `drop = 1 - keep`, is
written as a formula: near the clean end it is the small number, and the likelihood bound divides by it.

Sources: Zheng et al. 2024, arXiv:2409.02908; Sahoo et al. 2024, arXiv:2406.07524 (MDLM).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.words import did_you_mean

_QUARTER = math.pi / 2  # a quarter turn, in radians


@dataclass(frozen=True)
class KeepSchedule(ABC):
    """Keep probability in closed form. `t` is a float64 tensor in [0, 1]; every method is elementwise."""

    name: ClassVar[str]

    def keep(self, t: Tensor) -> Tensor:
        """Return the probability that a token has not been touched by time `t`."""
        return 1.0 - self.drop(t)

    @abstractmethod
    def drop(self, t: Tensor) -> Tensor:
        """Return 1 - keep(t), exact to rounding also where it is small."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """Return the derivative of `keep` by `t`: 0 or below."""

    @abstractmethod
    def time(self, keep: Tensor) -> Tensor:
        """Return the time at which the keep probability is `keep`, clamped to [0, 1] outside of its range."""


@dataclass(frozen=True)
class LinearKeep(KeepSchedule):
    """keep = 1 - t."""

    name = "linear"

    def drop(self, t: Tensor) -> Tensor:
        return t

    def slope(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def time(self, keep: Tensor) -> Tensor:
        return (1.0 - keep).clamp(0.0, 1.0)


@dataclass(frozen=True)
class CosineKeep(KeepSchedule):
    """keep = 1 - cos(pi (1 - t) / 2) = 1 - sin(pi t / 2): most tokens are lost early, few at the end."""

    name = "cosine"

    def drop(self, t: Tensor) -> Tensor:
        return torch.sin(_QUARTER * t)

    def slope(self, t: Tensor) -> Tensor:
        return -_QUARTER * torch.cos(_QUARTER * t)

    def time(self, keep: Tensor) -> Tensor:
        return torch.asin((1.0 - keep).clamp(0.0, 1.0)) / _QUARTER


@dataclass(frozen=True)
class PolynomialKeep(KeepSchedule):
    """keep = 1 - t^power.

    Args:
        power: The exponent, above 0.

    Raises:
        ValueError: `power` is 0 or below.
    """

    name = "polynomial"
    power: float = 2.0

    def __post_init__(self) -> None:
        if not self.power > 0:
            raise ValueError(f"power={self.power} but 1 - t^power falls from 1 to 0 only for a power above 0.")

    def drop(self, t: Tensor) -> Tensor:
        return t**self.power

    def slope(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1.0)

    def time(self, keep: Tensor) -> Tensor:
        return (1.0 - keep).clamp(0.0, 1.0) ** (1.0 / self.power)


@dataclass(frozen=True)
class _Floored(KeepSchedule):
    """A schedule that stops at keep(1) = eps. Start from all masks, which is exact whatever keep(1) is."""

    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"eps={self.eps} but it is the keep probability at t = 1; expected 0 <= eps < 1.")

    def _share(self, keep: Tensor) -> Tensor:
        """Return what is lost as a share of what can be lost."""
        return ((1.0 - keep) / (1.0 - self.eps)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class LogLinearKeep(_Floored):
    """MDLM's `loglinear`: keep = 1 - (1 - eps) t."""

    name = "loglinear"

    def drop(self, t: Tensor) -> Tensor:
        return (1.0 - self.eps) * t

    def slope(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.eps - 1.0)

    def time(self, keep: Tensor) -> Tensor:
        return self._share(keep)


@dataclass(frozen=True)
class MDLMCosineKeep(_Floored):
    """MDLM's `cosine`: keep = eps + (1 - eps) cos(pi t / 2). Not `CosineKeep`: few tokens are lost early."""

    name = "mdlm-cosine"

    def drop(self, t: Tensor) -> Tensor:
        return (1.0 - self.eps) * 2.0 * torch.sin(0.5 * _QUARTER * t) ** 2  # 1 - cos without cancellation

    def slope(self, t: Tensor) -> Tensor:
        return (self.eps - 1.0) * _QUARTER * torch.sin(_QUARTER * t)

    def time(self, keep: Tensor) -> Tensor:
        return (2.0 / _QUARTER * torch.asin((0.5 * self._share(keep)).sqrt())).clamp(0.0, 1.0)


@dataclass(frozen=True)
class CosineSquaredKeep(_Floored):
    """MDLM's `cosinesqr`: keep = eps + (1 - eps) cos^2(pi t / 2)."""

    name = "cosine-squared"

    def drop(self, t: Tensor) -> Tensor:
        return (1.0 - self.eps) * torch.sin(_QUARTER * t) ** 2

    def slope(self, t: Tensor) -> Tensor:
        return (self.eps - 1.0) * _QUARTER * torch.sin(2.0 * _QUARTER * t)

    def time(self, keep: Tensor) -> Tensor:
        return torch.asin(self._share(keep).sqrt()) / _QUARTER


@dataclass(frozen=True)
class ExponentialKeep(KeepSchedule):
    """MDLM's `linear` (linear in the total noise): keep = exp(-rate t), exp(-10) = 4.5e-5 at t = 1."""

    name = "mdlm-linear"
    rate: float = 10.0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate={self.rate} but exp(-rate t) falls only for a rate above 0.")

    def drop(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.rate * t)

    def slope(self, t: Tensor) -> Tensor:
        return -self.rate * torch.exp(-self.rate * t)

    def time(self, keep: Tensor) -> Tensor:
        return (-torch.log(keep) / self.rate).clamp(0.0, 1.0)


@dataclass(frozen=True)
class GeometricKeep(KeepSchedule):
    """MDLM's `geometric`: -log keep = eps^(1 - t), so .999 just above t = 0 and .37 at t = 1.

    As everywhere, t = 0 is the isolated clean end: keep is exactly 1 there and jumps to .999 above it.

    Args:
        eps: Total noise just above t = 0, in (0, 1).

    Raises:
        ValueError: `eps` is outside of (0, 1).
    """

    name = "geometric"
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 < self.eps < 1:
            raise ValueError(f"eps={self.eps} but it is the least total noise; expected 0 < eps < 1.")

    def drop(self, t: Tensor) -> Tensor:
        return torch.where(t > 0, -torch.expm1(-(self.eps ** (1.0 - t))), torch.zeros_like(t))

    def slope(self, t: Tensor) -> Tensor:
        total = self.eps ** (1.0 - t)
        return math.log(self.eps) * total * torch.exp(-total)

    def time(self, keep: Tensor) -> Tensor:
        return (1.0 - torch.log(-torch.log(keep)) / math.log(self.eps)).clamp(0.0, 1.0)


KEEP_SCHEDULES: dict[str, type[KeepSchedule]] = {
    "linear": LinearKeep,
    "cosine": CosineKeep,
    "polynomial": PolynomialKeep,
    "loglinear": LogLinearKeep,
    "mdlm-cosine": MDLMCosineKeep,
    "cosine-squared": CosineSquaredKeep,
    "mdlm-linear": ExponentialKeep,
    "geometric": GeometricKeep,
}


def make_keep(name: str, **options: float) -> KeepSchedule:
    """Build the keep schedule called `name`; `options` are its fields (`power`, `eps`, `rate`).

    Raises:
        ValueError: The name or an option is unknown.
    """
    if name not in KEEP_SCHEDULES:
        near = did_you_mean(name, KEEP_SCHEDULES)
        raise ValueError(f"keep schedule {name!r} is unknown; choose one of {', '.join(KEEP_SCHEDULES)}.{near}")
    try:
        return KEEP_SCHEDULES[name](**options)
    except TypeError as error:
        raise ValueError(f"keep schedule {name!r} does not take these options: {error}.") from error


def keep_to_json(schedule: KeepSchedule) -> dict[str, Any]:
    """Return {"name": ..., options}, from which `keep_from_json` rebuilds it."""
    return {"name": schedule.name, **asdict(schedule)}


def keep_from_json(fields: dict[str, Any]) -> KeepSchedule:
    """Rebuild a keep schedule from `keep_to_json`."""
    return make_keep(**fields)
