r"""Wrappers that tell a denoiser about a measurement y = A(x_0) + noise: the answer becomes E[x_0 | x_t, y].

Each moves the posterior mean by a gain times the residual y - A(mean), as a Kalman filter does, and differs in what it
takes for the covariance of x_0 given x_t. The noise follows from the new mean, so any sampler works with them, and any
wrapper around them. Here are those that take r^2 I for it; those of `guidance.covariance` ask the denoiser.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.linearised import Linearised
from undiffuse.denoisers.posterior import AnyPosterior, Posterior
from undiffuse.guidance.guidance import tiled
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import Coefficient, GaussianProcess
from undiffuse.process.times import Time, align

if TYPE_CHECKING:
    from undiffuse.operators.base import LinearOperator, Operator

_LEAST_VARIANCE = 1e-20  # in place of 0 where an element carries no noise, and so is not moved

_MOST_VARIANCE = 1e4  # of x_0 given x_t, as far as a prior of data of variance 1 needs
LEAST_TAKEN = 2e-3
"""Least noise of y that `Proximal` takes, model units: 1e-3 of the range [0, 1], as published."""


class MeasurementWrapper(Wrapper):
    """Base: a denoiser that knows a measurement.

    Args:
        denoiser: The prior.
        operator: A, on states.
        y: Measurements (B, *operator.out_shape), model units, a row per sample.
        noise_std: Standard deviation of their noise, model units: a number, or what broadcasts with y.

    Raises:
        ValueError: The data are tokens, y does not fit the operator, or the noise is negative.
    """

    process: GaussianProcess

    def __init__(self, denoiser: Denoiser, operator: Operator, y: Tensor, noise_std: float | Tensor) -> None:
        if not isinstance(denoiser.process, GaussianProcess):
            raise ValueError("a measurement guides continuous data; this model's data are tokens. Clamp known tokens.")
        if tuple(y.shape[1:]) != operator.out_shape:
            raise ValueError(f"y has shape {tuple(y.shape)}; the operator {operator.describe()} gives another.")
        if bool(torch.as_tensor(noise_std).lt(0).any()):
            raise ValueError(f"noise_std={noise_std} is negative; give a standard deviation in model units.")
        super().__init__(denoiser)
        self.operator, self.y, self.noise_std = operator, y, noise_std
        self.time_dependent = True

    def measured(self, x: Tensor) -> tuple[Operator, Tensor, float | Tensor]:
        """Return operator, y and noise for the rows of `x`: outer wrappers stack whole batches."""
        if self.y.device != x.device or self.y.dtype != x.dtype:
            self.y = self.y.to(x.device, x.dtype)
        std = self.noise_std
        if isinstance(std, Tensor):
            std = std.to(x.device, x.dtype)
            std = tiled(std, len(x)) if std.ndim == self.y.ndim and len(std) == len(self.y) else std
        if len(x) == len(self.y):
            return self.operator, self.y, std
        index = torch.arange(len(x)) % len(self.y)
        return self.operator.take(index), tiled(self.y, len(x)), std


class Informed(MeasurementWrapper):
    """Base of the wrappers that differentiate the denoiser: one forward pass, then products of its derivative."""

    def __init__(self, denoiser: Denoiser, operator: Operator, y: Tensor, noise_std: float | Tensor) -> None:
        super().__init__(denoiser, operator, y, noise_std)
        self.needs_grad = True

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Move the answer's mean towards the measurement."""
        answer = self.denoiser.linearise(x, t, cond)
        mean = answer.post.mean + self.shift(answer, x, t).to(answer.post.mean.dtype)
        return cast(Posterior, self.process.with_mean(answer.post, x, t, mean, "new")).replace(raw=None)

    @abstractmethod
    def shift(self, answer: Linearised, x: Tensor, t: Time) -> Tensor:
        """Return by how much the mean moves, (B, *)."""


