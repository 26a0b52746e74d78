"""Noise models: how a measurement is disturbed, as a sampler and as a likelihood.

Measurements are in model units, where a picture's black is -1 and white is 1; photon counts follow the intensity
u = (y + 1) / 2. Standard deviations and widths are in model units too; `parse_noise` reads them in image units [0, 1],
in which people write them, and doubles them. Every draw is keyed: a function of the source, the step and the position.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.noise import NoiseSource

STREAM = "measure"


@dataclass(frozen=True)
class NoiseModel:
    """The law of a measurement y given its clean value y0."""

    name: ClassVar[str] = ""

    def sample(self, y0: Tensor, noise: NoiseSource, step: int = 0) -> Tensor:
        """Return a measurement (B, *) of clean values (B, *); each `step` is another, independent one."""
        raise NotImplementedError

    def log_prob(self, y: Tensor, y0: Tensor) -> Tensor:
        """Return log p(y | y0) summed over each item, (B,), normalised; for counts and atoms of their probabilities."""
        return self.log_density(y, y0).flatten(1).sum(1)

    def log_density(self, y: Tensor, y0: Tensor) -> Tensor:
        """Return log p(y | y0) of every number by itself, shaped as y."""
        raise NotImplementedError

    def std_like(self, y: Tensor) -> Tensor:
        """Return the standard deviation of the noise given y alone: a number () or a map shaped as y."""
        raise NotImplementedError

    def known(self, y: Tensor) -> Tensor | None:
        """Return where y says anything about its clean value (bool, as y), or None for everywhere."""
        return None

    def to_json(self) -> dict[str, Any]:
        """Return name and parameters as plain JSON types."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class NoNoise(NoiseModel):
    """y = y0."""

    name: ClassVar[str] = "none"

    def sample(self, y0: Tensor, noise: NoiseSource, step: int = 0) -> Tensor:
        return y0

    def log_density(self, y: Tensor, y0: Tensor) -> Tensor:
        return torch.where(y == y0, 0.0, -math.inf)

    def std_like(self, y: Tensor) -> Tensor:
        return y.new_zeros(())


@dataclass(frozen=True)
class GaussianNoise(NoiseModel):
    """y = y0 + std * z with z standard normal; std in model units."""

    name: ClassVar[str] = "gaussian"
    std: float = field(default=0.1, metadata={"units": "image"})

    def __post_init__(self) -> None:
        _positive(self, "std")

    def sample(self, y0: Tensor, noise: NoiseSource, step: int = 0) -> Tensor:
        return y0 + self.std * noise.normal(STREAM, step, tuple(y0.shape[1:]), y0.dtype)

    def log_density(self, y: Tensor, y0: Tensor) -> Tensor:
        return -0.5 * ((y - y0) / self.std) ** 2 - math.log(self.std) - 0.5 * math.log(2 * math.pi)

    def std_like(self, y: Tensor) -> Tensor:
        return y.new_tensor(self.std)


@dataclass(frozen=True)
class PoissonNoise(NoiseModel):
    """Counts: (y + 1) / 2 = Poisson(scale * u) / scale, with `scale` photons at white. `log_prob` is of the counts."""

    name: ClassVar[str] = "poisson"
    scale: float = 30.0

    def __post_init__(self) -> None:
        _positive(self, "scale")

    def sample(self, y0: Tensor, noise: NoiseSource, step: int = 0) -> Tensor:
        counts = poisson(self.scale * _intensity(y0), noise.uniform(STREAM, step, tuple(y0.shape[1:])))
        return (2 * counts / self.scale - 1).to(y0.dtype)

    def log_density(self, y: Tensor, y0: Tensor) -> Tensor:
        counts = self.scale * (y + 1) / 2
        rate = self.scale * ((y0 + 1) / 2).clamp_min(0)
        found = torch.xlogy(counts.clamp_min(0), rate) - rate - torch.lgamma(counts.clamp_min(0) + 1)
        return torch.where(counts > -1e-3, found, -math.inf)

    def std_like(self, y: Tensor) -> Tensor:
        """Return 2 sqrt(u / scale) with u from y, at least that of one count."""
        return 2 * (((y + 1) / 2).clamp_min(1 / self.scale) / self.scale).sqrt()


