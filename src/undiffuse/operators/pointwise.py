"""Nonlinear operators on every number by itself: clipping, quantising, low light; and haze, which is affine."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from undiffuse.operators.base import LinearOperator, Operator, Shape, double
from undiffuse.operators.diagonal import Diagonal

_DITHER = torch.tensor(
    [[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], dtype=torch.float64, device="cpu"
)


class Clip(Operator):
    """y = clip(factor x, -1, 1): an overexposed picture (HDR). Its approximate inverse is y / factor."""

    kind = "clip"
    has_pinv = True

    def __init__(self, in_shape: Shape, factor: float = 2.0) -> None:
        if factor <= 0:
            raise ValueError(f"factor={factor} of hdr must be above 0.")
        super().__init__(in_shape, in_shape, settings={"factor": float(factor)})
        self.factor = factor

    def apply(self, x: Tensor) -> Tensor:
        return (self.factor * x).clamp(-1, 1)

    def pinv(self, y: Tensor) -> Tensor:
        """Return y / factor."""
        return y / self.factor


class Quantise(Operator):
    """Round to 2^bits levels of [-1, 1], with an ordered dither on wish. Its approximate inverse is the identity.

    Args:
        in_shape: Shape of one item.
        bits: 1 to 16.
        dither: Round by the thresholds of a 4 x 4 Bayer matrix instead of one half.
        straight_through: Let gradients pass as if nothing were rounded; else they are 0.
    """

    kind = "quantise"
    has_pinv = True

    def __init__(self, in_shape: Shape, bits: int = 3, dither: bool = False, straight_through: bool = True) -> None:
        if not 1 <= bits <= 16:
            raise ValueError(f"bits={bits} of quantise must be between 1 and 16.")
        threshold = torch.full((), 0.5, dtype=torch.float64)
        if dither:
            height, width = in_shape[-2], in_shape[-1]
            tiled = ((_DITHER + 0.5) / 16).repeat(math.ceil(height / 4), math.ceil(width / 4))
            threshold = 1 - tiled[:height, :width]
        super().__init__(
            in_shape,
            in_shape,
            settings={"bits": bits, "dither": dither, "straight_through": straight_through},
            derived={"threshold": threshold},
        )
        self.levels = 2**bits - 1
        self.differentiable = straight_through

    def apply(self, x: Tensor) -> Tensor:
        u = ((x + 1) / 2).clamp(0, 1)
        rounded = (u * self.levels + self._get("threshold", x)).floor().clamp(0, self.levels) / self.levels
        return 2 * (straight_through(rounded, u) if self.differentiable else rounded) - 1

    def pinv(self, y: Tensor) -> Tensor:
        """Return y."""
        return y


class LowLight(Operator):
    """(y + 1) / 2 = (gain u)^(1 / gamma) with u = (x + 1) / 2: a dark exposure, as a camera stores it."""

    kind = "low-light"
    has_pinv = True

    def __init__(self, in_shape: Shape, gain: float = 0.1, gamma: float = 2.2) -> None:
        if not 0 < gain <= 1 or gamma <= 0:
            raise ValueError(f"gain={gain} must be above 0 and at most 1, and gamma={gamma} above 0.")
        super().__init__(in_shape, in_shape, settings={"gain": float(gain), "gamma": float(gamma)})
        self.gain, self.gamma = gain, gamma

    def apply(self, x: Tensor) -> Tensor:
        light = self.gain * (x + 1) / 2
        lit = light > 1e-8  # the root has no slope at 0
        return 2 * torch.where(lit, torch.where(lit, light, 1.0) ** (1 / self.gamma), 0.0) - 1

    def pinv(self, y: Tensor) -> Tensor:
        """Return the exact inverse, clipped to the range."""
        u = ((y + 1) / 2).clamp_min(0) ** self.gamma / self.gain
        return (2 * u - 1).clamp(-1, 1)


class Haze(Operator):
    """y = x tr + air (1 - tr) with the transmission tr = exp(-beta depth); affine in x.

    Args:
        in_shape: Shape of one item.
        transmission: tr in (0, 1], broadcasts over an item, or has a row per item.
        air: Air light in model units, broadcasts likewise.

    Raises:
        ValueError: The transmission leaves (0, 1].
    """

    kind = "haze"
    has_pinv = True

    def __init__(self, in_shape: Shape, transmission: Tensor, air: Tensor) -> None:
        transmission, air = double(transmission), double(air)
        if bool((transmission <= 0).any()) or bool((transmission > 1).any()):
            raise ValueError("the transmission of haze must lie in (0, 1]; it is exp(-beta * depth).")
        tensors = {"transmission": transmission, "air": air}
        own_rows = [name for name, part in tensors.items() if part.ndim == len(in_shape) + 1 and part.shape[0] > 1]
        super().__init__(in_shape, in_shape, tensors=tensors, batched=tuple(own_rows))

    def apply(self, x: Tensor) -> Tensor:
        through = self._get("transmission", x)
        return x * through + self._get("air", x) * (1 - through)

    def pinv(self, y: Tensor) -> Tensor:
        """Return the exact inverse."""
        through = self._get("transmission", y)
        return (y - self._get("air", y) * (1 - through)) / through

    def as_linear(self, y: Tensor) -> tuple[LinearOperator, Tensor]:
        """Return the weights tr, and y without the air light."""
        through = self._get("transmission", y)
        return Diagonal(self.in_shape, self._tensors["transmission"]), y - self._get("air", y) * (1 - through)


def haze(shape: Shape, *, beta: float = 1.0, depth: Tensor | float = 1.0, air: float = 0.9, seed: int = 0) -> Haze:
    """Return haze of density `beta` over a depth (a number or a map), with an air light in image units [0, 1]."""
    if beta < 0 or not 0 <= air <= 1:
        raise ValueError(f"beta={beta} must be at least 0 and air={air} within [0, 1].")
    through = torch.exp(-beta * torch.as_tensor(depth, dtype=torch.float64))
    return Haze(shape, through, torch.tensor(2 * air - 1, dtype=torch.float64))


def clip(shape: Shape, *, factor: float = 2.0, seed: int = 0) -> Clip:
    """Return clipping after multiplication by `factor`."""
    return Clip(shape, factor)


def quantise(
    shape: Shape, *, bits: int = 3, dither: bool = False, straight_through: bool = True, seed: int = 0
) -> Quantise:
    """Return rounding to 2^bits levels."""
    return Quantise(shape, bits, dither, straight_through)


def low_light(shape: Shape, *, gain: float = 0.1, gamma: float = 2.2, seed: int = 0) -> LowLight:
    """Return a dark exposure."""
    return LowLight(shape, gain, gamma)


def straight_through(rounded: Tensor, exact: Tensor) -> Tensor:
    """Return `rounded`, with the gradient of `exact`."""
    return exact + (rounded - exact).detach()
