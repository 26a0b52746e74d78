"""Degrading on the fly: each item is measured by an operator while training, and the network is given the result.

`data.degrade` is a line such as "downsample:2|noise:gaussian,0.05": operators as in `undiffuse degrade`, and perhaps a
noise at the end. Several, parted by semicolons, take turns by chance (all-in-one), and the network is told which by the
label "task". The measurement goes to the network as the map "source", brought back to the data's grid.

A noise of a range, "noise:gaussian,0..0.2", has a level of its own at every visit, uniform in the range, and the
network is told it, in the units of the text, by the vector "noise_level", whose null is the lowest level. That is the
conditioning augmentation of Ho et al. 2021, "Cascaded Diffusion Models", arXiv:2106.15282, section 4.

With a codec the measurement is made in the units of the data, and item and measurement are encoded on the way: a visit
spoils its item anew, so latents made once would not do.

Everything is a function of (seed, running number of the item): masks of kinds that can be drawn per image, the noise,
its level, and the task; so a run that resumes sees the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.codecs.codec import Codec
from undiffuse.data.pairs import SOURCE
from undiffuse.errors import ConfigError
from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import Operator
from undiffuse.operators.noise import STREAM, GaussianNoise, NoiseModel, NoNoise
from undiffuse.operators.parse import find_facts, image_units, parse_noise, parse_operator
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.augment import Augment, augmented_spec, make_augment

if TYPE_CHECKING:
    from undiffuse.data.options import DataOptions

TASK = "task"
"""Name of the label that says which of several degradations an item has."""

NOISE_LEVEL = "noise_level"
"""Name of the vector that says how noisy an item's measurement is."""

_NOISE = "noise:"
_RANGE = re.compile(r"(.*[,:=]\s*)([^,:=]+?)\.\.([^,:=]+)")  # gaussian,0.05..0.2 and gaussian:std=0..0.2
_WHICH = 1 << 30  # step of the draw of the task, which no operator's own draws reach
_LEVEL = _WHICH + 1  # and of that of the level
_ENCODED = 1 << 18  # values that are encoded at once, for what an encoder keeps is many times as much


