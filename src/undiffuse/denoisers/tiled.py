"""`Tiled`: a denoiser of small pictures asked about a large one, tile by tile, with answers that blend."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import AnyPosterior, Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time

Places = list[tuple[int, ...]]


class Tiled(Wrapper):
    """The mean of a large state as the weighted average of the means of overlapping tiles, at every step.

    Weights fall towards the borders of a tile, so that no seam shows. Any sampler and any wrapper work with it.

    Args:
        denoiser: Of items of shape (*leading, *tile).
        tile: Size of a tile on the last axes, in pixels.
        overlap: Pixels that neighbours share at least, below the tile's size on every axis.
        batch: Tiles computed at once.

    Raises:
        ValueError: The overlap is not below the tile's size, or the data are tokens.
    """

    process: GaussianProcess

    def __init__(self, denoiser: Denoiser, tile: tuple[int, ...], overlap: int, batch: int = 64) -> None:
        if not isinstance(denoiser.process, GaussianProcess):
            raise ValueError("tiles are for continuous data; this model's data are tokens.")
        if not 0 <= overlap < min(tile):
            raise ValueError(f"overlap={overlap} must be at least 0 and below the tile's size {min(tile)}.")
        super().__init__(denoiser)
        self.tile, self.overlap, self.batch = tile, overlap, batch
        self.tiles = 1

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Ask about every tile and blend."""
        places = self.places(tuple(x.shape[-len(self.tile) :]))
        window = self._window(x)
        total, weight, noise = torch.zeros_like(x), torch.zeros_like(x[:1]), None
        together = max(1, self.batch // len(x))
        for low in range(0, len(places), together):
            group = places[low : low + together]
            post = self._answer(x, t, cond, group)
            for place, mean, eps in zip(group, post.mean.chunk(len(group)), _chunks(post.eps, group), strict=True):
                at = self._slice(place)
                total[at] += window * mean
                weight[at] += window
                if eps is not None:
                    noise = torch.zeros_like(x) if noise is None else noise
                    noise[at] += window * eps
        return Posterior(total / weight, eps=None if noise is None else noise / weight)

    def calls(self, t: Time) -> int:
        """What the wrapped denoiser costs, for every tile of the last state."""
        return self.tiles * self.denoiser.calls(t)

    def places(self, size: tuple[int, ...]) -> Places:
        """Return the first corner of each tile of a state of `size`, evenly spread.

        Raises:
            ValueError: The state is smaller than a tile.
        """
        if any(whole < part for whole, part in zip(size, self.tile, strict=True)):
            raise ValueError(f"a state of {size} is smaller than a tile of {self.tile}; pad it.")
        rows: Places = [()]
        for whole, part in zip(size, self.tile, strict=True):
            count = 1 if whole == part else math.ceil((whole - part) / (part - self.overlap)) + 1
            starts = [round(i * (whole - part) / max(count - 1, 1)) for i in range(count)]
            rows = [(*row, start) for row in rows for start in starts]
        self.tiles = len(rows)
        return rows

    def _answer(self, x: Tensor, t: Time, cond: Embedded | None, group: Places) -> Posterior:
        count = len(group)
        rows = torch.cat([x[self._slice(place)] for place in group])
        times = t.repeat(count, *[1] * (t.ndim - 1)) if isinstance(t, Tensor) else t
        return cast(Posterior, self.denoiser(rows, times, None if cond is None else self._cut(cond, x, group)))

    def _cut(self, cond: Embedded, x: Tensor, group: Places) -> Embedded:
        """Return the conditions of some tiles of all rows: what lies on the data's grid is cut as the state is."""
        size = tuple(x.shape[-len(self.tile) :])
        held = {"maps": cond.maps, "estimate": cond.estimate}
        on_grid = {
            name: value
            for name, value in held.items()
            if value is not None and tuple(value.shape[-len(self.tile) :]) == size
        }
        rest = replace(cond, parts=(), **dict.fromkeys(on_grid))
        index = torch.arange(len(x), device=x.device).repeat(len(group))
        rest = rest if rest.batch is None else rest.take(index)
        cut = {name: torch.cat([value[self._slice(place)] for place in group]) for name, value in on_grid.items()}
        return replace(rest, **cut, parts=tuple(self._cut(part, x, group) for part in cond.parts))

    def _slice(self, place: tuple[int, ...]) -> tuple[Any, ...]:
        return (..., *(slice(start, start + part) for start, part in zip(place, self.tile, strict=True)))

    def _window(self, x: Tensor) -> Tensor:
        """Weights of a tile: a ramp of the overlap's length at each border."""
        window = x.new_ones(())
        for size in self.tile:
            ramp = torch.arange(1, size + 1, dtype=x.dtype, device=x.device)
            ramp = torch.minimum(ramp, ramp.flip(0)).clamp(max=max(self.overlap, 1)) / max(self.overlap, 1)
            window = window[..., None] * ramp
        return window


def _chunks(eps: Tensor | None, group: Places) -> list[Tensor | None]:
    return [None] * len(group) if eps is None else list(eps.chunk(len(group)))
