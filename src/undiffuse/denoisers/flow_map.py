"""Flow maps: Phi(x, t, s) is the state at s of the probability-flow ODE that passes x at t.

Phi(x, t, t) = x and Phi(Phi(x, t, u), u, s) = Phi(x, t, s). What a network learns is the average velocity
u = (x - Phi(x, t, s)) / (t - s); on the diagonal s = t that is dx/dt, from which the posterior mean follows, so
the diagonal of a flow map is a denoiser.

Source: principles, section 2.8; Geng et al. 2025, "Mean flows for one-step generative modeling".
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.attention import math_attention
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time, align, check_time, expand_time
from undiffuse.spec import DataSpec

_TINY_TIME = 1e-12  # at 0 sigma may be 0 and its slope infinite, with a finite product


class FlowMap(nn.Module, ABC):
    """Base of flow maps; subclasses give `average_velocity`, also on the diagonal."""

    process: GaussianProcess
    spec: DataSpec | None = None

    @abstractmethod
    def average_velocity(self, x: Tensor, t: Time, s: Time, cond: Embedded | None = None) -> Tensor:
        """Return u = (x - Phi(x, t, s)) / (t - s) and its limit dx/dt where s = t, (B, *)."""

    def forward(self, x: Tensor, t: Time, s: Time, cond: Embedded | None = None) -> Tensor:
        """Return the state at `s`, (B, *); `x` itself where s = t.

        Args:
            x: State at `t`, (B, *).
            t, s: Python floats, or tensors (), (B,), (B, F), (1, F); s at most t to denoise.

        Raises:
            ValueError: A time does not fit `x`.
        """
        check_time(t, x)
        check_time(s, x)
        span = expand_time(t, x) - expand_time(s, x)
        return x - align(span.to(x.dtype), x) * self.average_velocity(x, t, s, cond)

    def jvp(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        tangents: tuple[Tensor, Tensor, Tensor],
        cond: Embedded | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the average velocity and its derivative along `tangents` of (x, t, s), by forward mode."""
        with math_attention():
            velocity = lambda x, t, s: self.average_velocity(x, t, s, cond)  # noqa: E731
            u, along = torch.func.jvp(velocity, (x, t, s), tangents)[:2]
            return u, along

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Turn conditions into what `forward` takes; see `Denoiser.embed`."""
        if cond or drop:
            raise ValueError(
                f"{type(self).__name__} takes no conditions, but got {sorted({*(cond or {}), *(drop or {})})}."
            )
        return None

    def diagonal(self) -> Denoiser:
        """Return the denoiser that the limit s -> t is."""
        return DiagonalDenoiser(self)


class DiagonalDenoiser(Denoiser):
    """The denoiser in a flow map: its mean follows from dx/dt = u(x, t, t)."""

    process: GaussianProcess

    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.flow_map = flow_map
        self.process = flow_map.process
        self.spec = flow_map.spec

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        """Read the mean off the instantaneous velocity."""
        velocity = self.flow_map.average_velocity(x, t, t, cond)
        return Posterior(self.process.mean_from("velocity", velocity, x, t), raw=velocity)

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Embed as the flow map does."""
        return self.flow_map.embed(cond, batch, drop)


class GaussianFlowMap(FlowMap):
    """The exact map for data N(mean, cov): the oracle of every few-step method.

    In the eigenbasis of the covariance, with variances lambda,
    Phi = alpha_s mu + sqrt((alpha_s^2 lambda + sigma_s^2) / (alpha_t^2 lambda + sigma_t^2)) (x - alpha_t mu).
    Times are shared by the elements of an item.

    Args:
        mean: (*shape).
        cov: (D, D) over the flattened item, positive semi-definite.
        process: Gaussian process.
    """

    basis: Tensor
    variances: Tensor
    mu: Tensor

    def __init__(self, mean: Tensor, cov: Tensor, process: GaussianProcess) -> None:
        super().__init__()
        variances, basis = torch.linalg.eigh(cov.double())
        self.register_buffer("basis", basis)
        self.register_buffer("variances", variances.clamp(min=0))
        self.register_buffer("mu", mean.double().flatten())
        self.process = process

    def forward(self, x: Tensor, t: Time, s: Time, cond: Embedded | None = None) -> Tensor:
        """Return the exact state at `s`, in the dtype of `x`; `x` itself where s = t.

        Raises:
            ValueError: A time does not fit `x`, or differs between the elements of an item.
        """
        now, then = self._column(t, x), self._column(s, x)
        spread = (self._variance(then) / self._variance(now)).sqrt()
        inside = (x.double().flatten(1) - self._alpha(now) * self.mu) @ self.basis
        moved = self._alpha(then) * self.mu + (inside * spread) @ self.basis.T
        return torch.where(align((now == then)[:, 0], x), x, moved.reshape(x.shape).to(x.dtype))

    def average_velocity(self, x: Tensor, t: Time, s: Time, cond: Embedded | None = None) -> Tensor:
        """Return the exact average velocity, and dx/dt where s = t."""
        now, then = align(self._column(t, x)[:, 0], x), align(self._column(s, x)[:, 0], x)
        same = now == then
        moved = (x - self(x, t, s).double()) / torch.where(same, 1.0, now - then)
        return torch.where(same, self._velocity(x, self._column(t, x)), moved).to(x.dtype)

    def _velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """dx/dt = alpha' mu + (d log spread / dt) (x - alpha mu), in the eigenbasis."""
        schedule = self.process.schedule
        t = t.clamp(min=_TINY_TIME)
        slope = schedule.alpha_slope(t)
        rate = (self._alpha(t) * slope * self.variances + schedule.sigma(t) * schedule.sigma_slope(t)) / self._variance(
            t
        )
        inside = (x.double().flatten(1) - self._alpha(t) * self.mu) @ self.basis
        return (slope * self.mu + (inside * rate) @ self.basis.T).reshape(x.shape)

    def _column(self, t: Time, x: Tensor) -> Tensor:
        check_time(t, x)
        times = expand_time(t, x).double()
        if times.ndim > 1:
            raise ValueError(f"t has shape {tuple(times.shape)}; the exact map takes one time per item, (B,).")
        return times[:, None]

    def _alpha(self, t: Tensor) -> Tensor:
        return self.process.schedule.alpha(t)

    def _variance(self, t: Tensor) -> Tensor:
        return self._alpha(t) ** 2 * self.variances + self.process.schedule.sigma(t) ** 2