@dataclass(frozen=True)
class Degradation:
    """One way to spoil an item.

    Args:
        text: The operators' text.
        noise: The law of the noise.
        spec: Of the data.
        fixed: The operator where it is the same for all items; None where each item draws its own.
        levels: Lowest and highest standard deviation of the noise, model units, where each item draws its own.
    """

    text: str
    noise: NoiseModel
    spec: DataSpec
    fixed: Operator | None
    levels: tuple[float, float] | None = None

    def __call__(self, x: Tensor, noise: KeyedNoise) -> Tensor:
        """Return the measurement of x (N, *) on the grid of x."""
        operator = self.fixed
        if operator is None:
            operator = parse_operator(self.text, self.spec, seed=noise.seed, items=noise.items.tolist()).to(x.device)
        return operator.to_items(operator.measured(self._noisy(operator(x), noise)))

    def level(self, noise: KeyedNoise) -> Tensor:
        """Return the standard deviation of the noise of each item (N,), model units."""
        low, high = self.bounds
        return low + (high - low) * noise.uniform("operator", _LEVEL, ())

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest standard deviation of the noise, model units; only of Gaussian noise and of none."""
        if self.levels is not None:
            return self.levels
        std = self.noise.std if isinstance(self.noise, GaussianNoise) else 0.0
        return std, std

    def _noisy(self, y: Tensor, noise: KeyedNoise) -> Tensor:
        if self.levels is None:
            return self.noise.sample(y, noise)
        std = self.level(noise).to(y.dtype).reshape(-1, *[1] * (y.ndim - 1))
        return y + std * noise.normal(STREAM, 0, tuple(y.shape[1:]), y.dtype)


class Degrade:
    """Measures the items of a batch.

    Args:
        text: `data.degrade`.
        spec: Of the data.

    Raises:
        ConfigError: The text cannot be read, or does not fit the data.
    """

    def __init__(self, text: str, spec: DataSpec) -> None:
        if spec.sizes:
            raise ConfigError("data.degrade measures pictures of one size; set data.buckets=false.")
        self.texts = tuple(part.strip() for part in text.split(";") if part.strip())
        try:
            self.ways = [_degradation(part, spec) for part in self.texts]
        except ValueError as error:
            raise ConfigError(f"data.degrade={text!r}: {error}") from error
        self.levels = _levels(self.ways, text)
        taken = [name for name in self.conditions(spec) if name in spec.cond]
        if taken:
            raise ConfigError(
                f"the data have a condition {taken[0]!r} of their own; leave data.degrade or data.pair out."
            )

    def conditions(self, spec: DataSpec) -> dict[str, ConditionSpec]:
        """Return what the network is told."""
        source = ConditionSpec(kind="map", width=spec.channels)
        told = {SOURCE: source}
        if len(self.ways) > 1:
            told[TASK] = ConditionSpec(kind="label", classes=self.texts)
        if self.levels is not None:
            low, high = (level / image_units(spec) for level in self.levels)
            told[NOISE_LEVEL] = ConditionSpec(kind="vector", width=1, mean=(low,), std=(high - low,), null="zero")
        return told

    def __call__(self, batch: dict[str, Any], noise: KeyedNoise, maps: Sequence[str] = ()) -> dict[str, Any]:
        """Return the batch with the measurement (and the task, and the level of its noise) in "cond"."""
        x: Tensor = batch["x"]
        cond = dict(batch.get("cond") or {})
        if len(self.ways) == 1:
            told = {SOURCE: self.ways[0](x, noise)}
            if self.levels is not None:
                told |= self._told(self.ways[0].level(noise))
            return {**batch, "cond": {**cond, **told}}
        task = (noise.uniform("operator", _WHICH, ()) * len(self.ways)).long()
        given, level = torch.empty_like(x), x.new_empty(len(x), dtype=torch.float64)
        for number, way in enumerate(self.ways):
            mine = (task == number).nonzero()[:, 0]
            if len(mine):
                own = KeyedNoise(noise.seed, noise.items[mine], x.device)
                given[mine], level[mine] = way(x[mine], own), way.level(own)
        return {**batch, "cond": {**cond, SOURCE: given, TASK: task, **self._told(level)}}

    def _told(self, level: Tensor) -> dict[str, Tensor]:
        """Return what the network is told of standard deviations (N,): (N, 1), 0 the lowest and 1 the highest."""
        if self.levels is None:
            return {}
        low, high = self.levels
        return {NOISE_LEVEL: ((level - low) / (high - low)).float()[:, None]}


@dataclass(frozen=True)
class Transforms:
    """What is done to each batch before it is corrupted: moved pixels first, then the degradation, then the codec.

    Args:
        augment: Random geometry, in training alone.
        degrade: Measurements.
        codec: What encodes items and measurements, frozen; None: they are not latents, or were encoded once for all.
    """

    augment: Augment | None = None
    degrade: Degrade | None = None
    codec: Codec | None = None

    def __call__(self, batch: dict[str, Any], noise: KeyedNoise, maps: Sequence[str] = ()) -> dict[str, Any]:
        """Return the batch transformed."""
        if self.augment is not None:
            batch = self.augment(batch, noise, maps)
        batch = batch if self.degrade is None else self.degrade(batch, noise, maps)
        return batch if self.codec is None else _encoded(batch, self.codec)


def make_degrade(options: DataOptions, spec: DataSpec) -> Degrade | None:
    """Return what `data.degrade` asks for, None for nothing.

    Raises:
        ConfigError: It cannot be read, or does not fit the data.
    """
    return Degrade(options.degrade, spec) if options.degrade else None


def make_transforms(options: DataOptions, spec: DataSpec, codec: Codec | None = None) -> Transforms:
    """Return what is done to each training batch.

    Args:
        options: Of the data.
        spec: Of the items as they come.
        codec: Of a run on latents.
    """
    degrade = make_degrade(options, spec)
    return Transforms(make_augment(options, spec), degrade, None if degrade is None else codec)


def told_spec(spec: DataSpec, options: DataOptions) -> DataSpec:
    """Return the spec of the model: that of the data, with the conditions that transforms add."""
    degrade, told = make_degrade(options, spec), augmented_spec(spec, options)
    return told if degrade is None else replace(told, cond={**told.cond, **degrade.conditions(spec)})


@torch.no_grad()
def _encoded(batch: dict[str, Any], codec: Codec) -> dict[str, Any]:
    rows = max(1, _ENCODED // batch["x"][0].numel())
    x = torch.cat([codec.encode(part) for part in batch["x"].split(rows)])
    given = torch.cat([codec.encode_maps(part) for part in batch["cond"][SOURCE].split(rows)])
    return {**batch, "x": x, "cond": {**batch["cond"], SOURCE: given}}


def _degradation(text: str, spec: DataSpec) -> Degradation:
    *before, last = [part.strip() for part in text.split("|")]
    noise: NoiseModel = NoNoise()
    levels = None
    if last.startswith(_NOISE):
        noise, levels = _law(last[len(_NOISE) :], spec)
    else:
        before.append(last)
    operators = "|".join(before) or "denoise"
    fixed = parse_operator(operators, spec)
    own = spec.kind != "video" and any(find_facts(part.strip())[1].has("per-image") for part in operators.split("|"))
    return Degradation(operators, noise, spec, None if own else fixed, levels)


def _law(text: str, spec: DataSpec) -> tuple[NoiseModel, tuple[float, float] | None]:
    """Return a law of noise, the loudest of a range, and the range of its standard deviation in model units.

    Raises:
        ValueError: It cannot be read, or a range is not one of Gaussian noise.
    """
    found = _RANGE.fullmatch(text)
    if found is None:
        return parse_noise(text, spec), None
    name, low, high = found.groups()
    loudest = parse_noise(name + high, spec)
    if not isinstance(loudest, GaussianNoise):
        raise ValueError(f"noise {text!r} has a range, which only gaussian may have; give one number.")
    quietest = 0.0 if _is_zero(low) else parse_noise(name + low, spec).std  # type: ignore[attr-defined]
    if not quietest < loudest.std:
        raise ValueError(f"noise {text!r} has an empty range; write the lower level first, as in gaussian,0..0.2.")
    return loudest, (quietest, loudest.std)


def _is_zero(text: str) -> bool:
    try:
        return float(text) == 0
    except ValueError:
        return False


def _levels(ways: Sequence[Degradation], text: str) -> tuple[float, float] | None:
    """Return the lowest and the highest level of noise of all ways, where some way has a range of them.

    Raises:
        ConfigError: Beside a range another way has noise that is not Gaussian.
    """
    if all(way.levels is None for way in ways):
        return None
    if any(not isinstance(way.noise, GaussianNoise | NoNoise) for way in ways):
        raise ConfigError(
            f"data.degrade={text!r}: the level of a noise is told for gaussian alone, and another noise stands beside "
            "it; give gaussian one number instead of a range, or leave the other noise out."
        )
    bounds = [way.bounds for way in ways]
    return min(low for low, _ in bounds), max(high for _, high in bounds)