@dataclass(frozen=True)
class PoissonGaussianNoise(NoiseModel):
    """Counts of `scale` photons at white, read with Gaussian noise of `std` (model units)."""

    name: ClassVar[str] = "poisson_gaussian"
    scale: float = 30.0
    std: float = field(default=0.1, metadata={"units": "image"})

    def __post_init__(self) -> None:
        _positive(self, "scale")
        _positive(self, "std")

    def sample(self, y0: Tensor, noise: NoiseSource, step: int = 0) -> Tensor:
        counted = PoissonNoise(self.scale).sample(y0, noise, 2 * step)
        return GaussianNoise(self.std).sample(counted, noise, 2 * step + 1)

    def log_density(self, y: Tensor, y0: Tensor) -> Tensor:
        """Sum over the counts within 8 standard deviations (and 8 counts) of their mean."""
        rate = self.scale * ((y0 + 1) / 2).clamp_min(0)
        reach = 8 * rate.detach().sqrt() + 8
        first = (rate.detach() - reach).floor().clamp_min(0)
        read = GaussianNoise(self.std)
        total = torch.full_like(y, -math.inf)
        for offset in range(int(2 * reach.max()) + 2):
            counts = first + offset
            chance = torch.xlogy(counts, rate) - rate - torch.lgamma(counts + 1)
            total = torch.logaddexp(total, chance + read.log_density(y, 2 * counts / self.scale - 1))
        return total

    def std_like(self, y: Tensor) -> Tensor:
        """Return the root of both variances."""
        return (PoissonNoise(self.scale).std_like(y).square() + self.std**2).sqrt()


@dataclass(frozen=True)
class SaltPepperNoise(NoiseModel):
    """Each number is replaced by -1 or by 1 with probability p / 2 each. `log_prob` is of the three atoms."""

    name: ClassVar[str] = "salt_pepper"
    p: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"p={self.p} of salt-and-pepper noise must lie between 0 and 1.")

    def sample(self, y0: Tensor, noise: NoiseSource, step: int = 0) -> Tensor:
        draw = noise.uniform(STREAM, step, tuple(y0.shape[1:]))
        return torch.where(draw < self.p / 2, -1.0, torch.where(draw < self.p, 1.0, y0)).to(y0.dtype)

    def log_density(self, y: Tensor, y0: Tensor) -> Tensor:
        chance = (y == y0) * (1 - self.p) + ((y == -1) | (y == 1)) * (self.p / 2)
        return chance.to(y.dtype).log()

    def std_like(self, y: Tensor) -> Tensor:
        """Return 0: what is not replaced is exact. See `known`."""
        return y.new_zeros(())

    def known(self, y: Tensor) -> Tensor:
        """Return where y is strictly within the range."""
        return (y > -1) & (y < 1)


@dataclass(frozen=True)
class LaplaceNoise(NoiseModel):
    """y = y0 + b * L with density exp(-|L|) / 2; b in model units."""

    name: ClassVar[str] = "laplace"
    b: float = field(default=0.1, metadata={"units": "image"})

    def __post_init__(self) -> None:
        _positive(self, "b")

    def sample(self, y0: Tensor, noise: NoiseSource, step: int = 0) -> Tensor:
        centred = noise.uniform(STREAM, step, tuple(y0.shape[1:])) + 2.0**-54 - 0.5
        return y0 - (self.b * centred.sign() * torch.log1p(-2 * centred.abs())).to(y0.dtype)

    def log_density(self, y: Tensor, y0: Tensor) -> Tensor:
        return -(y - y0).abs() / self.b - math.log(2 * self.b)

    def std_like(self, y: Tensor) -> Tensor:
        return y.new_tensor(self.b * math.sqrt(2))


