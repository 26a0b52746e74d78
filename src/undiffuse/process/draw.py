r"""Drawing from categorical distributions, in float64.

The common recipe, arg-max of log p + Gumbel noise in float32, is a different distribution: its uniforms lie
on a grid of 2^-24, so no Gumbel number exceeds 16.6, and a class of probability p/N beside a mask state of
1 - 1/N is drawn too rarely the rarer it is. That lowers the temperature without saying so. Here a draw is one
float64 uniform through the inverse distribution function, and an absorbing step has two stages: first
whether the token opens, then its class, so that the small number 1/N never meets the classes.

Source: Zheng et al. 2024, "Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit
    Inaccurate Categorical Sampling", arXiv:2409.02908.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

Precision = Literal["exact", "float32-gumbel"]

FLOAT32_GUMBEL_BOUND = -math.log(-math.log1p(-(2.0**-24)))  # 16.6355, the largest Gumbel number of float32 uniforms


def sample_categorical(probs: Tensor, uniform: Tensor, precision: Precision = "exact") -> Tensor:
    """Draw one class per distribution.

    Args:
        probs: Weights (..., K), 0 or above; they need not sum to 1. A class of weight 0 is never drawn.
        uniform: Float64 numbers in [0, 1): one per draw (...), or for "float32-gumbel" one per class (..., K).
        precision: "exact", or "float32-gumbel" for the flawed arg-max draw that the paper measures.

    Returns:
        Classes, int64 (...). Weights that are NaN or all 0 give K, which is no class.

    Raises:
        ValueError: Shapes that do not fit, or an unknown precision.
        TypeError: `uniform` is not float64.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r} is unknown; choose one of {', '.join(get_args(Precision))}.")
    if uniform.dtype != torch.float64:
        raise TypeError(f"uniform is {uniform.dtype}; rare classes need float64 numbers in [0, 1).")
    wanted = probs.shape if precision == "float32-gumbel" else probs.shape[:-1]
    if uniform.shape != wanted:
        raise ValueError(f"uniform has shape {tuple(uniform.shape)}; {precision!r} draws here need {tuple(wanted)}.")
    if precision == "float32-gumbel":
        return _float32_gumbel(probs, uniform)
    cumulative = probs.double().cumsum(-1)
    # right=True passes over classes of weight 0; u < 1 keeps u * total below the total in float64.
    level = (uniform * cumulative[..., -1])[..., None]
    return torch.searchsorted(cumulative, level, right=True)[..., 0]


def sample_unmasked(
    x: Tensor, probs: Tensor, open_rate: float | Tensor, opens: Tensor, chooses: Tensor, mask_id: int
) -> Tensor:
    """Open masked tokens: first whether (a Bernoulli draw), then which class.

    Args:
        x: Tokens (B, ...), some of them `mask_id`; the others stay.
        probs: Probability of each class at each token (B, ..., K).
        open_rate: Probability of opening: a number, or a tensor that broadcasts over `x`.
        opens: Float64 uniforms (B, ...), compared with `open_rate`.
        chooses: Float64 uniforms (B, ...), for the class.
        mask_id: Id of the mask.

    Returns:
        Tokens (B, ...).
    """
    opening = (x == mask_id) & (opens < open_rate)
    return torch.where(opening, sample_categorical(probs, chooses), x)


def truncated_gumbel_probs(probs: Tensor, bound: float) -> Tensor:
    r"""Return what arg-max of log p + g draws when g is Gumbel noise conditioned on g <= bound.

    With p ascending, c = exp(-bound), S_i = sum_{j >= i} p_j and p_0 = 0,

        P(n) = p_n sum_{i <= n} (exp(c (K + 1 - i) - c S_i / p_i) - exp(c (K + 1 - i) - c S_i / p_{i-1})) / S_i.

    Args:
        probs: Probabilities (..., K) that sum to 1.
        bound: The largest Gumbel number: `FLOAT32_GUMBEL_BOUND`, 36.74 in float64, or `math.inf`.

    Returns:
        Probabilities (..., K), float64.

    Source: Zheng et al. 2024, arXiv:2409.02908.
    """
    p, order = probs.double().sort(-1)
    c = math.exp(-bound)
    tail = p.flip(-1).cumsum(-1).flip(-1)
    count = torch.arange(p.shape[-1], 0, -1, dtype=torch.float64, device=p.device)
    below = torch.cat((torch.zeros_like(p[..., :1]), p[..., :-1]), dim=-1)
    reach, reach_below = _reach(p, tail, count, c), _reach(below, tail, count, c)
    drawn = p * ((reach - reach_below) / tail.clamp(min=torch.finfo(torch.float64).tiny)).cumsum(-1)
    return torch.empty_like(drawn).scatter_(-1, order, drawn)


def _reach(p: Tensor, tail: Tensor, count: Tensor, c: float) -> Tensor:
    """Return exp(c count - c tail / p), which is 0 where p is 0."""
    safe = torch.where(p > 0, p, 1.0)
    return torch.where(p > 0, torch.exp(c * (count - tail / safe)), 0.0)


def _float32_gumbel(probs: Tensor, uniform: Tensor) -> Tensor:
    """The flawed draw: Gumbel numbers from uniforms rounded down to the grid of 2^-24, all in float32."""
    grid = (uniform * 2.0**24).floor().float() * 2.0**-24
    return (probs.float().log() - (-grid.log()).log()).argmax(-1)
