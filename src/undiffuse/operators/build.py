"""Builders by the names of the catalogue, where a class alone is not one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from undiffuse.operators.base import Operator, Shape
from undiffuse.operators.compose import TemporalAverage, scaled
from undiffuse.operators.diagonal import Identity
from undiffuse.operators.mri import mri_scan
from undiffuse.operators.sensing import SampledTransform, sampled
from undiffuse.operators.separable import Downsample


def identity(shape: Shape, *, seed: int = 0) -> Identity:
    """Return the identity."""
    return Identity(shape)


def downsample(shape: Shape, *, factor: int = 4, method: str = "average", seed: int = 0) -> Downsample:
    """Return a smaller picture."""
    return Downsample(shape, factor, method)


def hadamard_sensing(shape: Shape, *, ratio: float = 0.25, seed: int = 0) -> SampledTransform:
    """Return compressed sensing by a Walsh-Hadamard transform."""
    return sampled(shape, ratio=ratio, transform="hadamard", seed=seed)


def dct_sensing(shape: Shape, *, ratio: float = 0.25, seed: int = 0) -> SampledTransform:
    """Return compressed sensing by a cosine transform."""
    return sampled(shape, ratio=ratio, transform="dct", seed=seed)


def mri(
    shape: Shape,
    *,
    pattern: str = "random",
    acceleration: float = 4.0,
    centre: float = 0.08,
    coils: int = 1,
    spokes: int = 16,
    turns: float = 8.0,
    measured: Tensor | None = None,
    maps: Tensor | None = None,
    seed: int = 0,
    items: Sequence[int] | None = None,
) -> Operator:
    """Return an MR scan; `measured` and `maps`, from files, take the place of a pattern and of simulated coils."""
    given: dict[str, Any] = {"pattern": pattern, "acceleration": acceleration, "centre": centre}
    given |= {"spokes": spokes, "turns": turns, "mask": measured, "seed": seed, "items": items}
    return mri_scan(shape, coils=coils if maps is None else maps, **given)


def average_frames(shape: Shape, *, length: int = 2, seed: int = 0) -> TemporalAverage:
    """Return averages of frames."""
    return TemporalAverage(shape, length)


def scale(shape: Shape, *, factor: float = 1.0, seed: int = 0) -> Operator:
    """Return a multiplication."""
    return scaled(Identity(shape), factor)
