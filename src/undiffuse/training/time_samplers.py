r"""Laws of the training times, as quantile functions of keyed uniforms.

A law is a map `t = Q(u)` with its slope `|dQ/du| = 1 / p(t)`, the importance factor that turns an average
under the law into an average under uniform times. Stratification acts on the uniforms, so it serves every law;
independent times per frame (`FrameTimes`) are the same map on more uniforms.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from undiffuse.noise import NoiseSource
from undiffuse.process.schedules import Schedule
from undiffuse.training.share import over_batches

_EDGE = 2.0**-54  # uniforms have 53 bits; half a unit keeps the normal quantile finite at 0


class Times(NamedTuple):
    """Times float64 (B,) or (B, F), and 1 / density at each."""

    t: Tensor
    importance: Tensor


class TimeLaw(Protocol):
    """A law of times."""

    def __call__(self, u: Tensor) -> Times:
        """Map uniforms in [0, 1), float64 of any shape, to times."""
        ...


class Span(Protocol):
    """Where times lie; schedules are spans."""

    @property
    def t_min(self) -> float:
        """The smallest time."""
        ...

    @property
    def t_max(self) -> float:
        """The largest time."""
        ...


@dataclass(frozen=True)
class _UnitSpan:
    t_min: float = 0.0
    t_max: float = 1.0


UNIT_SPAN: Span = _UnitSpan()
"""All of [0, 1]: the levels of categorical processes."""


@dataclass(frozen=True)
class UniformTimes:
    """Uniform on [t_min, t_max], where `half_logsnr` is finite."""

    schedule: Span

    def __call__(self, u: Tensor) -> Times:
        """Map uniforms to times."""
        width = self.schedule.t_max - self.schedule.t_min
        return Times(self.schedule.t_min + width * u, torch.full_like(u, width))


@dataclass(frozen=True)
class LogitNormalTimes:
    """t = sigmoid(mean + std n). Source: Esser et al. 2024, arXiv:2403.03206 (0, 1); MeanFlow uses (-0.4, 1)."""

    schedule: Schedule
    mean: float = 0.0
    std: float = 1.0

    def __call__(self, u: Tensor) -> Times:
        """Map uniforms to times."""
        n = _normal_quantile(u)
        t = torch.sigmoid(self.mean + self.std * n)
        slope = t * (1 - t) * self.std * _normal_quantile_slope(n)
        return _inside(self.schedule, t, slope)


@dataclass(frozen=True)
class LogNormalTimes:
    """ln rho ~ N(mean, std^2) with rho = sigma / alpha. Source: Karras et al. 2022, arXiv:2206.00364 (-1.2, 1.2)."""

    schedule: Schedule
    mean: float = -1.2
    std: float = 1.2

    def __call__(self, u: Tensor) -> Times:
        """Map uniforms to times."""
        n = _normal_quantile(u)
        schedule = self.schedule
        level = -(self.mean + self.std * n)
        t = schedule.time(level)
        rate = schedule.sigma_slope(t) / schedule.sigma(t) - schedule.alpha_slope(t) / schedule.alpha(t)
        # By the level: `time` brings levels beyond the range to its ends, from which rounding may lead back inside.
        ends = schedule.half_logsnr(torch.tensor([schedule.t_max, schedule.t_min], dtype=t.dtype, device=t.device))
        inside = (level > ends[0]) & (level < ends[1])
        return _inside(schedule, t, torch.where(inside, self.std * _normal_quantile_slope(n) / rate, 0.0))


@dataclass(frozen=True)
class ModeTimes:
    """t = 1 - u - s (cos^2(pi u / 2) - 1 + u). Source: Esser et al. 2024, eq. 20 (s = 1.29)."""

    schedule: Schedule
    scale: float = 1.29

    def __call__(self, u: Tensor) -> Times:
        """Map uniforms to times."""
        t = 1 - u - self.scale * (torch.cos(0.5 * math.pi * u) ** 2 - 1 + u)
        slope = 1 + self.scale * (1 - 0.5 * math.pi * torch.sin(math.pi * u))
        return _inside(self.schedule, t, slope)


@dataclass(frozen=True)
class LastStepTimes:
    """The last of a table's T steps, pure noise at t = 1, once in T times; else another law's times, which end before.

    Sampling begins at that step, and a network learns there what the data look like on average. An average under
    uniform times counts it as one step of T. Source: Lin et al. 2023, arXiv:2305.08891, sections 3.1 and 3.2.

    Args:
        law: On [t_min, t_max].
        steps: T.
    """

    law: TimeLaw
    steps: int

    def __call__(self, u: Tensor) -> Times:
        """Map uniforms to times."""
        share = 1 - 1 / self.steps
        last = u >= share
        t, importance = self.law((u / share).clamp(max=1 - _EDGE))
        return Times(torch.where(last, 1.0, t), torch.where(last, 1.0, importance / share))


class AdaptiveTimes(nn.Module, ABC):
    """Times drawn by bin in proportion to the sizes that the bin's losses had so far.

    Uniform until every bin has seen `memory` losses. The losses must be divided by the law's density (multiplied by
    `importance`); `update` takes them before that. State: buffers, saved with a run.
    """

    seen: Tensor

    def __init__(self, schedule: Span, bins: int, memory: int, floor: float) -> None:
        super().__init__()
        self.schedule, self.bins, self.memory, self.floor = schedule, bins, memory, floor
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.int64))

    @abstractmethod
    def sizes(self) -> Tensor:
        """Return the size of each bin's losses, float64 (bins,)."""

    @abstractmethod
    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from per-sample losses (B,) at times (B,).

        Losses that are not finite are left out: one would make every later probability NaN.
        """

    def probabilities(self) -> Tensor:
        """Return the probability of each bin, float64 (bins,); `floor` of it stays uniform."""
        size = self.sizes()
        warm = (self.seen >= self.memory).all() & (size.sum() > 0)
        size = torch.where(warm, size, torch.ones_like(size))
        return (1 - self.floor) * size / size.sum() + self.floor / self.bins

    def importance_at(self, t: Tensor) -> Tensor:
        """Return 1 / density at times `t`."""
        return (self.schedule.t_max - self.schedule.t_min) / (self.bins * self.probabilities()[self._bin(t)])

    def forward(self, u: Tensor) -> Times:
        """Map uniforms to times through the piecewise linear quantile function."""
        p = self.probabilities()
        edges = torch.cat((p.new_zeros(1), p.cumsum(0)))
        bin = (torch.searchsorted(edges, u.contiguous(), right=True) - 1).clamp(0, self.bins - 1)
        slope = 1 / (self.bins * p[bin])
        unit = bin.double() / self.bins + (u - edges[bin]) * slope
        low, high = self.schedule.t_min, self.schedule.t_max
        return Times((low + (high - low) * unit).clamp(low, high), slope * (high - low))

    def _bin(self, t: Tensor) -> Tensor:
        low, high = self.schedule.t_min, self.schedule.t_max
        return ((t - low) / (high - low) * self.bins).long().clamp(0, self.bins - 1)

    def _sorted(self, t: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the bin of each loss and the losses in order of bins, and how many each bin gets: (B,), (B,), (M,).

        Losses that are not finite go to one bin more, M = bins + 1: to drop them here would wait for the device.
        """
        bin = torch.where(losses.isfinite(), self._bin(t), self.bins)
        order = torch.argsort(bin, stable=True)
        count = bin.new_zeros(self.bins + 1).index_add_(0, bin, torch.ones_like(bin))
        return bin[order], losses.double()[order], count