class PiGDM(Informed):
    """mean + V A^T (r^2 A A^T + sy^2)^-1 (y - A mean): the gain's inverse takes r^2 I for the covariance V.

    r^2 = v s^2 / (s^2 + v) with s = sigma / alpha is the posterior variance of data of variance v; the paper has v = 1.
    Exact for data N(m, v I). For an operator that is not linear but has an approximate inverse h, the back-projected
    residual is h(y) - h(A mean).

    Pictures have directions of far more variance than v, in which V is far above r^2 and the step would miss its aim by
    that factor; with a trained network samples then diverge. So the step c V b, b = A^T e, is no longer than what is
    best along it: e^T (A V A^T + sy^2) e / 2 - e^T (y - A mean) is least for c e with

        c = (r^2 |b|^2 + sy^2 |e|^2) / (b^T V b + sy^2 |e|^2),

    which is 1 where V is r^2 I. It costs no pass of the network.

    Args:
        denoiser, operator, y, noise_std: See `MeasurementWrapper`; without noise the pseudo-inverse is used.
        data_var: v, the variance of one element of the data.

    Source: Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", eq. 7 and 8, with the
        posterior mean corrected instead of the step; the data variance is ours.
    """

    def __init__(
        self, denoiser: Denoiser, operator: Operator, y: Tensor, noise_std: float, data_var: float = 1.0
    ) -> None:
        if not data_var > 0:
            raise ValueError(f"data_var={data_var} must be positive: the variance of one element of the data.")
        super().__init__(denoiser, operator, y, noise_std)
        self.data_var = data_var

    def shift(self, answer: Linearised, x: Tensor, t: Time) -> Tensor:
        """Return c V b."""
        back = self.back_projected(answer.post.mean, x, t)
        moved = answer.cov(back)
        return self._length(answer.post.mean, back, moved, x, t) * moved

    def _length(self, mean: Tensor, back: Tensor, moved: Tensor, x: Tensor, t: Time) -> Tensor:
        """Return c of each row, at most 1, (B, 1, ...)."""
        operator, y, std = self.measured(x)
        variance = posterior_variance(self.process, x, t, self.data_var)
        taken = inner(back, variance * back)
        excess = (inner(back, moved) - taken).clamp(min=0)
        if operator.linear and (isinstance(std, Tensor) or std > 0):
            rest = y - operator(mean) - operator(variance * back)  # sy^2 e
            taken = taken + inner(rest, rest / torch.as_tensor(std, dtype=y.dtype).clamp(min=_LEAST_VARIANCE) ** 2)
        total = taken + excess
        return align(torch.where(total > 0, taken / torch.where(total > 0, total, 1.0), 1.0), mean)

    def back_projected(self, mean: Tensor, x: Tensor, t: Time) -> Tensor:
        """Return u / r^2 = A^T (r^2 A A^T + sy^2)^-1 (y - A mean)."""
        operator, y, std = self.measured(x)
        variance = posterior_variance(self.process, x, t, self.data_var)
        if not operator.linear:
            return (operator.pinv(y) - operator.pinv(operator(mean))) / variance
        residual = y - operator(mean)
        if not isinstance(std, Tensor) and std == 0:
            return operator.pinv(residual) / variance
        linear = cast("LinearOperator", operator)
        return linear.prox(torch.zeros_like(mean), residual, std**2 / variance) / variance


class Proximal(MeasurementWrapper):
    """The mean becomes argmin |y - A z|^2 + rho |z - mean|^2 with rho = lam sy^2 / s^2, s = sigma / alpha.

    That is the Gaussian posterior mean with prior N(mean, s^2 / lam). Nothing is differentiated.

    Args:
        denoiser, operator, y, noise_std: See `MeasurementWrapper`; the noise is floored at 2e-3 (1e-3 in [0, 1]).
        lam: Weight of the prior.
        until: At this time and below nothing is done, so that the last answer can be left as it is.
        most: Largest s^2 taken. Without a bound near the variance of the data, directions that the operator hardly sees
            take the noise of y many times amplified while there is much noise, and few steps do not lose it again.

    Source: Zhu et al. 2023, "Denoising diffusion models for plug-and-play image restoration", arXiv:2305.08995.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        operator: Operator,
        y: Tensor,
        noise_std: float,
        lam: float = 1.0,
        until: float = 0.0,
        most: float = _MOST_VARIANCE,
    ) -> None:
        if not lam > 0:
            raise ValueError(f"lam={lam} must be positive.")
        super().__init__(denoiser, operator, y, max(noise_std, LEAST_TAKEN))
        self.lam, self.until, self.most = lam, until, most

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Fit the answer's mean to the measurement."""
        post = cast(Posterior, self.denoiser(x, t, cond))
        if not isinstance(t, Tensor) and t <= self.until:
            return post
        operator, y, std = self.measured(x)
        alpha, sigma = self.process.coefficients(t, x)
        rho = self.lam * std**2 / _at_most(sigma**2, alpha**2, self.most)
        mean = cast("LinearOperator", operator).prox(post.mean, y, rho)
        if isinstance(t, Tensor) and self.until > 0:
            mean = torch.where(_later(t, self.until, x), mean, post.mean)
        return cast(Posterior, self.process.with_mean(post, x, t, mean, "new")).replace(raw=None)


def posterior_variance(process: GaussianProcess, x: Tensor, t: Time, data_var: float) -> Coefficient:
    """Return r^2 = v s^2 / (s^2 + v), the variance of N(0, v) data given x_t; a little above 0 where sigma is 0."""
    alpha, sigma = process.coefficients(t, x)
    return _positive(data_var * sigma**2 / (sigma**2 + alpha**2 * data_var))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of the rows, (B,)."""
    return (a * b).flatten(1).sum(1)


def _positive(value: Coefficient) -> Coefficient:
    return value.clamp(min=_LEAST_VARIANCE) if isinstance(value, Tensor) else max(value, _LEAST_VARIANCE)


def _at_most(square: Coefficient, by: Coefficient, most: float) -> Coefficient:
    """Return square / by, kept within (0, most]: schedules without signal at t = 1 would leave no prior."""
    if not isinstance(square, Tensor) and not isinstance(by, Tensor):
        return max(min(square / by if by else most, most), _LEAST_VARIANCE)
    ratio = torch.as_tensor(square) / torch.as_tensor(by).clamp(min=_LEAST_VARIANCE)
    return ratio.clamp(_LEAST_VARIANCE, most)


def _later(t: Tensor, until: float, x: Tensor) -> Tensor:
    return align(t.to(x.device) > until, x)
