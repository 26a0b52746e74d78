"""Keyed noise: every random number is a function of (seed, item, step, stream) and of its position.

The generator is SplitMix64 used as a counter: word `i` of a row is `mix(start + i * GOLDEN)`, and the row's
`start` is a hash of its key. It is written in operations on 64-bit integers (signed ones in torch, which has
hardly any others), so a row draws the same bits in a batch of 1 or 1000, on any device, in any order, and
nothing is ever advanced. Normals come from Box and Muller in float64 and are rounded to the dtype asked for, so
float32 and float64 runs share their noise.

Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from undiffuse.limits import check_counts

STREAMS = (
    "init",
    "step",
    "corrector",
    "class",
    "order",
    "data",
    "time",
    "dropout",
    "probe",
    "augment",
    "selfcond",
    "path",
    "langevin",
    "measure",
    "operator",
)

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_FEW = 1 << 14  # words; so few numpy has mixed before torch has dispatched the first operations


def _signed(z: int) -> int:
    z &= _MASK
    return z - (1 << 64) if z >> 63 else z


class _Constants:
    """The generator's numbers, ready to meet integer and float64 arrays of one library.

    They are arrays of no dimension: of a Python number each operation would make one anew. A shift is its bits and the
    mask that makes it a logical one of signed numbers, None where they are unsigned.
    """

    def __init__(self, integer: Callable[[int], Any], real: Callable[[float], Any], signed: bool) -> None:
        shifts = [(integer(bits), integer((1 << (64 - bits)) - 1) if signed else None) for bits in (*_SHIFTS, 32, 11)]
        self.step = integer(_GOLDEN)
        self.rounds = [(shift, integer(m)) for shift, m in zip(shifts, _MULTIPLIERS, strict=False)]
        self.last, self.high_half, self.high_53 = shifts[2:]
        self.low_half = integer((1 << 32) - 1)
        self.half, self.unit_32, self.unit_53 = real(0.5), real(2.0**-32), real(2.0**-53)
        self.turn_32 = real(math.tau * 2.0**-32)


_TORCH = _Constants(
    lambda number: torch.tensor(_signed(number), dtype=torch.int64, device="cpu"),
    lambda number: torch.tensor(number, dtype=torch.float64, device="cpu"),
    signed=True,
)
_NUMPY = _Constants(np.uint64, np.float64, signed=False)
_MINUS_TWO = torch.tensor(-2.0, dtype=torch.float64, device="cpu")


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
        check_counts(None, seed=seed)
        self.seed = seed
        numbers = torch.arange(items.start, items.stop, items.step) if isinstance(items, range) else items
        self.items = torch.as_tensor(numbers, dtype=torch.int64, device=device)
        self.device = self.items.device
        self._numpy = self.items.numpy().view(np.uint64) if self.items.is_cpu else None

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
        words, known = self._words(stream, steps, (count + 1) // 2)
        # The low half gives the radius, the high half the angle; + 0.5 keeps the logarithm finite.
        radius = _tensor(((words & known.low_half) + known.half) * known.unit_32).log_().mul_(_MINUS_TWO).sqrt_()
        angle = _tensor(_shift_right(words, known.high_half) * known.turn_32)
        pairs = torch.stack((angle.cos(), angle.sin()), dim=-1).mul_(radius.unsqueeze(-1)).flatten(-2)
        pairs = pairs if count % 2 == 0 else pairs.narrow(-1, 0, count)
        return pairs.reshape(len(steps), len(self.items), *shape).to(dtype)

    def uniform_block(self, stream: str, steps: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Return the uniforms of several steps at once, float64 (S, B, *shape)."""
        words, known = self._words(stream, steps, math.prod(shape))
        uniforms = _tensor(_shift_right(words, known.high_53) * known.unit_53)
        return uniforms.reshape(len(steps), len(self.items), *shape)

    def _words(self, stream: str, steps: Sequence[int], count: int) -> tuple[Any, _Constants]:
        """Return `count` 64-bit words for each step and item, (S, B, count), and the constants that suit them.

        They are an unsigned numpy array where they are few and on the CPU, else a signed tensor; the bits are the same.
        """
        base = _key(self.seed, stream)
        starts = [_mix_int(base + _GOLDEN * (step & _MASK)) for step in steps]
        items: Any
        column: Any
        counter: Any
        if self._numpy is not None and len(starts) * len(self._numpy) * count <= _FEW:
            known, items = _NUMPY, self._numpy
            column, counter = np.array(starts, np.uint64)[:, None], np.arange(1, count + 1, dtype=np.uint64)
        else:
            known, items = _TORCH, self.items
            column = _column([_signed(start) for start in starts], self.device)
            counter = torch.arange(1, count + 1, dtype=torch.int64, device=self.device)
        rows = _mix(column + items * known.step, known)
        return _mix(rows[..., None] + counter * known.step, known), known


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
    keys, _ = KeyedNoise(seed, torch.arange(n), device)._words("order", epochs, 1)
    return torch.argsort(_tensor(keys[..., 0]).view(torch.int64), dim=1, stable=True)


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


def _mix(z: Any, known: _Constants) -> Any:
    """SplitMix64's finaliser on tensors or arrays; products wrap modulo 2^64."""
    for shift, factor in known.rounds:
        mixed = _shift_right(z, shift)
        mixed ^= z
        mixed *= factor
        z = mixed
    mixed = _shift_right(z, known.last)
    mixed ^= z
    return mixed


def _shift_right(z: Any, shift: tuple[Any, Any]) -> Any:
    """Logical shift: signed numbers are shifted arithmetically, so the copies of the sign are masked off."""
    bits, mask = shift
    shifted = z >> bits
    if mask is not None:
        shifted &= mask
    return shifted


def _tensor(array: Any) -> Tensor:
    """Return an array as a tensor on the same memory; a tensor as it is."""
    return array if isinstance(array, Tensor) else torch.from_numpy(array)