class ImportanceTimes(AdaptiveTimes):
    """Times drawn by bin in proportion to the root mean square of the bin's last `memory` losses.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, section 3.3.
    """

    losses: Tensor

    def __init__(self, schedule: Span, bins: int = 100, memory: int = 10, floor: float = 1e-3) -> None:
        super().__init__(schedule, bins, memory, floor)
        self.register_buffer("losses", torch.zeros(bins, memory, dtype=torch.float64))

    def sizes(self) -> Tensor:
        """Return the root mean square of what each bin remembers."""
        return self.losses.square().mean(1).sqrt()

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        """Put losses into their bins; each bin keeps the last `memory`."""
        bin, values, count = self._sorted(t, losses)
        spare = torch.full_like(self.seen[:1], self.bins)
        rank = torch.arange(len(bin), device=bin.device) - (count.cumsum(0) - count)[bin]
        recent = rank >= count[bin] - self.memory  # earlier ones would be overwritten in the same batch
        slot = (torch.cat((self.seen, spare))[bin] + rank) % self.memory
        kept = torch.cat((self.losses, torch.zeros_like(self.losses[:1])))
        kept[torch.where(recent, bin, spare), slot] = values
        self.losses.copy_(kept[:-1])
        self.seen += count[:-1]


class RunningTimes(AdaptiveTimes):
    """Times drawn by bin in proportion to the root of a running mean of the bin's squared losses, plus 1e-4.

    The first bin takes the size of the second: the last term of a discrete bound is -log p(x_0 | x_t), of another size
    than the divergences, and not to be drawn for that.

    Args:
        schedule: Where times lie.
        bins: Number of bins, at least 2 for that.
        memory: Losses that every bin must have seen before times stop being uniform.
        decay: What each loss leaves of the mean of those before it.
        floor: Share of the probability that stays uniform, which bounds `importance`.

    Source: the code of Gu et al. 2022 (VQ-Diffusion), arXiv:2111.14822.
    """

    mean_square: Tensor

    def __init__(
        self, schedule: Span, bins: int = 100, memory: int = 10, decay: float = 0.9, floor: float = 1e-3
    ) -> None:
        super().__init__(schedule, bins, memory, floor)
        self.decay = decay
        self.register_buffer("mean_square", torch.zeros(bins, dtype=torch.float64))

    def sizes(self) -> Tensor:
        """Return the root of the mean square of each bin, without the zero that it began with."""
        mean = self.mean_square / (1 - self.decay ** self.seen.clamp(min=1).double())
        size = mean.sqrt() + 1e-4
        return torch.cat((size[1:2], size[1:])) if self.bins > 1 else size

    @torch.no_grad()
    def update(self, t: Tensor, losses: Tensor) -> None:
        """Mix the mean square of a bin's new losses into its running mean, as if all of them were that mean."""
        bin, values, count = self._sorted(t, losses)
        # where, not a product: what is not finite must not reach the sum of its bin
        squares = torch.where(bin < self.bins, values, 0.0).square()
        total = self.mean_square.new_zeros(self.bins + 1).index_add_(0, bin, squares)[:-1]
        new = count[:-1]
        kept = self.decay ** new.double()
        self.mean_square.mul_(kept).add_((1 - kept) * total / new.clamp(min=1))
        self.seen += new


