"""`EachPart`: a denoiser of small items asked about every part of a larger one by itself."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import AnyPosterior, Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time


class EachPart(Wrapper):
    """Base: the parts lie along the first axis of an item and say nothing of each other.

    Args:
        denoiser: Of one part.
        parts: Of the items to be asked about.
        batch: Parts computed at once; None: all.

    Raises:
        ValueError: The data are tokens.
    """

    process: GaussianProcess

    def __init__(self, denoiser: Denoiser, parts: int, batch: int | None = None) -> None:
        if not isinstance(denoiser.process, GaussianProcess):
            raise ValueError("channels and slices are those of continuous data; this model's data are tokens.")
        super().__init__(denoiser)
        self.parts, self.batch = parts, batch

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """Return the parts of items (B, parts, *) as items of the wrapped denoiser, those of an item in a row."""

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Ask about all parts."""
        if isinstance(t, Tensor) and t.ndim == 1:
            t = t.repeat_interleave(self.parts, 0)
        elif isinstance(t, Tensor) and t.ndim > 1:
            t = t.expand(len(x), *t.shape[1:]).flatten(0, 1)
        rows, told = self.rows(x), None if cond is None else self._of_parts(cond, x)
        size = self.batch or len(rows)
        pieces = [slice(low, low + size) for low in range(0, len(rows), size)]
        answers = [self.denoiser(rows[at], _times(t, at), _conditions(told, at)) for at in pieces]
        posts = cast("list[Posterior]", answers)
        noise = [post.eps for post in posts if post.eps is not None]
        eps = torch.cat(noise).reshape(x.shape) if noise else None
        return Posterior(torch.cat([post.mean for post in posts]).reshape(x.shape), eps=eps)

    def _of_parts(self, cond: Embedded, x: Tensor) -> Embedded:
        """Return the conditions of every part's row; the last estimate is that of its part."""
        index = torch.arange(len(x), device=x.device).repeat_interleave(self.parts)
        estimate = None if cond.estimate is None else self.rows(cond.estimate)
        shared = replace(cond, estimate=None, parts=())
        shared = shared if shared.batch is None else shared.take(index)
        return replace(shared, estimate=estimate, parts=tuple(self._of_parts(part, x) for part in cond.parts))


def _times(t: Time, at: slice) -> Time:
    return t[at] if isinstance(t, Tensor) and t.ndim else t


def _conditions(cond: Embedded | None, at: slice) -> Embedded | None:
    return cond if cond is None or cond.batch is None else cond.take(at)
