"""Self-conditioning: the network also sees its own estimate of x_0, or zeros where it has none yet.

For every row a keyed coin decides: with probability 1/2 a first pass without gradient makes the estimate that the pass
to be scored sees, else it sees zeros, as at the start of sampling. The first pass is made for all rows, whatever their
coins say, so that shapes are the same in every step and nothing waits for a device: a step costs one forward pass
more, a third to a half of its time. Sampling costs no evaluations more.

Source: Chen, Zhang & Hinton 2022, "Analog Bits", section 3.2, arXiv:2208.04202. There a coin is tossed once per batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.noise import NoiseSource
from undiffuse.training.objectives import Corrupted

_SHARE = 0.5
COINS = "sees_estimate"  # in `Corrupted.extras`: (N,) bool


def draw_coins(denoiser: Denoiser, noise: NoiseSource) -> dict[str, Tensor]:
    """Return extras that say which rows see an estimate; none for denoisers that read none."""
    return {COINS: noise.uniform("selfcond", 0, ()) < _SHARE} if denoiser.self_conditioned else {}


def answer_again(denoiser: Denoiser, corrupted: Corrupted) -> Any:
    """Return the denoiser's posterior for a batch; rows whose coin says so see a first answer."""
    x, t = corrupted.x, corrupted.t
    cond = denoiser.embed(corrupted.cond, len(x), corrupted.drop)
    coins = corrupted.extras.get(COINS)
    if coins is None:
        return denoiser(x, t, cond)
    with torch.no_grad():
        first = denoiser(x, t, cond).mean
        estimate = torch.where(coins.view(-1, *[1] * (x.ndim - 1)), first, 0.0)
    return denoiser(x, t, denoiser.with_estimate(cond, estimate))
