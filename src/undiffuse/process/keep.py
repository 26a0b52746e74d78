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

    @property
    def has_masks(self) -> bool:
        """Whether masks follow a course of their own, so that no fixed share of the lost tokens is masked."""
        return False

    def masked(self, t: Tensor, share: float) -> Tensor:
        """Return the probability that a token is masked by time `t`.

        Args:
            t: Times.
            share: Share of the lost tokens that are masked; a schedule with masks of its own minds only 0 and 1.
        """
        return share * self.drop(t)


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
class RootCosineKeep(KeepSchedule):
    """keep = cos(a (t + c)) / cos(a c) with a = (pi / 2) / (1 + c): the square root of Nichol's alpha-bar.

    The uniform schedule of VQ-DDM: as many tokens are kept as `cosine` keeps of the signal's amplitude, not of its
    variance. Their code clips the last of 4000 ratios, which leaves a keep of 1e-5 at t = 1; here it is 0.

    Args:
        offset: c, which keeps the first steps from being too small.

    Raises:
        ValueError: `offset` is below 0.

    Source: Hu et al. 2021, "Global Context with Discrete Diffusion in Vector Quantised Modelling for Image Generation",
        arXiv:2112.01799, and its code.
    """

    name = "root-cosine"
    offset: float = 0.008

    def __post_init__(self) -> None:
        if not self.offset >= 0:
            raise ValueError(f"offset={self.offset} but it must be 0 or above; the paper takes 0.008.")

    @property
    def _rate(self) -> float:
        return _QUARTER / (1.0 + self.offset)

    @property
    def _scale(self) -> float:
        return 1.0 / math.cos(self._rate * self.offset)

    def keep(self, t: Tensor) -> Tensor:
        # cos(a (t + c)) = sin(a (1 - t)) is exactly 0 at the end, as 1 - drop is exactly 1 at the start.
        return torch.where(t < 0.5, 1.0 - self.drop(t), self._scale * torch.sin(self._rate * (1.0 - t)))

    def drop(self, t: Tensor) -> Tensor:
        half = 0.5 * self._rate * t  # cos p - cos q = 2 sin((p + q) / 2) sin((q - p) / 2), without cancellation
        return 2.0 * self._scale * torch.sin(self._rate * self.offset + half) * torch.sin(half)

    def slope(self, t: Tensor) -> Tensor:
        return -self._rate * self._scale * torch.sin(self._rate * (t + self.offset))

    def time(self, keep: Tensor) -> Tensor:
        turned = torch.acos((keep / self._scale).clamp(0.0, 1.0)) / self._rate
        return (turned - self.offset).clamp(0.0, 1.0)


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


@dataclass(frozen=True)
class VQDiffusionKeep(KeepSchedule):
    """The released schedule of VQ-Diffusion: a table of T levels, and one of its own for masks; linear in between.

    Level i = 0 .. T - 1 lies at t = (i + 1) / T, with keep from `keep_start` to `keep_end` and masked from `mask_start`
    to `mask_end`. What is neither kept nor masked is 1e-6 at every level: the released models are in effect masked
    diffusion, although the paper describes 0.1 of replaced tokens (which `LinearKeep` with a share of 0.9 gives). The
    first level is almost clean, so T levels are T - 1 steps of a masked chain and a final draw.

    Args:
        levels: Number T of levels, at least 2.
        keep_start, keep_end: Keep probability at the first and the last level.
        mask_start, mask_end: Probability of a mask there.

    Raises:
        ValueError: Fewer than 2 levels, keep that does not fall or masks that do not rise, or more than 1 in all.

    Source: the code of Gu et al. 2022, arXiv:2111.14822, and `VQDiffusionScheduler` of diffusers, in float64.
    """

    name = "vq-diffusion"
    levels: int = 100
    keep_start: float = 0.99999
    keep_end: float = 0.000009
    mask_start: float = 0.000009
    mask_end: float = 0.99999

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels={self.levels} but a table needs at least 2; the released models have 100.")
        if not 1 > self.keep_start > self.keep_end >= 0 or not 0 <= self.mask_start < self.mask_end <= 1:
            raise ValueError(
                f"keep runs from {self.keep_start} to {self.keep_end} and masks from {self.mask_start} to "
                f"{self.mask_end}; keep must fall within [0, 1) and masks rise within [0, 1]."
            )
        if max(self.keep_start + self.mask_start, self.keep_end + self.mask_end) > 1:
            raise ValueError("kept and masked tokens are more than all tokens at one end; they add up to 1 at most.")

    @property
    def has_masks(self) -> bool:
        """True."""
        return True

    def drop(self, t: Tensor) -> Tensor:
        return self._table(t, 1.0 - self.keep_start, 1.0 - self.keep_end)

    def slope(self, t: Tensor) -> Tensor:
        later = (self.keep_end - self.keep_start) * self.levels / (self.levels - 1)
        return torch.where(t * self.levels < 1, torch.full_like(t, (self.keep_start - 1.0) * self.levels), later)

    def time(self, keep: Tensor) -> Tensor:
        early = (1.0 - keep) / (1.0 - self.keep_start)
        late = 1.0 + (self.keep_start - keep) / (self.keep_start - self.keep_end) * (self.levels - 1)
        return (torch.where(keep > self.keep_start, early, late) / self.levels).clamp(0.0, 1.0)

    def masked(self, t: Tensor, share: float) -> Tensor:
        """Return the table of masks, or that of lost tokens where all or none of them are masked."""
        own = 0.0 < share < 1.0
        return self._table(t, self.mask_start, self.mask_end) if own else share * self.drop(t)

    def _table(self, t: Tensor, first: float, last: float) -> Tensor:
        """From 0 at t = 0 to `first` at the first level and `last` at t = 1."""
        index = t * self.levels - 1.0
        return torch.where(index < 0, first * (index + 1.0), first + index / (self.levels - 1) * (last - first))


KEEP_SCHEDULES: dict[str, type[KeepSchedule]] = {
    "linear": LinearKeep,
    "cosine": CosineKeep,
    "root-cosine": RootCosineKeep,
    "polynomial": PolynomialKeep,
    "loglinear": LogLinearKeep,
    "mdlm-cosine": MDLMCosineKeep,
    "cosine-squared": CosineSquaredKeep,
    "mdlm-linear": ExponentialKeep,
    "geometric": GeometricKeep,
    "vq-diffusion": VQDiffusionKeep,
}


def make_keep(name: str, **options: float) -> KeepSchedule:
    """Build the keep schedule called `name`; `options` are its fields (`power`, `eps`, `rate`, `levels`).

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