@dataclass(frozen=True)
class SpeckleNoise(NoiseModel):
    """Intensity times gamma noise of mean 1: (y + 1) / 2 = u * g, g ~ Gamma(looks, rate looks)."""

    name: ClassVar[str] = "speckle"
    looks: float = 4.0

    def __post_init__(self) -> None:
        _positive(self, "looks")

    def sample(self, y0: Tensor, noise: NoiseSource, step: int = 0) -> Tensor:
        gain = gamma(self.looks, noise.uniform(STREAM, step, tuple(y0.shape[1:]))) / self.looks
        return (2 * _intensity(y0) * gain - 1).to(y0.dtype)

    def log_density(self, y: Tensor, y0: Tensor) -> Tensor:
        u, clean, n = (y + 1) / 2, (y0 + 1) / 2, self.looks
        inside = (u > 0) & (clean > 0)
        u, clean = torch.where(inside, u, 1.0), torch.where(inside, clean, 1.0)
        found = n * math.log(n) - math.lgamma(n) + (n - 1) * u.log() - n * clean.log() - n * u / clean - math.log(2)
        return torch.where(inside, found, -math.inf)

    def std_like(self, y: Tensor) -> Tensor:
        return ((y + 1).clamp_min(1e-3)) / math.sqrt(self.looks)


@dataclass(frozen=True)
class UniformNoise(NoiseModel):
    """y = y0 + a number between -half_width and half_width (model units)."""

    name: ClassVar[str] = "uniform"
    half_width: float = field(default=0.1, metadata={"units": "image"})

    def __post_init__(self) -> None:
        _positive(self, "half_width")

    def sample(self, y0: Tensor, noise: NoiseSource, step: int = 0) -> Tensor:
        return y0 + (self.half_width * (2 * noise.uniform(STREAM, step, tuple(y0.shape[1:])) - 1)).to(y0.dtype)

    def log_density(self, y: Tensor, y0: Tensor) -> Tensor:
        return torch.where((y - y0).abs() <= self.half_width, -math.log(2 * self.half_width), -math.inf).to(y.dtype)

    def std_like(self, y: Tensor) -> Tensor:
        return y.new_tensor(self.half_width / math.sqrt(3))


def poisson(rate: Tensor, uniform: Tensor) -> Tensor:
    """Return Poisson counts by inversion: the smallest k with P(count <= k) > uniform; float64, shaped as `rate`."""
    rate = rate.double()
    low = torch.full_like(rate, -1.0)  # P(count <= low) <= uniform always, P(count <= high) > uniform
    high = (rate + 12 * rate.sqrt() + 40).ceil()
    for _ in range(int(math.log2(float(high.max()) + 2)) + 2):
        middle = ((low + high) / 2).floor().clamp_min(0)
        over = torch.special.gammaincc(middle + 1, rate) > uniform
        high = torch.where(over, middle, high)
        low = torch.where(over, low, middle)
    return torch.where(rate > 0, high, 0.0)


def gamma(shape: float, uniform: Tensor) -> Tensor:
    """Return numbers of the gamma law with this shape and rate 1 by inversion, float64."""
    shapes = torch.full_like(uniform, shape)
    low, high = torch.zeros_like(uniform), torch.full_like(uniform, shape + 12 * math.sqrt(shape) + 40)
    for _ in range(56):
        middle = (low + high) / 2
        under = torch.special.gammainc(shapes, middle) < uniform
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return (low + high) / 2


def _intensity(y0: Tensor) -> Tensor:
    u = (y0 + 1) / 2
    below = int((u < -1e-5).sum())
    if below:
        warnings.warn(
            f"{below} values lie below -1, a negative intensity, which gives no photons; they count as 0.", stacklevel=3
        )
    return u.clamp_min(0)


def _positive(model: NoiseModel, name: str) -> None:
    value = getattr(model, name)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value} of {model.name} noise must be above 0; leave the noise out for none.")
