"""Latent priors: the operator seen from the latents, and ReSample, which fits latents to the measurement on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.codecs.codec import Codec
from undiffuse.denoisers.posterior import Posterior
from undiffuse.guidance.push import descent
from undiffuse.limits import at_least_one, positive
from undiffuse.noise import NoiseSource
from undiffuse.operators.base import Operator
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.ddim import DDIM
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.walk import grid_of, process_of, walk


class Decoded(Operator):
    """y = A(D(z)) of latents z: what a pixel operator is to a latent prior. Not linear; differentiable if A is.

    Args:
        pixels: A, on data, which may be larger or smaller than those of the model.
        codec: D, and E for a start.

    Raises:
        ValueError: The operator does not take what the codec decodes.
    """

    kind = "decoded"

    def __init__(self, pixels: Operator, codec: Codec) -> None:
        super().__init__(codec.code_shape(tuple(pixels.in_shape)), pixels.out_shape)
        self.pixels, self.codec = pixels, codec
        self.differentiable = pixels.differentiable
        self.has_pinv = False

    def apply(self, x: Tensor) -> Tensor:
        """Return A(D(z))."""
        return self.pixels(self.decoded(x))

    def guess(self, y: Tensor) -> Tensor:
        """Return the latents of a rough answer in pixels."""
        return self.encoded(self.pixels.guess(y))

    def to_items(self, y: Tensor) -> Tensor:
        """Return the latents of y on the grid of the data."""
        return self.encoded(self.pixels.to_items(y))

    def decoded(self, z: Tensor) -> Tensor:
        """Return the data of latents, in their dtype."""
        return self.codec.decode(z.float()).to(z.dtype)

    def encoded(self, x: Tensor) -> Tensor:
        """Return the latents of data, in their dtype."""
        return self.codec.encode(x.float()).to(x.dtype)

    @property
    def rows(self) -> int | None:
        """Of the pixel operator."""
        return self.pixels.rows

    def take(self, index: Tensor) -> Decoded:
        """Return the operator for some rows."""
        return self if self.rows is None else Decoded(self.pixels.take(index), self.codec)

    def known(self, like: Tensor) -> Tensor | None:
        """Of the pixel operator."""
        return self.pixels.known(like)

    def label(self) -> str:
        """Return what it is, in latents."""
        return f"{self.pixels.label()} of decoded latents"


class LatentFit(Constraint):
    """Every few steps: latents that fit y, by gradient descent from the answer, then back to the noise level.

    The state after a step is drawn between the fitted latents' state and the one that sampling reached,
    N((v alpha z + sigma^2 x) / (v + sigma^2), v sigma^2 / (v + sigma^2)).

    Args:
        process: Of the denoiser.
        problem: The measurement.
        options: Of the restorer.
    """

    def __init__(self, process: GaussianProcess, problem: Problem, options: ReSampleRestorer) -> None:
        self.process, self.problem, self.options = process, problem, options
        self.answer: Tensor | None = None
        self.time = 1.0

    def correct(self, post: Posterior, x: Tensor, t: Time, s: Time) -> Posterior:
        """Remember the answer that the step after it is fitted from."""
        self.answer, self.time = post.mean, float(t)
        return post

    def leave(self, x: Tensor, s: Time, k: int, noise: NoiseSource) -> tuple[Tensor, bool]:
        """Fit and resample."""
        end = float(s) == 0
        if self.answer is None or ((k + 1) % self.options.every and not end):
            return x, False
        z = self._fitted(x if end else self.answer)
        if end:
            return z, True
        schedule = self.process.schedule
        alpha, sigma = self.process.coefficients(s, x)
        before, most = self.process.coefficients(min(self.time, schedule.t_max), x)
        # gamma (1 - a_s) / a_t (1 - a_t / a_s) with a = alpha^2 where alpha^2 + sigma^2 = 1; x is scaled to be there.
        length = (alpha**2 + sigma**2) ** 0.5
        alpha, sigma = alpha / length, sigma / length
        level = sigma / alpha
        v = self.options.gamma * sigma**2 * ((most / before) ** 2 - level**2)
        mean = (v * alpha * z + sigma**2 * x / length) / (v + sigma**2)
        std = (v * sigma**2 / (v + sigma**2)) ** 0.5
        return length * (mean + std * noise.normal("corrector", k, tuple(x.shape[1:]), x.dtype)), True

    def _fitted(self, z: Tensor) -> Tensor:
        """Descend |y - A(D(z))|^2 by Adam with the usual constants; rows do not see each other."""
        first, second = torch.zeros_like(z), torch.zeros_like(z)
        for i in range(1, self.options.descents + 1):
            gradient = -descent(self._loss, z)
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            z = z - self.options.rate * (first / (1 - 0.9**i)) / ((second / (1 - 0.999**i)).sqrt() + 1e-8)
        return z

    def _loss(self, z: Tensor) -> Tensor:
        return (self.problem.y - self.problem.operator(z)).flatten(1).square().sum(1)


@dataclass(frozen=True, kw_only=True)
class ReSampleRestorer(Restorer):
    """ReSample: hard data consistency of latents every few steps.

    Args:
        every: Steps between fits.
        descents: Gradient steps of a fit.
        rate: Their length.
        gamma: Weight of the fitted latents in resampling.
        grid: Spacing of the steps.

    Source: Song et al. 2023, "Solving inverse problems with latent diffusion models via hard data consistency",
        arXiv:2307.08123, algorithm 1 and proposition 1.
    """

    needs: ClassVar[tuple[str, ...]] = ("codec", "differentiable")
    noise: ClassVar[bool] = False
    experimental: ClassVar[bool] = True
    every: int = 10
    descents: int = 50
    rate: float = 0.02
    gamma: float = 40.0
    grid: str = "t"

    def __post_init__(self) -> None:
        at_least_one(self, "every", "descents")
        positive(self, "rate", "gamma")

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down with DDIM, fitted on the way."""
        fit: Any = LatentFit(process_of(problem), problem, self)
        return walk(problem, noise, DDIM(), grid_of(problem, steps, self.grid), constraints=[fit])
