"""`Denoiser`: given x_t at time t, what is the posterior over x_0? And `Wrapper`: denoiser in, denoiser out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from undiffuse.denoisers.linearised import Linearised
from undiffuse.denoisers.posterior import AnyPosterior
from undiffuse.networks.attention import math_attention
from undiffuse.networks.embedded import Embedded
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time, check_time
from undiffuse.spec import DataSpec

_ROWS = 64  # of a backward pass: more cost memory and save no time, measured on a small U-Net


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
    def normalised(self) -> bool:
        """Whether answers are meant as posterior means of one density, so that a likelihood means something."""
        return True

    @property
    def causal(self) -> bool:
        """Whether a token's answer depends on those before it only, so that tokens are drawn from left to right."""
        return False

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
            chunk: How many cotangents run at once; None: so many that they make a batch of some 64 rows.
        """
        products = self.mean_and_products(x, t, unit_probes(x) if probes is None else probes, cond, chunk)[1]
        return products.sum(0) if probes is None else products.mean(0)

    def mean_and_products(
        self, x: Tensor, t: Time, probes: Tensor, cond: Embedded | None = None, chunk: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean (B, *) and e^T J e for each probe e, (P, B), with J = d mean / d x.

        One forward pass of B * chunk rows and one backward pass per chunk. With gradients enabled the result can be
        differentiated once more.

        Args:
            probes: (P, B, *).
            chunk: See `trace`.
        """
        differentiable, rows = torch.is_grad_enabled(), len(x)
        count = max(1, _ROWS // rows) if chunk is None else chunk
        if cond is not None and cond.batch not in (None, rows):
            count = 1  # a wrapper's rows are not ours to repeat
        count = min(count, len(probes))
        times = t.repeat(count, *[1] * (t.ndim - 1)) if isinstance(t, Tensor) and t.ndim and len(t) == rows else t
        conds = cond if cond is None or count == 1 else cond.take(torch.arange(rows, device=x.device).repeat(count))
        # Fused attention has no second derivative; where none is wanted, it is the faster one.
        with torch.enable_grad(), math_attention() if differentiable else nullcontext():
            start = x.repeat(count, *[1] * (x.ndim - 1))
            start = start if start.requires_grad else start.detach().requires_grad_()
            mean = self.mean(start, times, conds)
            products = [
                _products(mean, start, part.flatten(0, 1), differentiable, last=low + count >= len(probes))
                for low, part in _chunks(probes, count)
            ]
        joined = torch.cat(products).unflatten(0, (-1, rows))
        return (mean if differentiable else mean.detach())[:rows], joined

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

    def linearise(self, x: Tensor, t: Time, cond: Embedded | None = None) -> Linearised:
        """Return the answer with products of its derivative and of the posterior covariance, by one forward pass.

        Where alpha is 0 the weight sigma^2 / alpha is that of the schedule's `t_max`. With gradients enabled, the
        products can be differentiated once more.

        Raises:
            TypeError: The process is not Gaussian.
        """
        if not isinstance(self.process, GaussianProcess):
            raise TypeError("linearise() needs a Gaussian process; a categorical posterior is its own full answer.")
        keep = torch.is_grad_enabled()
        with torch.enable_grad(), math_attention() if keep else nullcontext():
            point = x if keep and x.requires_grad else x.detach().requires_grad_()
            answer = self(point, t, cond)
        most = self.process.schedule.t_max
        alpha, sigma = self.process.coefficients(t.clamp(max=most) if isinstance(t, Tensor) else min(t, most), x)
        weight = sigma**2 / alpha

        def pull(vector: Tensor) -> Tensor:
            if not answer.mean.requires_grad:  # it does not depend on the state, as for data that are one point
                return torch.zeros_like(x)
            options: dict[str, Any] = {"create_graph": keep, "retain_graph": True, "materialize_grads": True}
            with math_attention() if keep else nullcontext():
                return torch.autograd.grad(answer.mean, point, vector.to(answer.mean.dtype), **options)[0]

        post = answer if keep else tree_map(Tensor.detach, answer)
        return Linearised(post, pull, lambda vector: weight * pull(vector))


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
    def normalised(self) -> bool:
        """False: a wrapper changes answers; those that keep a density say so."""
        return False

    @property
    def causal(self) -> bool:
        """Whether the wrapped denoiser is."""
        return self.denoiser.causal

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


def unit_probes(x: Tensor) -> Tensor:
    """Return the unit vectors (D, B, *) for which the products of `mean_and_products` are the diagonal of J."""
    eye = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return eye.view(-1, 1, *x.shape[1:]).expand(-1, *x.shape)


def _chunks(probes: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
    return ((low, probes[low : low + count]) for low in range(0, len(probes), count))


def _products(mean: Tensor, start: Tensor, cotangents: Tensor, differentiable: bool, last: bool) -> Tensor:
    """Return e^T J e (rows,) for cotangents (rows, *), which may be fewer than the rows of `mean`."""
    rows = len(cotangents)
    if not mean.requires_grad:  # it does not depend on the state, as for data that are one point
        return cotangents.new_zeros(rows)
    (pulled,) = torch.autograd.grad(
        mean[:rows],
        start,
        cotangents,
        retain_graph=differentiable or not last,
        create_graph=differentiable,
        materialize_grads=True,
    )
    return (pulled[:rows] * cotangents).flatten(1).sum(1)
