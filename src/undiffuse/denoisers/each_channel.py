"""`EachChannel`: a denoiser of grey pictures asked about every channel of a picture by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import AnyPosterior, Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time


class EachChannel(Wrapper):
    """A prior of pictures with one channel as one of pictures with several that say nothing of each other.

    So a prior of real MR pictures restores complex ones, real and imaginary part by themselves, and a prior of grey
    pictures colour. It costs the evaluations of the wrapped denoiser, on as many more rows.

    Args:
        denoiser: Of items (1, *size).
        channels: Of the items to be asked about.

    Raises:
        ValueError: The data are tokens or have several channels, or there are no channels.

    Source: Chung and Ye 2022, "Score-based diffusion models for accelerated MRI", arXiv:2110.05243, section 3.3.
    """

    process: GaussianProcess

    def __init__(self, denoiser: Denoiser, channels: int) -> None:
        if not isinstance(denoiser.process, GaussianProcess):
            raise ValueError("channels are those of continuous data; this model's data are tokens.")
        if channels < 1 or (denoiser.spec is not None and denoiser.spec.shape[0] != 1):
            seen = "any shape" if denoiser.spec is None else denoiser.spec.shape
            raise ValueError(f"channels={channels} of a prior of {seen}: give 1 or more, and a prior of one channel.")
        super().__init__(denoiser)
        self.channels = channels
        if self.spec is not None:
            self.spec = replace(self.spec, shape=(channels, *self.spec.shape[1:]))

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Ask about all channels at once."""
        if isinstance(t, Tensor) and t.ndim and len(t) == len(x):
            t = t.repeat_interleave(self.channels, 0)
        rows = x.flatten(0, 1)[:, None]
        post = cast(Posterior, self.denoiser(rows, t, None if cond is None else self._of_channels(cond, x)))
        eps = None if post.eps is None else post.eps.reshape(x.shape)
        return Posterior(post.mean.reshape(x.shape), eps=eps)

    def _of_channels(self, cond: Embedded, x: Tensor) -> Embedded:
        """Return the conditions of every channel's row; the last estimate is that of its channel."""
        index = torch.arange(len(x), device=x.device).repeat_interleave(self.channels)
        estimate = None if cond.estimate is None else cond.estimate.flatten(0, 1)[:, None]
        shared = replace(cond, estimate=None, parts=())
        shared = shared if shared.batch is None else shared.take(index)
        return replace(shared, estimate=estimate, parts=tuple(self._of_channels(part, x) for part in cond.parts))
