r"""The evidence bound of categorical denoisers, in nats: the same terms train a model and rate it.

Absorbing processes. With a_t the keep probability, the continuous-time bound is

    int (-a'_t) / (1 - a_t) E[ sum over masked i of -log p_i(x0_i | x_t) ] dt = E_n[ L / n sum over n masked ... ]

with n uniform on 1..L and the n masked positions a random subset: the substitution u = 1 - a_t turns the
weight into 1 / u, which the binomial law of the count absorbs. Drawing the count has no weight that blows up.

Other processes. The discrete-time bound over T noise levels, T E_i[ KL(q(x_s | x_t, x_0) || p(x_s | x_t)) ] with
t = i / T and s = (i - 1) / T; its last term, s = 0, is the reconstruction. The prior's term is 0 up to keep(1).

Sources: Zheng et al. 2024, arXiv:2409.02908; Sahoo et al. 2024, arXiv:2406.07524; Austin et al. 2021, arXiv:2107.03006.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess

if TYPE_CHECKING:
    from undiffuse.denoisers.base import Denoiser
    from undiffuse.networks.embedded import Embedded


class Masked(NamedTuple):
    """Tokens with masks, and what each open question weighs in the bound per token.

    Args:
        x: Tokens (N, L) with masks.
        t: Time that belongs to them, float64 (N,).
        weight: float32 (N, L), 0 where not masked: the bound in nats per token is sum(weight * nll).
    """

    x: Tensor
    t: Tensor
    weight: Tensor


class Bound(NamedTuple):
    """A mean and its standard error: of the evidence bound in nats per token, or of a likelihood."""

    mean: float
    standard_error: float


def mask_by_count(process: CategoricalProcess, tokens: Tensor, count_uniform: Tensor, order: Tensor) -> Masked:
    """Mask n positions of each row, n uniform on 1..L.

    The masked positions are those with the n smallest uniforms. The n-th smallest is then a draw of 1 - a_t from
    its exact law given n (Beta(n, L - n + 1)), so time-dependent denoisers get the right time with it.

    Args:
        process: An absorbing process.
        tokens: Clean tokens (N, L).
        count_uniform: float64 (N,) in [0, 1), one per row; gives n.
        order: float64 uniforms (N, L).
    """
    length = tokens.shape[1]
    count = 1 + (count_uniform * length).long().clamp(max=length - 1)
    drop = order.sort(dim=1).values.gather(1, count[:, None] - 1)
    masked = order <= drop
    weight = masked / count[:, None].float()
    return Masked(_put_masks(process, tokens, masked), process.keep.time(1 - drop[:, 0]), weight)


def mask_by_time(process: CategoricalProcess, tokens: Tensor, drop_uniform: Tensor, order: Tensor) -> Masked:
    """Mask each position with probability 1 - a_t, drawn uniformly: weight 1 / (1 - a_t).

    Args:
        process: An absorbing process.
        tokens: Clean tokens (N, L).
        drop_uniform: float64 (N,) in [0, 1); one minus it is 1 - a_t, so that it is never 0.
        order: float64 uniforms (N, L).
    """
    drop = 1 - drop_uniform[:, None]
    masked = order < drop
    weight = (masked / (drop * tokens.shape[1])).float()
    return Masked(_put_masks(process, tokens, masked), process.keep.time(1 - drop[:, 0]), weight)


def token_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return -log p of each token, float32 (or float64) (N, L), from logits (N, L, K) of any float dtype."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none").view(tokens.shape)


def step_kl(process: CategoricalProcess, x_t: Tensor, tokens: Tensor, probs: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of each token, (N, L)."""
    exact = process.reverse(x_t, F.one_hot(tokens, process.classes).to(probs.dtype), t, s)
    model = process.reverse(x_t, probs, t, s)
    tiny = torch.finfo(probs.dtype).tiny
    return (torch.xlogy(exact, exact) - exact * model.clamp(min=tiny).log()).sum(-1)