class TimeSampler:
    """Draws the times of a batch from keyed noise.

    Args:
        law: Quantile function of the times.
        stratified: Spread the uniforms of a batch: u_i = (u_0 + i / B) mod 1.
    """

    def __init__(self, law: TimeLaw, stratified: bool = True) -> None:
        self.law, self.stratified = law, stratified

    def draw(self, noise: NoiseSource, batch_size: int, frames: int = 0) -> Times:
        """Return times (N,), or (N, F) all equal along F where `frames` is F.

        Args:
            noise: Source of N rows, a whole number of batches.
            batch_size: Rows that are stratified together.
            frames: Number F of frames that share each time; 0 for times (N,).
        """
        times = self.law(stratified(noise, batch_size) if self.stratified else noise.uniform("time", 0, ()))
        return Times(*(part[:, None].expand(-1, frames) for part in times)) if frames else times


class FrameTimes(TimeSampler):
    """One time per clip with probability 1 - p_async, else independent times per frame (PTSS).

    With p_async = 0 it draws what `TimeSampler` draws, bit for bit.

    Args:
        base: Sampler of the shared times; its law is the marginal law of every frame.
        p_async: Probability of independent times.
        per: One coin per "clip" (as in the paper) or per "batch" (as in its code).

    Source: Liu et al. 2024, "Redefining temporal modeling in video diffusion", arXiv:2410.03160, section 3.
    """

    def __init__(self, base: TimeSampler, p_async: float = 0.2, per: Literal["clip", "batch"] = "clip") -> None:
        super().__init__(base.law, base.stratified)
        self.p_async, self.per = p_async, per

    def draw(self, noise: NoiseSource, batch_size: int, frames: int = 0) -> Times:
        """Return times (N, F)."""
        shared = super().draw(noise, batch_size, frames)
        if not self.p_async:
            return shared
        coin = over_batches(noise, batch_size, self._coins)
        own = self.law(noise.uniform("time", 2, (frames,)))
        apart = (coin < self.p_async)[:, None]
        return Times(*(torch.where(apart, a, b) for a, b in zip(own, shared, strict=True)))

    def _coins(self, noise: NoiseSource, batch_size: int) -> Tensor:
        coin = noise.uniform("time", 1, ())
        return coin if self.per == "clip" else coin.view(-1, batch_size)[:, :1].expand(-1, batch_size).reshape(-1)


def stratified(noise: NoiseSource, batch_size: int) -> Tensor:
    """Return the uniforms of times, stratified over each batch, float64 (N,)."""
    return over_batches(noise, batch_size, lambda source, rows: stratify(source.uniform("time", 0, ()), rows))


def stratify(u: Tensor, batch_size: int) -> Tensor:
    """Return (u_0 + i / B) mod 1 within each run of `batch_size` rows; each value stays uniform.

    Args:
        u: Uniforms, float64 (N,), N a multiple of `batch_size`.
        batch_size: B.
    """
    first = u.view(-1, batch_size)[:, :1]
    offsets = torch.arange(batch_size, dtype=u.dtype, device=u.device) / batch_size
    return ((first + offsets) % 1.0).reshape(-1)


def _inside(schedule: Schedule, t: Tensor, slope: Tensor) -> Times:
    """Bring times beyond [t_min, t_max] to the nearer end; they are no part of an average under uniform times."""
    inside = (t > schedule.t_min) & (t < schedule.t_max)
    return Times(t.clamp(schedule.t_min, schedule.t_max), torch.where(inside, slope, 0.0))


def _normal_quantile(u: Tensor) -> Tensor:
    return torch.special.ndtri(u + _EDGE)


def _normal_quantile_slope(n: Tensor) -> Tensor:
    return math.sqrt(2 * math.pi) * torch.exp(0.5 * n * n)
