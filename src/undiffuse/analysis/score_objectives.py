r"""The objectives of score matching as estimates of one denoiser: which agree up to a constant, and in what.

With s the score that a denoiser's answers imply and S the true one, at one time,

    explicit   E |s - S|^2 / 2
    implicit   E [tr(ds/dx) + |s|^2 / 2]        = explicit - E |S|^2 / 2
    sliced     E [e^T (ds/dx) e + |s|^2 / 2]    = implicit, with random e
    denoising  E |s(x_t) + eps / sigma|^2 / 2   = explicit + E |eps / sigma|^2 / 2 - E |S|^2 / 2

The implicit ones need data alone, not the true score, so they compare models on held-out data at a noise level.

Sources: Hyvarinen 2005, "Estimation of non-normalized statistical models by score matching"; Vincent 2011, "A
connection between score matching and denoising autoencoders"; Song et al. 2019, "Sliced score matching",
arXiv:1905.07088; principles, section 2.9.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, unit_probes
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess

Form = Literal["explicit", "implicit", "sliced", "denoising"]


@torch.no_grad()
def score_matching(
    denoiser: Denoiser,
    x0: Tensor,
    noise: Tensor,
    t: float,
    form: Form = "denoising",
    *,
    cond: Embedded | None = None,
    probes: Tensor | None = None,
    truth: Denoiser | None = None,
) -> Tensor:
    """Return one value per item of the objective `form` at time `t`, float64 (B,).

    Args:
        denoiser: Judged.
        x0: Clean data (B, *), model units.
        noise: Standard normals (B, *).
        t: Time above 0.
        form: See above.
        cond: Embedded conditions.
        probes: Sliced: random vectors (P, B, *) with identity covariance.
        truth: Explicit: the exact denoiser.

    Raises:
        ValueError: An unknown form, or one that lacks what it needs.
        TypeError: The process is not Gaussian.
    """
    process = denoiser.process
    if form not in get_args(Form):
        raise ValueError(f"form={form!r} is unknown; choose one of {', '.join(get_args(Form))}.")
    if not isinstance(process, GaussianProcess):
        raise TypeError("score matching needs a Gaussian process; tokens have no score.")
    if (form == "sliced") != (probes is not None) or (form == "explicit") != (truth is not None):
        raise ValueError(f"form={form!r} does not fit; sliced needs probes, explicit needs truth, the others neither.")
    alpha, sigma = (float(c) for c in process.coefficients(t, x0))
    x = process.corrupt(x0, t, noise)
    if form in ("explicit", "denoising"):
        mean = denoiser.mean(x, t, cond)
        target = noise if truth is None else (x - alpha * truth.mean(x, t, cond)) / sigma
        eps = (x - alpha * mean) / sigma
        return 0.5 * _square(eps - target) / sigma**2
    directions = unit_probes(x) if probes is None else probes
    mean, products = denoiser.mean_and_products(x, t, directions, cond)
    trace = products.sum(0) if probes is None else products.mean(0)
    size = _square(directions[0]) if probes is None else torch.stack([_square(e) for e in probes]).mean(0)
    size = torch.full_like(size, x[0].numel()) if probes is None else size
    score = (alpha * mean - x) / sigma**2
    return (alpha * trace.double() - size) / sigma**2 + 0.5 * _square(score)


def _square(x: Tensor) -> Tensor:
    return x.double().square().flatten(1).sum(1)
