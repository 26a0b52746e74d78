"""GDP: guide the answer by the data's gradient without the network's, and learn what is unknown of the degradation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from undiffuse.denoisers.posterior import Posterior
from undiffuse.guidance.measurement import posterior_variance
from undiffuse.guidance.push import descent
from undiffuse.limits import positive
from undiffuse.noise import NoiseSource
from undiffuse.operators.base import Operator, per_row
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.ddim import DDIM
from undiffuse.tasks.restore.light import Light, UnevenLight
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.walk import grid_of, process_of, walk


class DataGradient(Constraint):
    """mean <- mean - step grad |y - f A(mean) - m|^2 / 2, a few times; f and m are learned beside it where asked for.

    They are what fits y best over A(mean) (see `light`), followed slowly, and the more slowly the less of the data's
    variance the answer explains. The answer is the network's own: one that has just been moved towards y tells the
    length of that move (f = sqrt(1 / step) whatever the light was), and an answer to pure noise tells nothing.

    Args:
        process: Of the denoiser.
        problem: The measurement.
        options: Of the restorer.

    Attributes:
        factor, offset: f and m as learned so far, (R, 1, ...) each; of uneven light m is (R, 1, H, W).
    """

    def __init__(self, process: GaussianProcess, problem: Problem, options: GDPRestorer) -> None:
        self.process, self.problem, self.options = process, problem, options
        operator: Any = problem.operator
        self.step = options.scale / (operator.norm() ** 2 if operator.linear else 1.0)
        self.light = UnevenLight(options.smooth) if options.light == "pixel" else Light()
        y = problem.y.to(problem.dtype)
        self.offset = torch.zeros_like(self.light.offset(y))
        self.factor = y.new_ones(len(y), *[1] * (y.ndim - 1))

    def correct(self, post: Posterior, x: Tensor, t: Time, s: Time) -> Posterior:
        """Guide the answer, and the degradation's parameters by it."""
        mean = post.mean
        if self.options.light:
            self._learn(mean, x, t)
        step = self.step / per_row(self.factor.flatten().square().clamp(min=1e-2), mean)
        for _ in range(self.options.repeats):
            mean = mean + step * descent(self._loss, mean)
        return cast(Posterior, self.process.with_mean(post, x, t, mean, "new"))

    def _loss(self, mean: Tensor) -> Tensor:
        rest = self.problem.y - self.factor * self.problem.operator(mean) - self.offset
        return 0.5 * rest.flatten(1).square().sum(1)

    def _learn(self, mean: Tensor, x: Tensor, t: Time) -> None:
        """Follow the line through y over A(mean) as fast as the answer is known."""
        seen, y = self.problem.operator(mean), self.problem.y
        rate = self.options.rate * self._known(x, t, y)
        self.factor = self.factor + rate * (self.light.factor(seen, y) - self.factor)
        self.offset = self.offset + rate * (self.light.offset(y - self.factor * seen) - self.offset)

    def _known(self, x: Tensor, t: Time, like: Tensor) -> float | Tensor:
        """Return the share of the data's variance that an answer at `t` explains."""
        known = 1 - posterior_variance(self.process, x, t, self.problem.data_var) / self.problem.data_var
        return per_row(known.flatten(1).mean(1), like) if isinstance(known, Tensor) else known


@dataclass(frozen=True, kw_only=True)
class GDPRestorer(Restorer):
    """Generative diffusion prior.

    Args:
        scale: Length of a gradient step, in units of 1 / |f A|^2: 1 is the longest that cannot overshoot.
        repeats: Gradient steps per answer.
        light: Learn a factor and an offset of the measurement, as for pictures taken in low light: "picture" (or true)
            for one of each, "pixel" for an offset at each pixel, where the light is uneven; false: neither.
        smooth: How far the light of a pixel reaches, in units of the picture's longer side; see `light.UnevenLight`.
            The publication has no such prior of light but penalties of colour and exposure beside.
        rate: How fast those follow the answer.
        eta: Share of fresh noise.
        grid: Spacing of the steps.

    Source: Fei et al. 2023, "Generative diffusion prior for unified image restoration and enhancement",
        arXiv:2304.01247, algorithms 1 and 2, guiding x_0.
    """

    needs: ClassVar[tuple[str, ...]] = ("differentiable",)
    noise: ClassVar[bool] = False
    scale: float = 0.5
    repeats: int = 1
    light: bool | Literal["picture", "pixel"] = False
    smooth: float = 0.1
    rate: float = 0.3
    eta: float = 1.0
    grid: str = "t"

    def __post_init__(self) -> None:
        if not self.scale > 0 or self.repeats < 1 or not 0 < self.rate <= 1:
            raise ValueError(
                f"scale={self.scale} must be positive, repeats={self.repeats} at least 1, rate={self.rate} in (0, 1]."
            )
        positive(self, "smooth")

    def check(self, problem: Problem) -> list[str]:
        """Refuse light of pixels where the measurement has none.

        Raises:
            ValueError: It is no picture.
        """
        if self.light == "pixel" and problem.y.ndim != 4:
            raise ValueError(
                f"light=pixel needs a measurement that is a picture (C, H, W), and {problem.operator.describe()} gives "
                "none; use light=picture."
            )
        return super().check(problem)

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down, guided at every answer."""
        guide = DataGradient(process_of(problem), problem, self)
        solution = walk(problem, noise, DDIM(eta=self.eta), grid_of(problem, steps, self.grid), constraints=[guide])
        return replace(solution, learned={"factor": guide.factor, "offset": guide.offset}) if self.light else solution

    def explained(self, operator: Operator, x: Tensor, learned: dict[str, Tensor]) -> Tensor:
        """Return f A(x) + m."""
        seen = operator(x)
        return learned["factor"] * seen + learned["offset"] if learned else seen
