"""BlindDPS: the picture by DPS, and the blur's kernel beside it by a diffusion of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.guidance.measurement import posterior_variance
from undiffuse.guidance.push import descent
from undiffuse.limits import at_least_one, positive
from undiffuse.models.model import Model
from undiffuse.noise import NoiseSource
from undiffuse.operators.base import Operator
from undiffuse.operators.simplex import project_simplex
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time
from undiffuse.tasks.restore.corrected import floored_number
from undiffuse.tasks.restore.kernel_prior import SeenBlur, kernel_of, kernel_prior, picture_of, sparse
from undiffuse.tasks.restore.misfit import LEAST_NORM
from undiffuse.tasks.restore.pushed import DPSRestorer
from undiffuse.tasks.restore.restorer import Problem, Solution
from undiffuse.tasks.restore.walk import process_of


@dataclass(frozen=True, kw_only=True)
class BlindDPSRestorer(DPSRestorer):
    """Deblurring where the kernel is unknown; the operator's kernel says its size, and without a prior is the start.

    Two diffusions walk side by side: that of the picture, by DPS with the kernel of the moment, and that of a picture
    of the kernel, guided by y and the answer of the moment. What that answer does not know yet counts as noise of y.
    The kernel of each row, at least 0 and with sum 1, is `learned` of the result; its evaluations are not counted.

    The paper pushes the kernel by DPS too; here it is moved by its own posterior covariance (MMPS), for y is linear in
    it but for its sum. That needs no second step size, and for a Gaussian prior of kernels it is exact. And the kernel
    lags behind: answers about the picture were pushed with the last kernel, so early ones confirm whatever it was. With
    a prior of eight known kernels their squared error is 0.07 to 0.19 of that without a lag, and 0.6 of that with the
    Gaussian (measured).

    Args:
        prior: On kernels: a model of pictures of them (1, h, w), trained on the data `kernels` or on your own, its name
            or folder, or a denoiser of such pictures in model units; "gaussian", that of the kernels that this library
            draws; or "none", `descents` gradient steps on |y - k * mean|^2 from the last kernel.
        lag: How many times as noisy the kernel is as the picture; 1 as published.
        sparsity: Share of the largest weight that counts as nothing; 0 keeps all.
        sparse_norm: "l0" leaves out weights below that share; "l1" lowers all others by it too.
        iterations: Of the solver of each answer about the kernel, each a backward pass of its network.
        descents: Kernel steps per sampling step without a prior.
        rate: Their length, in units of the longest that cannot overshoot.

    Source: Chung et al. 2022, "Parallel diffusion models of operator and image for blind inverse problems",
        arXiv:2211.10656.
    """

    needs: ClassVar[tuple[str, ...]] = ("kernel",)
    experimental: ClassVar[bool] = True
    any_noise: ClassVar[bool] = False
    uses_data_var: ClassVar[bool] = True
    prior: str | Model | Denoiser = "gaussian"
    lag: float = 10.0
    sparsity: float = 0.0
    sparse_norm: Literal["l0", "l1"] = "l0"
    iterations: int = 5
    descents: int = 10
    rate: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "iterations", "descents")
        positive(self, "rate", "lag")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity={self.sparsity} is outside [0, 1), a share of the largest weight.")

    def check(self, problem: Problem) -> list[str]:
        """Refuse a prior of other kernels before anything is computed.

        Raises:
            ValueError: It is one of pictures of another size, or not of grey pictures.
        """
        self.kernels(problem)
        return super().check(problem)

    def kernels(self, problem: Problem) -> Denoiser | None:
        """Return the prior on kernels, None without."""
        if self.prior == "none":
            return None
        operator: Any = problem.operator
        return kernel_prior(self.prior, tuple(operator.kernel.shape[-2:]), process_of(problem), problem.y.device)

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down with a kernel for each row."""
        search = KernelSearch(problem, self, self.zeta(problem, steps), noise)
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
        noise: Its items are the rows.

    Attributes:
        kernel: (R, h, w) as found so far.
    """

    def __init__(self, problem: Problem, options: BlindDPSRestorer, zeta: float | Tensor, noise: NoiseSource) -> None:
        operator: Any = problem.operator
        kernel = operator.kernel.to(problem.y.device, problem.dtype)
        self.problem, self.options, self.zeta, self.operator = problem, options, zeta, operator
        self.kernel = kernel.expand(problem.rows, *kernel.shape[-2:]).clone()
        prior = options.kernels(problem)
        self.walk = (
            None if prior is None else KernelWalk(prior, picture_of(self.kernel), options.eta, options.lag, noise)
        )

    def __call__(self, mean: Tensor, x: Tensor, t: Time) -> Tensor:
        """Return the direction of the push at an answer (R, *)."""
        y = self.problem.y
        found = self._descended(mean) if self.walk is None else self._answered(self.walk, mean, x, t)
        self.kernel = sparse(found, self.options.sparsity, self.options.sparse_norm)
        blur = self.operator.with_kernel(self.kernel)
        return self.zeta * descent(lambda m: (y - blur(m)).flatten(1).norm(dim=1).clamp(min=LEAST_NORM), mean)

    def _answered(self, walk: KernelWalk, mean: Tensor, x: Tensor, t: Time) -> Tensor:
        """The kernel's own answer at the same noise level, with the variance of the picture's for noise of y."""
        process = process_of(self.problem)
        unknown = posterior_variance(process, x, t, self.problem.data_var)
        std = (floored_number(self.problem) ** 2 + unknown) ** 0.5
        seen = SeenBlur(walk.denoiser, self.operator.of(mean), self.problem.y, std, self.options.iterations)
        return kernel_of(walk.ask(seen, walk.time(process, t)).mean)

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


class KernelWalk:
    """The reverse walk of pictures of kernels, a step each time the picture's next noise level is asked about.

    Args:
        denoiser: The prior of kernels.
        start: Pictures (R, 1, h, w), to which the noise of the first level is added.
        eta: Share of fresh noise in a DDIM step.
        lag: How many times as noisy the kernel is as the picture, as far as its schedule goes.
        noise: Its items are the rows.
    """

    def __init__(self, denoiser: Denoiser, start: Tensor, eta: float, lag: float, noise: NoiseSource) -> None:
        self.denoiser, self.eta, self.lag, self.noise = denoiser, eta, lag, noise
        self.process = cast(GaussianProcess, denoiser.process)
        self.state, self.steps = start, 0
        self.last: tuple[Posterior, float] | None = None

    def time(self, process: GaussianProcess, t: Time) -> float:
        """Return the kernels' time for the time `t` of the picture's process.

        Raises:
            ValueError: The time is not shared by the batch.
        """
        if isinstance(t, Tensor):
            raise ValueError("blind-dps takes times shared by the batch; use a grid without items.")
        half_logsnr = process.schedule.half_logsnr(torch.tensor(t, dtype=torch.float64)) - math.log(self.lag)
        return float(self.process.schedule.time(half_logsnr))

    def ask(self, seen: Denoiser, t: float) -> Posterior:
        """Step down to `t`, and return the answer there of what knows y."""
        z = self.noise.normal("operator", self.steps, tuple(self.state.shape[1:]), self.state.dtype)
        if self.last is None:
            self.state = self.process.corrupt(self.state, t, z)
        else:
            post, before = self.last
            self.state = self.process.transition(self.state, post, before, t, z, eta=self.eta)
        answer = cast(Posterior, seen(self.state, t))
        self.steps, self.last = self.steps + 1, (answer, t)
        return answer
