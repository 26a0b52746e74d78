"""Checks of a denoiser's answers that need no data: does one density stand behind them? Report, do not train on them.

Sources: principles, section 2.9; Lai et al. 2023, "FP-Diffusion", arXiv:2210.04296 (the residual); Saremi 2019, "On
approximating grad f with neural networks", arXiv:1910.12744 (answers that are no gradient).
"""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, unit_probes
from undiffuse.networks.attention import math_attention
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess, fit
from undiffuse.sampling.euler import velocity_coefficients


def asymmetry(denoiser: Denoiser, x: Tensor, t: float | Tensor, probes: Tensor, cond: Embedded | None = None) -> Tensor:
    """Return |J - J^T| / (2 |J|) in the Frobenius norm, (B,), for J = d mean / d x: 0 for a gradient, at most 1.

    The mean of a true posterior is a gradient up to a factor, J = (alpha / sigma^2) Cov[x_0 | x_t]; the part that is
    none turns states round without changing their density. Estimated with random probes: one product with J and one
    with J^T each.

    Args:
        denoiser: Any denoiser.
        x: States (B, *).
        t: Time shared by the elements of an item.
        probes: (P, B, *) with identity covariance, such as `rademacher`; unit vectors make it exact.
        cond: Embedded conditions.
    """
    gap, size = x.new_zeros(len(x)), x.new_zeros(len(x))
    with torch.no_grad():
        for probe in probes:
            forward, backward = denoiser.jvp(x, t, probe, cond)[1], denoiser.vjp(x, t, probe, cond)[1]
            gap += (forward - backward).square().flatten(1).sum(1)
            size += 0.5 * (forward.square() + backward.square()).flatten(1).sum(1)
    return torch.where(size > 0, 0.5 * (gap / torch.where(size > 0, size, 1.0)).sqrt(), 0.0)


def continuity_residual(
    denoiser: Denoiser,
    x: Tensor,
    t: float | Tensor,
    cond: Embedded | None = None,
    probes: Tensor | None = None,
) -> Tensor:
    """Return dS/dt + grad(div v + v . S), (B, *): the gradient of the continuity equation, 0 for a true posterior.

    S is the score and v the velocity that the answers imply. Where the residual is large, log-likelihoods by the ODE
    and the score disagree. Costs one second derivative per element, or per probe.

    Args:
        denoiser: A denoiser of a Gaussian process.
        x: States (B, *).
        t: Time, above 0: a float or (B,).
        cond: Embedded conditions.
        probes: Random vectors (P, B, *) for the divergence; None: exact.

    Raises:
        TypeError: The process is not Gaussian.
    """
    process = denoiser.process
    if not isinstance(process, GaussianProcess):
        raise TypeError("the continuity equation needs a Gaussian process; tokens have none.")
    times = torch.full((len(x),), t, dtype=torch.float64, device=x.device) if not isinstance(t, Tensor) else t.double()
    times = times.expand(len(x))

    def score(when: Tensor) -> Tensor:
        state = x.detach()
        return process.score(state, denoiser(state, when, cond), when)

    with math_attention(), torch.no_grad():
        change = torch.func.jvp(score, (times,), (torch.ones_like(times),))[1]
    with torch.enable_grad():
        start = x.detach().requires_grad_()
        p, q = velocity_coefficients(process, times)
        directions = unit_probes(start) if probes is None else probes
        mean, products = denoiser.mean_and_products(start, times, directions, cond, chunk=1)
        trace = products.sum(0) if probes is None else products.mean(0)
        divergence = x[0].numel() * p + q * trace.double()
        alpha, sigma = process.coefficients(times, start)
        slope = (alpha * mean - start) / sigma**2
        work = ((fit(p, start) * start + fit(q, start) * mean) * slope).flatten(1).sum(1)
        (gradient,) = torch.autograd.grad((divergence + work).sum(), start)
    return change + gradient
