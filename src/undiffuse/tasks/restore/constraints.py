"""Constraints that hold a sample to a measurement: at the denoiser's answer, or at the state after a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from undiffuse.denoisers.posterior import Posterior
from undiffuse.noise import NoiseSource
from undiffuse.operators.base import LinearOperator
from undiffuse.operators.diagonal import Mask
from undiffuse.operators.krylov import conjugate_gradient
from undiffuse.operators.mri import MRI, SingleCoilMRI
from undiffuse.process.gaussian import Coefficient, GaussianProcess
from undiffuse.process.times import Time
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.pushed import PUSH
from undiffuse.tasks.restore.restorer import Problem
from undiffuse.tasks.restore.walk import process_of


class RangeProjection(Constraint):
    """mean <- mean - A^+ (A mean - y): the answer fits y, and where A is silent it is the denoiser's.

    Args:
        process: Of the denoiser.
        operator, y: The measurement; its noise is reproduced.
        eps: "own": the network's noise is kept, as in the published code; "new": it follows from the new mean, which
            doubles the spread (measured) and is there to show it.
        share: From the times of a step to the part of the correction that is made; None: all of it.

    Source: Wang et al. 2022, "Zero-shot image restoration using denoising diffusion null-space model",
        arXiv:2212.00490, eq. 13.
    """

    stateless: ClassVar[bool] = True

    def __init__(
        self,
        process: GaussianProcess,
        operator: LinearOperator,
        y: Tensor,
        eps: Literal["own", "new"] = "own",
        share: Callable[[Time, Time], float] | None = None,
    ) -> None:
        self.process, self.operator, self.y, self.eps, self.share = process, operator, y, eps, share

    def correct(self, post: Posterior, x: Tensor, t: Time, s: Time) -> Posterior:
        """Project the answer."""
        back = self.operator.pinv(self.operator(post.mean) - self.y)
        mean = post.mean - (back if self.share is None else self.share(t, s) * back)
        return cast(Posterior, self.process.with_mean(post, x, t, mean, self.eps))


class KnownPixels(RangeProjection):
    """`RangeProjection` by a mask, which replaces the known pixels of an answer by y; a push leaves them alone.

    Args:
        problem: Its operator is a mask; its noise is reproduced.
        eps: "own" noise of the answer, or "new".

    Source: The published code of Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems".
    """

    def __init__(self, problem: Problem, eps: Literal["own", "new"]) -> None:
        super().__init__(process_of(problem), cast(LinearOperator, problem.operator), problem.y, eps)

    def correct(self, post: Posterior, x: Tensor, t: Time, s: Time) -> Posterior:
        """Replace what is known."""
        post = super().correct(post, x, t, s)
        if PUSH not in post.extras:
            return post
        push = post.extras[PUSH]
        return post.replace(extras={**post.extras, PUSH: push - self.operator.pinv(self.operator(push))})

    @staticmethod
    def check(problem: Problem) -> list[str]:
        """Warn of noise that will be reproduced.

        Raises:
            ValueError: The operator is no mask.
        """
        if not isinstance(problem.operator, Mask):
            raise ValueError(
                f"replace_known=true replaces the known pixels of a mask, and {problem.operator.describe()} is none; "
                "leave it out."
            )
        if problem.noise_std == 0 and problem.noise_model is None:
            return []
        return [
            f"noise of {problem.noise_std:g} (model units) in y will be reproduced by replace_known=true; leave it out."
        ]


class DataFit(Constraint):
    """mean <- a few conjugate-gradient steps from it on (I + gamma A^T A) x = mean + gamma A^T y; own noise.

    Args:
        process: Of the denoiser.
        operator, y: The measurement.
        gamma: Weight of the data.
        iterations: Of conjugate gradients.

    Source: Chung et al. 2023, "Decomposed diffusion sampler for accelerating large-scale inverse problems",
        arXiv:2303.05754, algorithm 1.
    """

    stateless: ClassVar[bool] = True

    def __init__(
        self, process: GaussianProcess, operator: LinearOperator, y: Tensor, gamma: float, iterations: int
    ) -> None:
        self.process, self.operator, self.gamma, self.iterations = process, operator, gamma, iterations
        self.y = y
        self.back = gamma * operator.adjoint(y)

    def correct(self, post: Posterior, x: Tensor, t: Time, s: Time) -> Posterior:
        """Fit the answer to the data."""
        return cast(Posterior, self.process.with_mean(post, x, t, self.fitted(post.mean), "own"))

    def fitted(self, mean: Tensor) -> Tensor:
        """Return the answer that fits the data too."""
        return self.solved(mean + self.back, mean, lambda v: v + self.gamma * self.operator.gram(v))

    def solved(self, right: Tensor, start: Tensor, matrix: Callable[[Tensor], Tensor]) -> Tensor:
        """Return where conjugate gradients come on matrix(x) = right."""
        return conjugate_gradient(matrix, right, start=start, iterations=self.iterations, tol=0.0)


class SmoothSlices(DataFit):
    """mean <- argmin_x |x - mean|^2 / 2 + gamma |A x - y|^2 / 2 + lam |D x|_1, D the differences of slices; own noise.

    A few rounds of ADMM, whose jumps (D x, shrunk) and duals are kept from step to step, as published. The publication
    has no |x - mean|^2, and starts at the mean instead; without smoothing this is `DataFit` exactly.

    Args:
        process: Of the denoiser.
        operator, y: The measurement, of items (Z, *) of Z slices.
        gamma: Weight of the data.
        iterations: Of conjugate gradients, in each round.
        lam: Weight of the differences.
        rho: Weight of the split D x = jumps; which answer is right does not depend on it, how fast it is found does.
        rounds: Of ADMM, in each step.

    Source: Chung et al. 2023, "Solving 3D inverse problems using pre-trained 2D diffusion models", arXiv:2211.10655,
        algorithm 1.
    """

    stateless: ClassVar[bool] = False

    def __init__(
        self,
        process: GaussianProcess,
        operator: LinearOperator,
        y: Tensor,
        gamma: float,
        iterations: int,
        *,
        lam: float,
        rho: float,
        rounds: int,
    ) -> None:
        super().__init__(process, operator, y, gamma, iterations)
        self.lam, self.rho, self.rounds = lam, rho, rounds
        self.jumps = self.duals = y.new_zeros(len(y), operator.in_shape[0] - 1, *operator.in_shape[1:])

    def fitted(self, mean: Tensor) -> Tensor:
        """Return the answer that fits the data and its neighbours too."""
        if self.lam == 0:
            return super().fitted(mean)

        def matrix(v: Tensor) -> Tensor:
            return v + self.gamma * self.operator.gram(v) + self.rho * _differences_adjoint(v.diff(dim=1))

        right, most, x = mean + self.back, self.lam / self.rho, mean
        for _ in range(self.rounds):
            x = self.solved(right + self.rho * _differences_adjoint(self.jumps - self.duals), x, matrix)
            seen = x.diff(dim=1) + self.duals
            self.duals = seen.clamp(-most, most)
            self.jumps = seen - self.duals  # seen, shrunk by lam / rho
        return x


def _differences_adjoint(jumps: Tensor) -> Tensor:
    """Return D^T jumps (B, Z, *) of jumps (B, Z - 1, *), for D x = x.diff(dim=1)."""
    edge = torch.zeros_like(jumps[:, :1])
    return -jumps.diff(dim=1, prepend=edge, append=edge)


class StateFit(Constraint):
    """x <- x + weight B (alpha y + sigma n - A x) after each step, at the noise level of its end.

    B is the pseudo-inverse or the adjoint; the noise n is drawn in the measurement ("y": RePaint, MCG), is A z with z
    in the state ("x": ILVR, measurement-space sampling of MRI), or absent ("none": Score-MRI).

    Args:
        process: Of the denoiser.
        operator, y: The measurement; its noise is reproduced.
        weight: lam in [0, 1]; 1 holds the measured part to y.
        back: "pinv" or "adjoint".
        noise: "y", "x" or "none".
        until: Times below this are left alone.

    Source: RePaint: Lugmayr et al. 2022, arXiv:2201.09865, eq. 8; ILVR: Choi et al. 2021, arXiv:2108.02938, eq. 8;
        MCG: Chung et al. 2022, arXiv:2206.00941, eq. 15; MRI and CT: Song et al. 2021, arXiv:2111.08005, eq. 10.
    """

    stateless: ClassVar[bool] = True

    def __init__(
        self,
        process: GaussianProcess,
        operator: LinearOperator,
        y: Tensor,
        *,
        weight: float = 1.0,
        back: Literal["pinv", "adjoint"] = "pinv",
        noise: Literal["y", "x", "none"] = "y",
        until: float = 0.0,
    ) -> None:
        self.process, self.operator, self.y = process, operator, y
        self.weight, self.back, self.noise, self.until = weight, back, noise, until

    def leave(self, x: Tensor, s: Time, k: int, noise: NoiseSource) -> tuple[Tensor, bool]:
        """Hold the state to the measurement."""
        if isinstance(s, Tensor) or s < self.until:
            if isinstance(s, Tensor):
                raise ValueError("a measurement is held at times shared by the batch; use a grid without items.")
            return x, False
        alpha, sigma = self.process.coefficients(s, x)
        aim = alpha * self.y + self._disturbed(sigma, x, k, noise)
        rest = aim - self.operator(x)
        back = self.operator.pinv(rest) if self.back == "pinv" else self.operator.adjoint(rest)
        return x + self.weight * back, True

    def _disturbed(self, sigma: Coefficient, x: Tensor, k: int, noise: NoiseSource) -> Tensor | float:
        if self.noise == "none" or (not isinstance(sigma, Tensor) and sigma == 0):
            return 0.0
        shape = tuple((self.y if self.noise == "y" else x).shape[1:])
        z = noise.normal("corrector", k, shape, x.dtype)
        return sigma * (z if self.noise == "y" else self.operator(z))


class CoilFit(StateFit):
    """`StateFit` of the pictures of all coils by themselves, which every few steps become those of one picture.

    The states x_c become S_c sum_c conj(S_c) x_c, and what these cannot hold, which is noise alone, is drawn anew: so
    the noise of each picture keeps its level, which it would else lose.

    Args:
        process: Of the denoiser.
        scan: An MR scan; its sensitivities have sum_c |S_c|^2 = 1.
        y: Its measurement; its noise is reproduced.
        every: Steps from one combination to the next.
        weight: Of the data.

    Source: Chung and Ye 2022, "Score-based diffusion models for accelerated MRI", arXiv:2110.05243, the hybrid form.
    """

    def __init__(
        self, process: GaussianProcess, scan: MRI | SingleCoilMRI, y: Tensor, *, every: int, weight: float
    ) -> None:
        super().__init__(process, scan.each_coil(), y, weight=weight, back="adjoint", noise="none")
        self.scan, self.every = scan, every

    def leave(self, x: Tensor, s: Time, k: int, noise: NoiseSource) -> tuple[Tensor, bool]:
        """Hold every coil's state to its measurement, and all to each other."""
        x, _ = super().leave(x, s, k, noise)
        if (k + 1) % self.every:
            return x, True
        z = noise.normal("corrector", k, tuple(x.shape[1:]), x.dtype)
        sigma = self.process.coefficients(s, x)[1]
        return self._together(x) + sigma * (z - self._together(z)), True

    def _together(self, x: Tensor) -> Tensor:
        return self.scan.split(self.scan.combined(x))


def conditioned(operator: LinearOperator) -> float | None:
    """Return the ratio of the largest to the smallest positive singular value, None where it is not known."""
    if not operator.is_svd:
        return None
    s = operator.singulars().double()  # type: ignore[attr-defined]
    positive = s[s > 1e-10 * s.max()]
    return float(positive.max() / positive.min()) if len(positive) else None


def poorly_conditioned(operator: LinearOperator, most: float = 30.0) -> bool:
    """Whether the pseudo-inverse amplifies some directions more than `most` times as much as others."""
    ratio = conditioned(operator)
    return ratio is not None and ratio > most
