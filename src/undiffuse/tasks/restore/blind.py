"""BlindDPS: the picture by DPS, and the blur's kernel beside it, as far as each answer shows it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from undiffuse.guidance.measurement import posterior_variance
from undiffuse.guidance.push import descent
from undiffuse.noise import NoiseSource
from undiffuse.operators.base import Operator
from undiffuse.operators.simplex import project_simplex
from undiffuse.process.times import Time
from undiffuse.tasks.restore.corrected import floored_number
from undiffuse.tasks.restore.kernel_prior import kernel_prior
from undiffuse.tasks.restore.misfit import LEAST_NORM
from undiffuse.tasks.restore.pushed import DPSRestorer
from undiffuse.tasks.restore.restorer import Problem, Solution
from undiffuse.tasks.restore.walk import process_of


@dataclass(frozen=True, kw_only=True)
class BlindDPSRestorer(DPSRestorer):
    """Deblurring where the kernel is unknown; the operator's kernel says its size, and without a prior is the start.

    The answers of DPS take turns with estimates of the kernel of each row, positive and with sum 1, which `learned`
    of the result returns. The paper runs a second diffusion, trained on kernels; here the prior on kernels is the
    Gaussian of `kernel_prior`, whose most probable kernel given the answer has a closed form: what the answer does not
    know yet counts as noise of y, so early kernels stay near the mean.

    Args:
        prior: On kernels: "gaussian"; or "none", `descents` gradient steps on |y - k * mean|^2 from the last kernel.
        descents: Kernel steps per sampling step without a prior.
        rate: Their length, in units of the longest that cannot overshoot.

    Source: Chung et al. 2022, "Parallel diffusion models of operator and image for blind inverse problems",
        arXiv:2211.10656.
    """

    needs: ClassVar[tuple[str, ...]] = ("kernel",)
    experimental: ClassVar[bool] = True
    any_noise: ClassVar[bool] = False
    uses_data_var: ClassVar[bool] = True
    prior: Literal["gaussian", "none"] = "gaussian"
    descents: int = 10
    rate: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior not in ("gaussian", "none") or self.descents < 1 or not self.rate > 0:
            raise ValueError(
                f"prior={self.prior!r} must be 'gaussian' or 'none', descents={self.descents} at least 1 and "
                f"rate={self.rate} above 0."
            )

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down with a kernel for each row."""
        search = KernelSearch(problem, self, self.zeta(problem, steps))
        return replace(self.pushed(problem, noise, steps, search), learned={"kernel": search.kernel})

    def explained(self, operator: Operator, x: Tensor, learned: dict[str, Tensor]) -> Tensor:
        """Return x blurred by the kernels found."""
        blur: Any = operator
        return cast(Tensor, blur.with_kernel(learned["kernel"])(x))


class KernelSearch:
    """zeta times minus the gradient of the misfit with the kernel of the moment, which each answer improves.

    Args:
        problem: The measurement.
        options: Of the restorer.
        zeta: Size of a push, a number or one for each row.

    Attributes:
        kernel: (R, h, w) as found so far.
    """

    def __init__(self, problem: Problem, options: BlindDPSRestorer, zeta: float | Tensor) -> None:
        operator: Any = problem.operator
        kernel = operator.kernel.to(problem.y.device, problem.dtype)
        self.problem, self.options, self.zeta, self.operator = problem, options, zeta, operator
        self.kernel = kernel.expand(problem.rows, *kernel.shape[-2:]).clone()

    def __call__(self, mean: Tensor, x: Tensor, t: Time) -> Tensor:
        """Return the direction of the push at an answer (R, *)."""
        y = self.problem.y
        self.kernel = self._likely(mean, x, t) if self.options.prior == "gaussian" else self._descended(mean)
        blur = self.operator.with_kernel(self.kernel)
        return self.zeta * descent(lambda m: (y - blur(m)).flatten(1).norm(dim=1).clamp(min=LEAST_NORM), mean)

    def _likely(self, mean: Tensor, x: Tensor, t: Time) -> Tensor:
        """The most probable kernel, with the variance of the answer for noise of y."""
        unknown = posterior_variance(process_of(self.problem), x, t, self.problem.data_var)
        prior = kernel_prior(*self.kernel.shape[-2:])
        return prior.fitted(self.operator, mean, self.problem.y, floored_number(self.problem) ** 2 + unknown)

    def _descended(self, mean: Tensor) -> Tensor:
        """Projected gradient steps from the last kernel."""
        longest = torch.fft.fft2(mean).abs().square().flatten(1).amax(1) * mean[0].flatten(0, -3).shape[0]
        rate = (self.options.rate / longest.clamp(min=LEAST_NORM)).reshape(-1, 1, 1)

        def loss(k: Tensor) -> Tensor:
            return 0.5 * (self.problem.y - self.operator.with_kernel(k)(mean)).flatten(1).square().sum(1)

        kernel = self.kernel
        for _ in range(self.options.descents):
            kernel = project_simplex(kernel + rate * descent(loss, kernel))
        return kernel