@torch.no_grad()
def elbo(
    denoiser: Denoiser,
    tokens: Tensor,
    noise: NoiseSource,
    draws: int = 8,
    *,
    cond: Embedded | None = None,
    levels: int = 1000,
) -> Bound:
    """Estimate the evidence bound of `tokens` under a categorical denoiser; arguments and errors as `token_bounds`.

    Returns:
        Mean and standard error over rows (over draws where there is one row), nats per token; at least -log p. Of a
        causal denoiser it is -log p itself.
    """
    return summarise(token_bounds(denoiser, tokens, noise, draws, cond=cond, levels=levels))


def summarise(bounds: Tensor) -> Bound:
    """Return the mean of `token_bounds` (draws, N) and its standard error: over rows, or over draws of one row."""
    samples = bounds.mean(0) if bounds.shape[1] > 1 else bounds[:, 0]
    error = samples.std() / len(samples) ** 0.5 if len(samples) > 1 else torch.tensor(float("nan"))
    return Bound(float(bounds.double().mean()), float(error))


@torch.no_grad()
def token_bounds(
    denoiser: Denoiser,
    tokens: Tensor,
    noise: NoiseSource,
    draws: int = 8,
    *,
    cond: Embedded | None = None,
    levels: int = 1000,
) -> Tensor:
    """Return estimates of the evidence bound of each row, nats per token (draws, N).

    A causal denoiser knows its likelihood: one row of it, exact.

    Args:
        denoiser: Its process is categorical.
        tokens: (N, L), ids in 0..K-1.
        noise: Source of N rows; streams "time" and "order", one step per draw.
        draws: Noise draws per row; each costs one network evaluation of N rows.
        cond: Embedded conditions of the N rows.
        levels: Noise levels T of processes that are not absorbing.

    Raises:
        ValueError: The process is not categorical, an id is no class, or `draws` is below 1.
    """
    process = denoiser.process
    if not isinstance(process, CategoricalProcess):
        raise ValueError("the evidence bound in nats per token needs a categorical process; this model is Gaussian.")
    process.check_data(tokens)
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1.")
    if denoiser.causal:
        return token_nll(cast(Tensor, denoiser(tokens, 0.0, cond).logits), tokens).mean(1)[None]
    return torch.stack(
        [_one_draw(denoiser, process, tokens, noise, draw, draws, cond, levels) for draw in range(draws)]
    )


def _one_draw(
    denoiser: Denoiser,
    process: CategoricalProcess,
    tokens: Tensor,
    noise: NoiseSource,
    draw: int,
    draws: int,
    cond: Embedded | None,
    levels: int,
) -> Tensor:
    """Return one estimate of each row's bound, nats per token (N,); the draws of a row are stratified in level."""
    u = (noise.uniform("time", 0, ()) + draw / draws) % 1.0
    order = noise.uniform("order", draw, (tokens.shape[1],))
    if process.kind == "absorbing":
        masked = mask_by_count(process, tokens, u, order)
        logits = cast(Tensor, denoiser(masked.x, masked.t, cond).logits)
        return (masked.weight * token_nll(logits, tokens)).sum(1)
    t, s = level_times(u, levels)
    x_t = process.corrupt(tokens, t, order)
    probs = denoiser(x_t, t, cond).logits.softmax(-1)
    return levels * step_kl(process, x_t, tokens, probs, t, s).mean(1)


def level_times(u: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Return (t, s) = (i, i - 1) / levels with i uniform on 1..levels, from uniforms (N,)."""
    index = 1 + (u * levels).long().clamp(max=levels - 1)
    return index.double() / levels, (index - 1).double() / levels


def _put_masks(process: CategoricalProcess, tokens: Tensor, masked: Tensor) -> Tensor:
    if process.kind != "absorbing":
        raise ValueError(
            f"the masked bound needs an absorbing process, not {process.kind!r}; use the discrete-time bound."
        )
    process.check_data(tokens)
    return torch.where(masked, torch.full_like(tokens, process.classes), tokens)
