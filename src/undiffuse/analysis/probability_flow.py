r"""Log-likelihood by the probability-flow ODE: d log p / dt = -div v along dx/dt = v.

With v = p x + q D, where D is the posterior mean, p = sigma' / sigma and q = alpha' - p alpha = -w / sigma,

    log p(x) = log p_1(x_1) + int div v dt,        div v = d p + q tr(dD/dx),        d elements of an item,

which asks for one trace of the mean, better conditioned than derivatives of v where sigma is small. The trace is exact
(d backward passes) or Hutchinson's, e^T (dD/dx) e with Rademacher e that stay the same along the path.

Source: Song et al. 2021, "Score-based generative modeling through SDEs", section 4.3 and appendix D.2,
arXiv:2011.13456; principles, section 2.6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, unit_probes
from undiffuse.errors import UndiffuseError
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess, fit
from undiffuse.process.times import Time
from undiffuse.sampling.dormand_prince import integrate
from undiffuse.sampling.euler import velocity_coefficients

State = tuple[Tensor, Tensor]
LogProb = Callable[[Tensor, float], Tensor]
"""Maps x (B, *) and a time to log p_t(x), (B,)."""


class FlowLogProb(NamedTuple):
    """Log-likelihood of a batch.

    Args:
        log_p: Nats per item and probe, float64 (B, P); P = 1 for the exact divergence.
        end: State at the top of the path, (B, *).
        evaluations: Times at which the network was asked.
    """

    log_p: Tensor
    end: Tensor
    evaluations: int


class Adaptive(NamedTuple):
    """Tolerances of the adaptive integration, and how many steps it may try."""

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 2000


@dataclass
class AugmentedFlow:
    """The slopes of the state and of the accumulated divergence, as `heun` and `integrate` ask for them.

    Args:
        denoiser: Any denoiser of a Gaussian process.
        cond: Its embedded conditions.
        probes: (P, B, *) for Hutchinson's estimate; None: the exact trace.
        chunk: Cotangents at once; see `Denoiser.trace`.
        heard: Called after each evaluation with the time of the sample that is furthest behind.
    """

    denoiser: Denoiser
    cond: Embedded | None = None
    probes: Tensor | None = None
    chunk: int | None = None
    heard: Callable[[float], None] | None = None
    process: GaussianProcess = field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.denoiser.process, GaussianProcess)
        self.process = self.denoiser.process

    def __call__(self, state: State, t: Time) -> State:
        """Return (dx/dt, div v): (B, *) and (B, P).

        Raises:
            UndiffuseError: The network's answer is not finite.
        """
        x = state[0]
        p, q = self.process.evaluate("augmented flow", lambda t: velocity_coefficients(self.process, t), t)
        probes = unit_probes(x) if self.probes is None else self.probes
        with torch.no_grad():
            mean, products = self.denoiser.mean_and_products(x, t, probes, self.cond, self.chunk)
        products = products.double()
        trace = products.sum(0, keepdim=True) if self.probes is None else products
        where = float(t.min()) if isinstance(t, Tensor) else t
        if not bool(trace.isfinite().all() & mean.isfinite().all()):
            raise UndiffuseError(
                f"the network's answer at t={where:.4g} is not finite; check the weights and the data."
            )
        velocity = fit(p, x) * x + fit(q, x) * mean
        divergence = x[0].numel() * p + q * trace
        if self.heard is not None:
            self.heard(where)
        return velocity, divergence.T


def heun(f: Callable[[State, float], State], y: State, times: Sequence[float]) -> tuple[State, int]:
    """Integrate dy/dt = f(y, t) along `times` by Heun's method; return the state and the evaluations, 2 per step."""
    for t, s in pairwise(times):
        first = f(y, t)
        guess = (y[0] + (s - t) * first[0], y[1] + (s - t) * first[1])
        second = f(guess, s)
        half = 0.5 * (s - t)
        y = (y[0] + half * (first[0] + second[0]), y[1] + half * (first[1] + second[1]))
    return y, 2 * (len(times) - 1)


def flow_log_prob(
    denoiser: Denoiser,
    x: Tensor,
    path: Sequence[float] | Tensor,
    *,
    cond: Embedded | None = None,
    probes: Tensor | None = None,
    adaptive: Adaptive | None = None,
    prior: LogProb | None = None,
    chunk: int | None = None,
    heard: Callable[[float], None] | None = None,
) -> FlowLogProb:
    """Return log p_t(x) at the first time of `path`, by the probability-flow ODE up to the last.

    Args:
        denoiser: Any denoiser of a Gaussian process.
        x: States at the first time, model units (B, *).
        path: Rising times: the steps of Heun's method, or the two ends of the adaptive integration.
        cond: What `denoiser.embed` returned for this batch.
        probes: Random vectors (P, B, *) with identity covariance; None: the exact divergence.
        adaptive: Integrate by Dormand and Prince's method, with steps per sample; None: Heun's method.
        prior: log p at the last time; None: that of N(0, sigma^2 I).
        chunk: Cotangents at once; see `Denoiser.trace`.
        heard: Called after each evaluation with the time of the sample that is furthest behind.

    Raises:
        ValueError: The times do not rise, or start at 0.
        UndiffuseError: An answer is not finite, or the adaptive integration does not arrive.
    """
    times = torch.as_tensor(path, dtype=torch.float64).tolist()
    if len(times) < 2 or times[0] <= 0 or not all(t < s for t, s in pairwise(times)) or times[-1] > 1:
        raise ValueError(f"path={times[:3]}... must rise from above 0 to at most 1; flip a grid that ends at t_min.")
    flow = AugmentedFlow(denoiser, cond, probes, chunk, heard)
    begun = (x, x.new_zeros(len(x), 1 if probes is None else len(probes), dtype=torch.float64))
    if adaptive is None:
        denoiser.prefetch(times)
        (end, gained), calls = heun(flow, begun, times)
    else:
        (end, gained), calls = integrate(flow, begun, times[0], times[-1], **adaptive._asdict())  # type: ignore[misc, arg-type]
    top = normal_log_prob(flow.process) if prior is None else prior
    return FlowLogProb(top(end, times[-1]).double()[:, None] + gained, end, calls)


def normal_log_prob(process: GaussianProcess) -> LogProb:
    """Return the log density of N(0, sigma(t)^2 I), nats (B,), which noise tends to where alpha vanishes."""

    def log_prob(x: Tensor, t: float) -> Tensor:
        sigma = float(process.schedule.sigma(torch.tensor(t, dtype=torch.float64)))
        flat = x.double().flatten(1)
        return -0.5 * (flat / sigma).square().sum(1) - flat.shape[1] * (math.log(sigma) + 0.5 * math.log(math.tau))

    return log_prob


def rademacher(noise: NoiseSource, count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `count` probes of random signs (P, B, *shape), keyed by item: stream "probe", one step per probe."""
    return torch.stack([2.0 * (noise.uniform("probe", k, shape) < 0.5).to(dtype) - 1.0 for k in range(count)])
