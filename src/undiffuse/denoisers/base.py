"""`Denoiser`: given x_t at time t, what is the posterior over x_0? And `Wrapper`: denoiser in, denoiser out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from undiffuse.denoisers.posterior import AnyPosterior
from undiffuse.networks.attention import math_attention
from undiffuse.networks.embedded import Embedded
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time, check_time
from undiffuse.spec import DataSpec


class Denoiser(nn.Module, ABC):
    """Base of everything that answers with a posterior.

    Attributes:
        process: How data turned into the noise that `t` measures.
        spec: What one item is, where known.
        time_dependent: Whether the answer depends on `t` beyond what x_t shows.
        needs_grad: Whether `posterior` differentiates inside; sampling then refuses to run under inference mode.
    """

    process: GaussianProcess | CategoricalProcess
    spec: DataSpec | None = None
    time_dependent: bool = True
    needs_grad: bool = False

    def forward(self, x: Tensor, t: Time, cond: Embedded | None = None) -> Any:
        """Return the posterior over x_0.

        Args:
            x: Noisy state (B, *).
            t: Python float (shared by the batch), or tensor (), (B,), (B, F) or (1, F).
            cond: What `embed` returned for this batch.

        Raises:
            ValueError: `t` does not fit `x`.
        """
        check_time(t, x)
        if isinstance(t, Tensor) and (t.ndim == 0 or t.shape[0] != x.shape[0]):
            t = t.expand(x.shape[0], *t.shape[1:])
        return self.posterior(x, t, cond)

    @abstractmethod
    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Answer for `t` a Python float, (B,) or (B, F)."""

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Turn conditions into what `posterior` takes, once per batch.

        Args:
            cond: Condition name -> tensor (B, ...); a missing name is its learned null.
            batch: B.
            drop: Condition name -> (B,) bool; True rows become the null.

        Raises:
            ValueError: A condition that this denoiser does not know.
        """
        if cond or drop:
            raise ValueError(
                f"{type(self).__name__} takes no conditions, but got {sorted({*(cond or {}), *(drop or {})})}."
            )
        return None

    @property
    def kept_conditions(self) -> frozenset[str]:
        """Names of the conditions that neither training nor guidance drops; see `DataSpec.kept_conditions`."""
        return frozenset() if self.spec is None else self.spec.kept_conditions

    @property
    def self_conditioned(self) -> bool:
        """Whether answers depend on the last estimate of x_0, which is then told by `with_estimate`."""
        return False

    def with_estimate(self, cond: Embedded | None, estimate: Tensor) -> Embedded:
        """Return what `embed` returned together with the last estimate of x_0 (B, *), model units, for `posterior`."""
        return replace(cond or Embedded(), estimate=estimate)

    def calls(self, t: Time) -> int:
        """Network evaluations per sample that one answer at `t` costs."""
        return 1

    def prefetch(self, times: Sequence[float]) -> None:
        """Hear which float times will be asked about, to compute coefficients for all of them at once."""

    def mean(self, x: Tensor, t: Time, cond: Embedded | None = None) -> Tensor:
        """Return the posterior mean alone (B, *)."""
        return self(x, t, cond).mean

    # -- derivatives of the mean by x; attention runs in the form that supports them ---------------

    def jvp(self, x: Tensor, t: Time, tangent: Tensor, cond: Embedded | None = None) -> tuple[Tensor, Tensor]:
        """Return (mean, J tangent) with J = d mean / d x, both (B, *), by forward-mode differentiation."""
        with math_attention():
            mean, along = torch.func.jvp(lambda y: self.mean(y, t, cond), (x,), (tangent,))[:2]
            return mean, along

    def vjp(self, x: Tensor, t: Time, cotangent: Tensor, cond: Embedded | None = None) -> tuple[Tensor, Tensor]:
        """Return (mean, J^T cotangent), both (B, *), by reverse-mode differentiation."""
        with math_attention():
            mean, pull = torch.func.vjp(lambda y: self.mean(y, t, cond), x)[:2]
            return mean, pull(cotangent)[0]

    def trace(
        self,
        x: Tensor,
        t: Time,
        cond: Embedded | None = None,
        probes: Tensor | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Return tr(d mean / d x) per sample, (B,).

        Args:
            probes: Random vectors (P, B, *) with identity covariance for Hutchinson's estimate (Rademacher has
                the lower variance); None: exact, one cotangent per element of x.
            chunk: How many cotangents run at once; None: all.
        """
        with math_attention():
            _, pull = torch.func.vjp(lambda y: self.mean(y, t, cond), x)[:2]
            if probes is None:
                eye = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
                probes = eye.view(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
                scale = 1.0
            else:
                scale = 1.0 / len(probes)
            products = torch.func.vmap(lambda e: (pull(e)[0] * e).flatten(1).sum(1), chunk_size=chunk)(probes)
        return products.sum(0) * scale

    def cov(self, x: Tensor, t: Time, vector: Tensor, cond: Embedded | None = None) -> Tensor:
        """Return Cov[x_0 | x_t] vector = (sigma^2 / alpha) J^T vector (Tweedie's second identity), (B, *).

        Exact for a true posterior and times shared by the elements of an item.

        Raises:
            TypeError: The process is not Gaussian.
            ValueError: alpha is 0 at `t`.
        """
        if not isinstance(self.process, GaussianProcess):
            raise TypeError("cov() needs a Gaussian process; a categorical posterior is its own full answer.")
        alpha, sigma = self.process.coefficients(t, x)
        if isinstance(alpha, float) and alpha == 0:
            raise ValueError(
                f"x_t says nothing about the data at t={t}; ask at most at t={self.process.schedule.t_max}."
            )
        return sigma**2 / alpha * self.vjp(x, t, vector, cond)[1]


class ExactDenoiser(Denoiser):
    """Base of denoisers known in closed form. They compute in float64, whatever dtype a model is cast to."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow `fn` to its device, not to its dtype: a cast would cost the digits that make these oracles."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)


class Wrapper(Denoiser):
    """A denoiser around another one; what it does not override, it passes on by name."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.process = denoiser.process
        self.spec = denoiser.spec
        self.time_dependent = denoiser.time_dependent
        self.needs_grad = denoiser.needs_grad

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Pass the question on."""
        return self.denoiser(x, t, cond)

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Pass the conditions on."""
        return self.denoiser.embed(cond, batch, drop)

    @property
    def self_conditioned(self) -> bool:
        """Whether the wrapped denoiser is."""
        return self.denoiser.self_conditioned

    def with_estimate(self, cond: Embedded | None, estimate: Tensor) -> Embedded:
        """Pass the estimate on."""
        return self.denoiser.with_estimate(cond, estimate)

    def calls(self, t: Time) -> int:
        """What the wrapped denoiser costs."""
        return self.denoiser.calls(t)

    def prefetch(self, times: Sequence[float]) -> None:
        """Pass the times on."""
        self.denoiser.prefetch(times)
