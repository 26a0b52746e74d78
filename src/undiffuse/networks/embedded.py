"""`Embedded`: conditions as a network reads them, computed once before a sampling loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass


@dataclass(frozen=True)
class Embedded:
    """Embedded conditions of a batch; registered as a pytree.

    One model always fills the same fields, whatever conditions are missing, so that conditional and
    null rows concatenate.

    Args:
        vector: (B, D), modulates every block.
        tokens: (B, L, D), to be attended to.
        mask: (B, L) bool, True where `tokens` are to be read.
        maps: (B, C, *), or for video also (B, F, C, *), on the data's grid; size 1: the same everywhere.
        estimate: Last estimate of x_0 (B, *), in the data's shape, for networks that condition on themselves; None: no
            estimate yet, which they read as zeros. Denoisers take it in model units and give it to networks in unit
            variance, as they do x.
        parts: What a wrapper that asks several questions keeps for each of them, instead of fields of its own. Each has
            the rows of the batch, so wrappers of wrappers may take, repeat and concatenate them alike.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    maps: Tensor | None = None
    estimate: Tensor | None = None
    parts: tuple[Embedded, ...] = ()

    @property
    def batch(self) -> int | None:
        """Number of rows B; None where nothing is held, which fits any batch."""
        own = (field.shape[0] for field in self._filled().values())
        return next((rows for rows in (*own, *(part.batch for part in self.parts)) if rows is not None), None)

    def take(self, index: Tensor | slice) -> Embedded:
        """Return the rows chosen by `index` (int64 or bool tensor, or a slice)."""
        return self._map(lambda part: part[index])

    def expand(self, n: int) -> Embedded:
        """Repeat a single row `n` times, without copying; a batch that has `n` rows already is returned as it is.

        Raises:
            ValueError: The batch has neither 1 nor `n` rows.
        """
        if self.batch not in (None, 1, n):
            raise ValueError(f"cannot expand {self.batch} rows to {n}; only a single row can be repeated.")
        return self._map(lambda part: part.expand(n, *part.shape[1:]))

    def texts(self, frames: int) -> Embedded:
        """Return tokens and mask alone, each row `frames` times in a row: one for every frame of a video."""
        if self.tokens is None or self.mask is None or frames == 1:
            return Embedded(tokens=self.tokens, mask=self.mask)
        return Embedded(tokens=self.tokens.repeat_interleave(frames, 0), mask=self.mask.repeat_interleave(frames, 0))

    @staticmethod
    def cat(parts: Sequence[Embedded]) -> Embedded:
        """Concatenate along the batch.

        Raises:
            ValueError: Nothing to concatenate, or the parts fill different fields.
        """
        if not parts:
            raise ValueError("cat got an empty list; give at least one Embedded.")
        filled = [sorted(part._filled()) for part in parts]
        if any(names != filled[0] for names in filled) or len({len(part.parts) for part in parts}) > 1:
            raise ValueError(
                f"cannot concatenate Embedded that fill different fields: {filled}; embed them with one network."
            )
        columns = {name: [getattr(part, name) for part in parts] for name in filled[0]}
        if "maps" in columns:
            columns["maps"] = _same_size(columns["maps"])
        own = {name: torch.cat(column) for name, column in columns.items()}
        inner = tuple(Embedded.cat(column) for column in zip(*(part.parts for part in parts), strict=True))
        return Embedded(**own, parts=inner)

    def _filled(self) -> dict[str, Tensor]:
        held = ((field.name, getattr(self, field.name)) for field in fields(self) if field.name != "parts")
        return {name: part for name, part in held if part is not None}

    def _map(self, change: Callable[[Tensor], Tensor]) -> Embedded:
        inner = tuple(part._map(change) for part in self.parts)
        return Embedded(**{name: change(part) for name, part in self._filled().items()}, parts=inner)


def _same_size(maps: list[Tensor]) -> list[Tensor]:
    """Repeat maps of size 1 (and without frames) to the size of the others."""
    axes = max(part.ndim for part in maps)
    maps = [part if part.ndim == axes else part.unsqueeze(1) for part in maps]
    sizes = [max(column) for column in zip(*(part.shape[1:] for part in maps), strict=True)]
    return [part.expand(-1, *sizes) for part in maps]


register_dataclass(Embedded)
