"""BlindDPS: the picture by DPS, and the blur's kernel beside it by projected gradient steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.guidance.push import Direction, descent
from undiffuse.operators.simplex import project_simplex
from undiffuse.process.times import Time
from undiffuse.tasks.restore.pushed import DPSRestorer
from undiffuse.tasks.restore.restorer import Problem


@dataclass(frozen=True, kw_only=True)
class BlindDPSRestorer(DPSRestorer):
    """Deblurring where the kernel is unknown; the operator's kernel is the first guess, and says its size.

    Between the steps of DPS the kernel of each row takes `descents` gradient steps on |y - k * mean|^2, each followed
    by the projection on kernels that are positive and sum to 1. There is no prior on kernels (the paper trains one).

    Args:
        descents: Kernel steps per sampling step.
        rate: Their length, in units of the longest that cannot overshoot.

    Source: Chung et al. 2022, "Parallel diffusion models of operator and image for blind inverse problems",
        arXiv:2211.10656.
    """

    needs: ClassVar[tuple[str, ...]] = ("kernel",)
    experimental: ClassVar[bool] = True
    any_noise: ClassVar[bool] = False
    descents: int = 10
    rate: float = 0.5

    def direction(self, problem: Problem, steps: int) -> Direction:
        """Return zeta times minus the gradient of the misfit, with the kernel of the moment."""
        zeta = self.zeta(problem, steps)
        operator: Any = problem.operator
        kernel = operator.kernel.to(problem.y.device, problem.dtype)
        state = {"kernel": kernel.expand(problem.rows, *kernel.shape[-2:]).clone()}

        def along(mean: Tensor, x: Tensor, t: Time) -> Tensor:
            state["kernel"] = self.improved(operator, state["kernel"], mean, problem.y)
            blur = operator.with_kernel(state["kernel"])
            return zeta * descent(lambda m: (problem.y - blur(m)).flatten(1).norm(dim=1).clamp(min=1e-12), mean)

        return along

    def improved(self, operator: Any, kernel: Tensor, mean: Tensor, y: Tensor) -> Tensor:
        """Return kernels (B, h, w) that fit y better for clean pictures `mean`."""
        longest = torch.fft.fft2(mean).abs().square().flatten(1).amax(1) * mean[0].flatten(0, -3).shape[0]
        rate = (self.rate / longest.clamp(min=1e-12)).reshape(-1, 1, 1)

        def loss(k: Tensor) -> Tensor:
            return 0.5 * (y - operator.with_kernel(k)(mean)).flatten(1).square().sum(1)

        for _ in range(self.descents):
            kernel = project_simplex(kernel + rate * descent(loss, kernel))
        return kernel
