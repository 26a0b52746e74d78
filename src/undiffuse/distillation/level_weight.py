"""`LevelWeight`: 1 / the running loss of each noise level, the optimum of a learned uncertainty weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LOWEST, _HIGHEST, _BINS = -7.0, 7.0, 56  # half log-SNR, nats
_DECAY, _SMALLEST = 0.95, 1e-6


class LevelWeight(nn.Module):
    """Minimiser of weight * loss - ln weight for each noise level: weight = 1 / E[loss | level].

    A running average of the loss per bin of half log-SNR; 1 where nothing was seen yet. Two buffers, saved with a run.

    Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", arXiv:2312.02696,
        section 2.2, which learns the same function by a network.
    """

    losses: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(_BINS, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(_BINS, dtype=torch.float64))

    def forward(self, half_logsnr: Tensor) -> Tensor:
        """Return the weight (B,) of levels (B,), float64."""
        seen, losses = self.seen[_bin(half_logsnr)], self.losses[_bin(half_logsnr)]
        return torch.where(seen > 0, 1 / (losses / seen.clamp(min=_SMALLEST)).clamp(min=_SMALLEST), 1.0)

    @torch.no_grad()
    def update(self, half_logsnr: Tensor, losses: Tensor) -> None:
        """Take the unweighted losses (B,) of a batch into the averages; those that are not finite are left out."""
        kept = losses.isfinite()
        bins = _bin(half_logsnr)
        count = torch.zeros_like(self.seen).index_add_(0, bins, kept.double())
        total = torch.zeros_like(self.seen).index_add_(0, bins, torch.where(kept, losses.double(), 0.0))
        decay = torch.where(count > 0, _DECAY**count, 1.0)
        self.losses.mul_(decay).add_(total)
        self.seen.mul_(decay).add_(count)


def _bin(half_logsnr: Tensor) -> Tensor:
    return ((half_logsnr - _LOWEST) / (_HIGHEST - _LOWEST) * _BINS).long().clamp(0, _BINS - 1)
