"""Keyed noise: every random number is a function of (seed, item, step, stream) and of its position.

The generator is SplitMix64 used as a counter: word `i` of a row is `mix(start + i * GOLDEN)`, and the row's
`start` is a hash of its key. It is written in int64 tensor operations, so a row draws the same bits in a
batch of 1 or 1000, on any device, in any order, and nothing is ever advanced. Normals come from Box and
Muller in float64 and are rounded to the dtype asked for, so float32 and float64 runs share their noise.

Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

STREAMS = ("init", "step", "corrector", "class", "order", "data", "time", "dropout", "probe", "augment", "selfcond")

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)


def _signed(z: int) -> int:
    z &= _MASK
    return z - (1 << 64) if z >> 63 else z


def _scalar(value: int | float) -> Tensor:
    """A number for tensor operations, int64 or float64: of a Python number each operation would make one anew."""
    number = _signed(value) if isinstance(value, int) else value
    return torch.tensor(number, dtype=torch.int64 if isinstance(value, int) else torch.float64, device="cpu")


def _shift(bits: int) -> tuple[Tensor, Tensor]:
    """What `_shift_right` takes: the number of bits, and the mask of those that are left."""
    return _scalar(bits), _scalar((1 << (64 - bits)) - 1)


_STEP = _scalar(_GOLDEN)
_ROUNDS = [(_shift(bits), _scalar(factor)) for bits, factor in zip(_SHIFTS, _MULTIPLIERS, strict=False)]
_LAST = _shift(_SHIFTS[2])
_HIGH_HALF, _HIGH_53 = _shift(32), _shift(11)
_LOW_HALF = _HIGH_HALF[1]
_UNIT_32, _UNIT_53, _TURN_32 = _scalar(2.0**-32), _scalar(2.0**-53), _scalar(math.tau * 2.0**-32)
_HALF, _MINUS_TWO = _scalar(0.5), _scalar(-2.0)


class NoiseSource(Protocol):
    """What samplers and objectives draw from. Shapes exclude the batch axis, results include it."""

    def normal(self, stream: str, step: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return standard normal numbers (B, *shape)."""
        ...

    def uniform(self, stream: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Return float64 numbers in [0, 1), (B, *shape)."""
        ...


class KeyedNoise:
    """Noise for a batch of items of one seed.

    Args:
        seed: Any int; the low 64 bits count.
        items: Stable number of each batch row (a dataset index, a sample number), B of them.
        device: Where results live.

    Raises:
        ValueError: An unknown stream is asked for.
    """

    def __init__(self, seed: int, items: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        numbers = torch.arange(items.start, items.stop, items.step) if isinstance(items, range) else items
        self.items = torch.as_tensor(numbers, dtype=torch.int64, device=device)
        self.device = self.items.device
        self._spread = self.items * _STEP

    def normal(self, stream: str, step: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return standard normal numbers (B, *shape)."""
        return self.normal_block(stream, [step], shape, dtype).squeeze(0)

    def uniform(self, stream: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Return float64 numbers in [0, 1), (B, *shape)."""
        return self.uniform_block(stream, [step], shape).squeeze(0)

    def normal_block(
        self, stream: str, steps: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return the normals of several steps at once, (S, B, *shape): the same numbers, fewer launches."""
        count = math.prod(shape)
        words = self._words(stream, steps, (count + 1) // 2)
        # The low half gives the radius, the high half the angle; + 0.5 keeps the logarithm finite.
        radius = ((words & _LOW_HALF) + _HALF).mul_(_UNIT_32).log_().mul_(_MINUS_TWO).sqrt_()
        angle = _shift_right(words, _HIGH_HALF) * _TURN_32
        pairs = torch.stack((angle.cos(), angle.sin()), dim=-1).mul_(radius.unsqueeze(-1))
        return pairs.flatten(-2).narrow(-1, 0, count).reshape(len(steps), len(self.items), *shape).to(dtype)

    def uniform_block(self, stream: str, steps: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Return the uniforms of several steps at once, float64 (S, B, *shape)."""
        words = self._words(stream, steps, math.prod(shape))
        return (_shift_right(words, _HIGH_53) * _UNIT_53).reshape(len(steps), len(self.items), *shape)

    def _words(self, stream: str, steps: Sequence[int], count: int) -> Tensor:
        """Return `count` 64-bit words for each step and item, int64 (S, B, count)."""
        base = _key(self.seed, stream)
        starts = [_signed(_mix_int(base + _GOLDEN * (step & _MASK))) for step in steps]
        rows = _mix(_column(starts, self.device) + self._spread)
        counter = torch.arange(1, count + 1, dtype=torch.int64, device=self.device) * _STEP
        return _mix(rows.unsqueeze(-1) + counter)


class RecordedNoise:
    """Passes another source through and keeps what was drawn in `record`, by (stream, step).

    Raises:
        ValueError: One (stream, step) is drawn in two shapes or dtypes.
    """

    def __init__(self, source: NoiseSource) -> None:
        self.source = source
        self.record: dict[tuple[str, int], Tensor] = {}

    def normal(self, stream: str, step: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return and record standard normal numbers (B, *shape)."""
        return self._keep(stream, step, self.source.normal(stream, step, shape, dtype))

    def uniform(self, stream: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Return and record float64 numbers in [0, 1), (B, *shape)."""
        return self._keep(stream, step, self.source.uniform(stream, step, shape))

    def _keep(self, stream: str, step: int, drawn: Tensor) -> Tensor:
        kept = self.record.setdefault((stream, step), drawn)
        if kept.shape != drawn.shape or kept.dtype != drawn.dtype:
            raise ValueError(f"stream {stream!r}, step {step} was drawn twice in different shapes; a record keeps one.")
        return kept


class InjectedNoise:
    """Hands out given noise by (stream, step); what is not given comes from `fallback`.

    Raises:
        ValueError: A draw is neither given nor covered by `fallback`, or has another shape than asked.
    """

    def __init__(self, given: dict[tuple[str, int], Tensor], fallback: NoiseSource | None = None) -> None:
        self.given = given
        self.fallback = fallback

    def normal(self, stream: str, step: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the given normals (B, *shape) in `dtype`."""
        found = self._find(stream, step, shape)
        if found is not None:
            return found.to(dtype)
        return self._source(stream, step).normal(stream, step, shape, dtype)

    def uniform(self, stream: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Return the given uniforms (B, *shape)."""
        found = self._find(stream, step, shape)
        return found if found is not None else self._source(stream, step).uniform(stream, step, shape)

    def _find(self, stream: str, step: int, shape: tuple[int, ...]) -> Tensor | None:
        found = self.given.get((stream, step))
        if found is not None and tuple(found.shape[1:]) != tuple(shape):
            raise ValueError(
                f"injected noise {stream!r} of step {step} has item shape {tuple(found.shape[1:])}; {shape} is needed."
            )
        return found

    def _source(self, stream: str, step: int) -> NoiseSource:
        if self.fallback is None:
            raise ValueError(f"no noise was injected for stream {stream!r}, step {step}; give it or a fallback source.")
        return self.fallback


def permutation(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a random order of range(n), int64 (n,), a function of (seed, epoch, n) alone."""
    return permutations(seed, [epoch], n, device)[0]


def permutations(seed: int, epochs: Sequence[int], n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the `permutation` of each of several epochs, int64 (E, n)."""
    keys = KeyedNoise(seed, torch.arange(n), device)._words("order", epochs, 1)[..., 0]
    return torch.argsort(keys, dim=1, stable=True)


def _column(values: Sequence[int], device: torch.device) -> Tensor:
    """Return int64 (S, 1). A single value is filled in: a copy from the host, as for several, would wait for a GPU."""
    if len(values) == 1:
        return torch.full((1, 1), values[0], dtype=torch.int64, device=device)
    return torch.tensor(values, dtype=torch.int64, device=device)[:, None]


def _key(seed: int, stream: str) -> int:
    if stream not in STREAMS:
        raise ValueError(f"noise stream {stream!r} is unknown; the streams are {', '.join(STREAMS)}.")
    return _mix_int(_mix_int(seed & _MASK) + zlib.crc32(stream.encode()))


def _mix_int(z: int) -> int:
    """SplitMix64's finaliser on a Python int."""
    z &= _MASK
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        z = ((z ^ (z >> shift)) * multiplier) & _MASK
    return z ^ (z >> _SHIFTS[2])


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors; products wrap modulo 2^64."""
    for shift, factor in _ROUNDS:
        z = _shift_right(z, shift).bitwise_xor_(z).mul_(factor)
    return _shift_right(z, _LAST).bitwise_xor_(z)


def _shift_right(z: Tensor, shift: tuple[Tensor, Tensor]) -> Tensor:
    """Logical shift: torch shifts int64 arithmetically, so the copies of the sign are masked off."""
    bits, mask = shift
    return (z >> bits).bitwise_and_(mask)
