r"""Wrappers that correct the mean with the posterior's own covariance V = (sigma^2 / alpha) J.

For Gaussian x_0 given x_t the corrected mean is exact: mean + V A^T (A V A^T + sy^2)^-1 (y - A mean). MMPS solves the
system by Krylov iterations, TMPD takes its diagonal, JFPS takes V from a fixed covariance of the data.

A network's V is the derivative times sigma^2 / alpha, so where there is much noise a small error of the derivative is a
large one of V, and a single step can throw a sample out of the data for good. A true covariance never moves the mean
away from y: the residual afterwards is sy^2 (A V A^T + sy^2)^-1 times the one before. So MMPS cuts a shift that makes
it longer down to where it fits y best (`kept_near`).
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.linearised import Linearised
from undiffuse.denoisers.posterior import AnyPosterior, Posterior
from undiffuse.guidance.measurement import Informed, MeasurementWrapper, inner
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import LinearOperator
from undiffuse.operators.krylov import conjugate_gradient, gmres
from undiffuse.process.gaussian import fit
from undiffuse.process.times import Time, align

_ROUNDED = 0.5  # of sy^2: no rounding makes a curvature that small


class MMPS(Informed):
    """mean + V A^T (A V A^T + sy^2)^-1 (y - A mean), the system solved by a few Krylov iterations.

    Exact for Gaussian data and enough iterations; each costs a backward pass, or none where the denoiser knows V. A
    network's V may be no covariance where there is much noise: "cg" stops where the matrix has less than sy^2.

    Args:
        denoiser, operator, y, noise_std: See `MeasurementWrapper`; the noise must be positive.
        iterations: Of the solver; as many as there are measurements are exact.
        krylov: "cg", for V that are symmetric, or "gmres", which a network's need not be.

    Source: Rozet et al. 2024, "Learning diffusion priors from observations by expectation maximization",
        arXiv:2405.13712, section 4.2.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        noise_std: float | Tensor,
        iterations: int = 5,
        krylov: Literal["cg", "gmres"] = "cg",
    ) -> None:
        if iterations < 1 or krylov not in ("cg", "gmres"):
            raise ValueError(f"iterations={iterations} must be at least 1 and krylov={krylov!r} be 'cg' or 'gmres'.")
        super().__init__(denoiser, operator, y, noise_std)
        self.iterations, self.krylov = iterations, krylov

    def shift(self, answer: Linearised, x: Tensor, t: Time) -> Tensor:
        """Return V A^T u with (A V A^T + sy^2) u = y - A mean."""
        operator, y, std = self.measured(x)
        linear = cast(LinearOperator, operator)
        residual = y - linear(answer.post.mean)
        return kept_near(self.gain(linear, answer, std, residual), linear, residual, std)

    def gain(self, operator: LinearOperator, answer: Linearised, std: float | Tensor, residual: Tensor) -> Tensor:
        """Return V A^T (A V A^T + sy^2)^-1 residual, (B, *)."""
        solved = self.solved(operator, answer, std, residual)
        return answer.cov(operator.adjoint(solved))

    def solved(self, operator: LinearOperator, answer: Linearised, std: float | Tensor, residual: Tensor) -> Tensor:
        """Return (A V A^T + sy^2)^-1 residual, (B, *out_shape)."""

        def matrix(v: Tensor) -> Tensor:
            return operator(answer.cov(operator.adjoint(v))) + std**2 * v

        if self.krylov == "gmres":
            return gmres(matrix, residual, self.iterations)
        least = _ROUNDED * float(torch.as_tensor(std).min()) ** 2
        return conjugate_gradient(matrix, residual, iterations=self.iterations, tol=0.0, least=least)


