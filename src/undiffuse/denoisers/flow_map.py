"""Flow maps: Phi(x, t, s) is the state at s of the probability-flow ODE that passes x at t.

Phi(x, t, t) = x and Phi(Phi(x, t, u), u, s) = Phi(x, t, s). What a network learns is the average velocity
u = (x - Phi(x, t, s)) / (t - s); on the diagonal s = t that is dx/dt, from which the posterior mean follows, so
the diagonal of a flow map is a denoiser.

Source: principles, section 2.8; Geng et al. 2025, "Mean flows for one-step generative modeling".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.attention import math_attention
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time, align, check_time, expand_time
from undiffuse.spec import DataSpec

Spans = Literal["any", "clean", "steps"]
_TINY_TIME = 1e-12  # at 0 sigma may be 0 and its slope infinite, with a finite product


class FlowMap(nn.Module, ABC):
    """Base of flow maps; subclasses give `average_velocity`, also on the diagonal.

    Attributes:
        process: How data turned into noise.
        spec: What one item is, where known.
        spans: Which pairs of times it holds for: "any" pair s <= t, also the diagonal; only to the "clean" end (a
            consistency model); or the "steps" of the grids it was trained on (progressive distillation).
        start: Time from which pure noise is mapped.
        end: Time that "clean" means: 0, or `schedule.t_min`.
        guided: Guidance scale that is folded into its answers; 1 is none.
    """

    process: GaussianProcess
    spec: DataSpec | None = None
    spans: Spans = "any"
    start: float = 1.0
    end: float = 0.0
    guided: float = 1.0

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

    def mean(self, x: Tensor, t: Time, s: Time, cond: Embedded | None = None) -> Tensor:
        """Return the mean g with which one DDIM step from `t` lands on the state at `s`, (B, *).

        Phi = (sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) g; on the diagonal g is the posterior mean.
        """
        now, then = shared_times(t, x), shared_times(s, x)
        state, share = step_rule(self.process, now, then)
        same = now == then
        moved = self(x, t, s, cond) - align(state, x).to(x.dtype) * x
        g = moved / align(torch.where(same, 1.0, share), x).to(x.dtype)
        return torch.where(align(same, x), self.instant(x, t, cond).mean, g) if bool(same.any()) else g

    def instant(self, x: Tensor, t: Time, cond: Embedded | None = None) -> Posterior:
        """Return the posterior on the diagonal, whose mean follows from dx/dt = u(x, t, t)."""
        velocity = self.average_velocity(x, t, t, cond)
        return Posterior(self.process.mean_from("velocity", velocity, x, t), raw=velocity)

    @property
    def kept_conditions(self) -> frozenset[str]:
        """Names of the conditions that neither training nor guidance drops; see `DataSpec.kept_conditions`."""
        return frozenset() if self.spec is None else self.spec.kept_conditions

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
        """Return the denoiser that the limit s -> t is.

        Raises:
            ValueError: The map was trained for other pairs of times only.
        """
        if self.spans != "any":
            what = "jumps to clean data" if self.spans == "clean" else "the jumps of a few steps"
            raise ValueError(
                f"this model is a flow map trained for {what} only, so there is no denoiser in it; use the model it "
                f"was distilled from, or sample with solver={'consistency' if self.spans == 'clean' else 'flow-map'}."
            )
        return DiagonalDenoiser(self)


def check_spans(spans: str) -> None:
    """Refuse a word that says nothing about the times a flow map holds for.

    Raises:
        ValueError: It is unknown.
    """
    if spans not in get_args(Spans):
        raise ValueError(f"spans={spans!r} is unknown; choose one of {', '.join(get_args(Spans))}.")


def shared_times(t: Time, x: Tensor) -> Tensor:
    """Return one time per item, float64 (B,).

    Raises:
        ValueError: A time does not fit `x`, or differs between the elements of an item.
    """
    check_time(t, x)
    times = expand_time(t, x).double()
    if times.ndim > 1:
        raise ValueError(f"t has shape {tuple(times.shape)}; flow maps take one time per item, (B,).")
    return times


def step_rule(process: GaussianProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return (state, share) of the DDIM step x_s = state x_t + share mean at float64 times.

    Clean data, where sigma_t = 0, carry no noise: the state there is a share of the mean.
    """
    (alpha, sigma), (alpha_s, sigma_s) = process.schedule.levels(t), process.schedule.levels(s)
    clean = sigma == 0
    state = torch.where(clean, 0.0, sigma_s / torch.where(clean, 1.0, sigma))
    return state, alpha_s - alpha * state


class DiagonalDenoiser(Denoiser):
    """The denoiser in a flow map: its mean follows from dx/dt = u(x, t, t)."""

    process: GaussianProcess

    def __init__(self, flow_map: FlowMap) -> None:
        super().__init__()
        self.flow_map = flow_map
        self.process = flow_map.process
        self.spec = flow_map.spec

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        """Answer as the flow map does where both times agree."""
        return self.flow_map.instant(x, t, cond)

    @property
    def normalised(self) -> bool:
        """Whether no guidance is folded into the flow map."""
        return self.flow_map.guided == 1.0

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
        return shared_times(t, x)[:, None]

    def _alpha(self, t: Tensor) -> Tensor:
        return self.process.schedule.alpha(t)

    def _variance(self, t: Tensor) -> Tensor:
        return self._alpha(t) ** 2 * self.variances + self.process.schedule.sigma(t) ** 2
