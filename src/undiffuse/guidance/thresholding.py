"""Thresholding: keep the posterior mean within the data's range."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import AnyPosterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time


class Thresholding(Wrapper):
    """Bounds the posterior mean of data in [-bound, bound].

    "static" clips. "dynamic" takes for each sample the `quantile` of its absolute values; where that exceeds the bound,
    it clips at it and divides by it, which pulls saturated elements inwards instead of piling them up at the border.
    Statistics are per sample, over all its elements, so they do not depend on the batch.

    Args:
        denoiser: What is bounded; wrap the guided denoiser, whose means leave the range.
        mode: "static" or "dynamic".
        bound: Of the data, in model units: 1 for pictures.
        quantile: Of "dynamic", in (0, 1].
        noise: "new": the noise follows from the new mean, as in Imagen and in solvers that step in the mean
            (DPM-Solver++); "own": the network's noise is kept, as diffusers' DDIM does.

    Raises:
        ValueError: The data are tokens, an unknown mode or noise, a bound that is not positive, or a quantile outside.

    Source: Saharia et al. 2022, "Photorealistic text-to-image diffusion models with deep language understanding",
        section 2.3 and appendix C, arXiv:2205.11487.
    """

    process: GaussianProcess

    def __init__(
        self,
        denoiser: Denoiser,
        mode: Literal["static", "dynamic"] = "dynamic",
        *,
        bound: float = 1.0,
        quantile: float = 0.995,
        noise: Literal["new", "own"] = "new",
    ) -> None:
        if not isinstance(denoiser.process, GaussianProcess):
            raise ValueError(
                "thresholding bounds means of continuous data; this model's data are tokens. Leave it out."
            )
        if mode not in ("static", "dynamic"):
            raise ValueError(f"threshold {mode!r} is unknown; choose 'static' or 'dynamic'.")
        if noise not in ("new", "own"):
            raise ValueError(f"noise={noise!r} is unknown; choose 'new' or 'own'.")
        if not bound > 0 or not 0 < quantile <= 1:
            raise ValueError(f"bound={bound} must be positive and quantile={quantile} lie in (0, 1].")
        super().__init__(denoiser)
        self.mode, self.bound, self.quantile, self.noise = mode, bound, quantile, noise

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Bound the answer's mean."""
        post = self.denoiser(x, t, cond)
        bounded = self._bounded(post.mean)
        return self.process.with_mean(post, x, t, bounded, self.noise)  # type: ignore[return-value]

    def _bounded(self, mean: Tensor) -> Tensor:
        if self.mode == "static":
            return mean.clamp(-self.bound, self.bound)
        size = quantile_of(mean.abs().flatten(1), self.quantile) / self.bound
        size = size.clamp(min=1.0).reshape(-1, *[1] * (mean.ndim - 1))
        limit = self.bound * size
        return torch.minimum(torch.maximum(mean, -limit), limit) / size


def quantile_of(values: Tensor, q: float) -> Tensor:
    """Return the linearly interpolated quantile of each row, (B, N) -> (B,), for rows of any length.

    torch.quantile refuses more than 16 million numbers.
    """
    place = q * (values.shape[1] - 1)
    low = math.floor(place)
    above = values.topk(values.shape[1] - low, dim=1).values  # falling; the last is the one at `low`
    last = above[:, -1]
    return last if place == low else last + (place - low) * (above[:, -2] - last)