class TMPD(Informed):
    """mean + V A^T (y - A mean) / (diag(A V A^T) + sy^2): the matrix replaced by its diagonal.

    The paper takes the row sums A V A^T 1 for the diagonal, which can vanish where pixels anti-correlate, and then
    diverges; this takes the diagonal itself, exactly from unit vectors or estimated from random signs.

    Args:
        denoiser, operator, y, noise_std: See `MeasurementWrapper`.
        probes: Random vectors of the estimate, a backward pass each; 0: unit vectors, one for each number of y.

    Source: Boys et al. 2023, "Tweedie moment projected diffusions for inverse problems", arXiv:2310.06721, eq. 10.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        noise_std: float | Tensor,
        probes: int = 0,
    ) -> None:
        if probes < 0:
            raise ValueError(f"probes={probes} must be at least 0; 0 takes unit vectors.")
        super().__init__(denoiser, operator, y, noise_std)
        self.probes = probes

    def shift(self, answer: Linearised, x: Tensor, t: Time) -> Tensor:
        """Return V A^T (y - A mean) / (diag + sy^2)."""
        operator, y, std = self.measured(x)
        linear = cast(LinearOperator, operator)
        residual = y - linear(answer.post.mean)
        diagonal = self._diagonal(linear, answer, y).clamp(min=0)
        total = diagonal + std**2
        return answer.cov(linear.adjoint(torch.where(total > 0, residual / total, 0.0)))

    def _diagonal(self, operator: LinearOperator, answer: Linearised, y: Tensor) -> Tensor:
        vectors = _signs(y, self.probes) if self.probes else _units(y)
        total = torch.zeros_like(y)
        for v in vectors:
            total = total + v * operator(answer.cov(operator.adjoint(v)))
        return total / self.probes if self.probes else total


class JFPS(MeasurementWrapper):
    """mean + V A^T (A V A^T + sy^2)^-1 (y - A mean) with V = (C^-1 + alpha^2 / sigma^2)^-1.

    C is a fixed covariance of the data. Exact for data N(m, C). Nothing is differentiated.

    Args:
        denoiser, operator, y, noise_std: See `MeasurementWrapper`.
        covariance: C, (D, D) over the flattened state, or a number v for v I.
        iterations: Of conjugate gradients.

    Source: Rozet et al. 2024, arXiv:2405.13712, appendix; azula's "jfps".
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: LinearOperator,
        y: Tensor,
        noise_std: float | Tensor,
        covariance: Tensor | float,
        iterations: int = 20,
    ) -> None:
        super().__init__(denoiser, operator, y, noise_std)
        self.iterations = iterations
        size = torch.as_tensor(covariance, dtype=torch.float64)
        if size.ndim not in (0, 2) or (size.ndim == 2 and size.shape[0] != size.shape[1]):
            raise ValueError(f"covariance has shape {tuple(size.shape)}; expected a number or (D, D).")
        self.variances: Tensor = size
        self.basis: Tensor | None = None
        if size.ndim == 2:
            self.variances, self.basis = torch.linalg.eigh((size + size.mT) / 2)

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Move the answer's mean towards the measurement."""
        post = cast(Posterior, self.denoiser(x, t, cond))
        operator, y, std = self.measured(x)
        linear = cast(LinearOperator, operator)

        def cov(v: Tensor) -> Tensor:
            return self._rest(v, t)

        def matrix(v: Tensor) -> Tensor:
            return linear(cov(linear.adjoint(v))) + std**2 * v

        residual = y - linear(post.mean)
        solved = conjugate_gradient(matrix, residual, iterations=self.iterations, tol=0.0)
        mean = post.mean + cov(linear.adjoint(solved))
        return cast(Posterior, self.process.with_mean(post, x, t, mean, "new")).replace(raw=None)

    def _rest(self, v: Tensor, t: Time) -> Tensor:
        """Return V v; times per element are those of the item's noisiest element."""
        if isinstance(t, Tensor) and t.ndim > 1:
            t = t.flatten(1).amax(1).expand(len(v))
        alpha, sigma = (fit(c, v) for c in self.process.evaluate("levels", self.process.schedule.levels, t))
        if self.basis is None:
            white = float(self.variances)
            return white * sigma**2 / (alpha**2 * white + sigma**2) * v
        basis, variances = (part.to(v.device, v.dtype) for part in (self.basis, self.variances.clamp(min=0)))
        levels = (c.reshape(-1, 1) if isinstance(c, Tensor) else c for c in (alpha, sigma))
        a, s = levels
        inside = v.flatten(1) @ basis * (variances * s**2 / (a**2 * variances + s**2))
        return (inside @ basis.T).reshape(v.shape)


def kept_near(shift: Tensor, operator: LinearOperator, residual: Tensor, std: float | Tensor) -> Tensor:
    """Return shifts that make no residual longer, in units of its noise: c shift with the c in [0, 1] that fits best.

    Rows whose residual does not grow are left as they are, bit for bit.

    Args:
        shift: Of the mean, (B, *).
        operator: A.
        residual: y - A mean, (B, *out_shape).
        std: Noise of y.
    """
    weight = 1 / std if isinstance(std, Tensor) else 1.0
    before, along = weight * residual, weight * operator(shift)
    grown = inner(before - along, before - along) > inner(before, before)
    best = (inner(before, along) / inner(along, along).clamp(min=torch.finfo(along.dtype).tiny)).clamp(0.0, 1.0)
    return align(torch.where(grown, best, 1.0), shift) * shift


def _units(y: Tensor) -> list[Tensor]:
    size = y[0].numel()
    eye = torch.eye(size, dtype=y.dtype, device=y.device)
    return [row.reshape(1, *y.shape[1:]).expand_as(y) for row in eye]


def _signs(y: Tensor, count: int) -> list[Tensor]:
    """Random signs, the same in every step and for every row."""
    noise = KeyedNoise(0, [0], y.device)
    draws = (noise.uniform("probe", k, tuple(y.shape[1:])) for k in range(count))
    return [torch.where(u < 0.5, -1.0, 1.0).to(y.dtype).expand_as(y) for u in draws]
