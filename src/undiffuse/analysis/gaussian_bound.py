r"""The evidence bound of Gaussian processes, nats per item: what denoising errors say about -log p.

    -log p(x) <= KL(q(x_1 | x) || prior) + int 1/2 |eps - eps_hat|^2 dlambda + E[-log p(x | x_tmin)],

lambda the log-SNR, in which times are drawn uniformly, so that the schedule enters through its ends alone. With T
levels the middle is sum_i KL(q(x_s | x_t, x) || p(x_s | x_t)) = sum_i (SNR(s) - SNR(t)) / 2 |x - D(x_t)|^2 instead.
The decoder is N(D(x_tmin), (sigma / alpha)^2 I) for densities, and for integers its discrete kin, p(k | x_tmin)
proportional to N(x_tmin; alpha k, sigma^2) over all levels k.

Sources: Kingma et al. 2021, "Variational diffusion models", eq. 11-19 and 28, arXiv:2107.00630; principles, 2.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid

_LEVEL_ELEMENTS = 1 << 22  # of the discrete decoder: items x elements x levels at once


@dataclass(frozen=True)
class Ends:
    """Where the bound begins and ends, and what holds in between.

    Args:
        t_min: Time of the decoder.
        t_max: Time of the prior.
        levels: Steps T of the discrete bound; None: the continuous one.
        values: Model units of all integer levels (K,), for the discrete decoder; None: the Gaussian one.
    """

    t_min: float
    t_max: float
    levels: int | None = None
    values: Tensor | None = None


@torch.no_grad()
def denoising_bound(
    denoiser: Denoiser,
    x: Tensor,
    noise: NoiseSource,
    draws: int,
    ends: Ends,
    *,
    cond: Embedded | None = None,
    heard: Callable[[int], None] | None = None,
) -> Tensor:
    """Return estimates of the bound, float64 nats (draws, B); those of an item are stratified in level, and fall in it.

    Args:
        denoiser: Its process is Gaussian.
        x: Clean data, model units (B, *).
        noise: Source of B rows; streams "time" (step 0) and "data" (steps 1 to 2 draws).
        draws: Noise draws per item; each costs one evaluation, two with the Gaussian decoder.
        ends: Ends and levels.
        cond: Embedded conditions of the rows.
        heard: Called after each draw with their number so far.
    """
    process, shape = denoiser.process, tuple(x.shape[1:])
    assert isinstance(process, GaussianProcess)
    offset = noise.uniform("time", 0, ())
    shares = torch.stack([(offset + draw / draws) % 1.0 for draw in range(draws)]).sort(0).values
    rows = []
    for draw in range(draws):
        fresh = noise.normal("data", 1 + 2 * draw, shape, x.dtype)
        t, weight = _level(process, shares[draw], ends)
        error = _squared_error(denoiser, process, x, t, fresh, cond)
        decoder = _decoder(denoiser, process, x, noise.normal("data", 2 + 2 * draw, shape, x.dtype), ends, cond)
        rows.append(weight * error + decoder)
        if heard is not None:
            heard(draw + 1)
    return torch.stack(rows) + prior_divergence(process, x, ends.t_max)


def stratified_error(samples: Tensor) -> Tensor:
    """Return the standard error (B,) of the mean of stratified draws (draws, B), in the order of their strata.

    From the differences of neighbours, which hold their noise, but hardly the trend over strata, which the mean does
    not feel either. NaN for a single draw. Source: Wolter 2007, "Introduction to variance estimation", section 8.2.
    """
    count = len(samples)
    if count < 2:
        return torch.full_like(samples[0], torch.nan)
    return (samples.diff(dim=0).square().mean(0) / (2 * count)).sqrt()


def prior_divergence(process: GaussianProcess, x: Tensor, t: float) -> Tensor:
    """Return KL(N(alpha x, sigma^2 I) || N(0, sigma^2 I)) at `t`, float64 nats (B,)."""
    half_logsnr = process.schedule.half_logsnr(torch.tensor(t, dtype=torch.float64))
    return 0.5 * float(torch.exp(2 * half_logsnr)) * x.double().square().flatten(1).sum(1)


def _level(process: GaussianProcess, u: Tensor, ends: Ends) -> tuple[Tensor, Tensor]:
    """Return times (B,) and what |x - D|^2 weighs there, for uniforms (B,)."""
    schedule = process.schedule
    if ends.levels is None:
        low, high = schedule.half_logsnr(u.new_tensor([ends.t_max, ends.t_min])).unbind()
        half_logsnr = low + u * (high - low)
        return schedule.time(half_logsnr), (high - low) * torch.exp(2 * half_logsnr)  # d lambda = 2 d half_logsnr
    grid = make_grid(schedule, ends.levels, "t", ends.t_min, ends.t_max).to(u.device)
    step = (u * ends.levels).long().clamp(max=ends.levels - 1)
    t, s = grid[step], grid[step + 1]
    gain = torch.exp(2 * schedule.half_logsnr(s)) - torch.exp(2 * schedule.half_logsnr(t))
    return t, 0.5 * ends.levels * gain


def _squared_error(
    denoiser: Denoiser, process: GaussianProcess, x: Tensor, t: Tensor | float, noise: Tensor, cond: Embedded | None
) -> Tensor:
    mean = denoiser.mean(process.corrupt(x, t, noise), t, cond)
    return (x.double() - mean.double()).square().flatten(1).sum(1)


def _decoder(
    denoiser: Denoiser, process: GaussianProcess, x: Tensor, noise: Tensor, ends: Ends, cond: Embedded | None
) -> Tensor:
    """Return -log p(x | x_tmin), float64 nats (B,), for one draw of x_tmin."""
    l_min = float(process.schedule.half_logsnr(torch.tensor(ends.t_min, dtype=torch.float64)))
    if ends.values is not None:
        return _discrete_decoder(process, x, noise, ends.values, ends.t_min)
    size = x[0].numel()
    error = _squared_error(denoiser, process, x, ends.t_min, noise, cond)
    return 0.5 * math.exp(2 * l_min) * error + size * (0.5 * math.log(math.tau) - l_min)


def _discrete_decoder(process: GaussianProcess, x: Tensor, noise: Tensor, values: Tensor, t: float) -> Tensor:
    noisy = process.corrupt(x, t, noise).double().flatten(1)
    clean, levels = x.double().flatten(1), values.to(noisy.device).double()
    alpha, sigma = process.coefficients(t, noisy)
    count = max(1, _LEVEL_ELEMENTS // (len(x) * len(levels)))
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for part, own in zip(noisy.split(count, dim=1), clean.split(count, dim=1), strict=True):
        logits = -0.5 * ((part[..., None] - alpha * levels) / sigma).square()
        right = (own[..., None] - levels).abs().argmin(-1)
        total += (
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), right.flatten(), reduction="none")
            .view(right.shape)
            .sum(1)
        )
    return total
