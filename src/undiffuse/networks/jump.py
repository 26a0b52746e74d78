"""The second time of a flow map, as a vector that shifts the context of every block of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from undiffuse.networks.embeddings import fourier_features
from undiffuse.networks.modulation import zero_linear


class JumpEmbedding(nn.Module):
    """Noise level at the end of a jump, and its span in time -> vector (B, E); 0 at initialisation.

    Args:
        dim: Size E.
        features: Number of Fourier features of each, even.
        seed: Seed of the initial weights; the global generator is neither read nor changed.
    """

    def __init__(self, dim: int, features: int = 64, *, seed: int = 0) -> None:
        super().__init__()
        self.features = features
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            self.first = nn.Linear(2 * features, dim)
            self.second = zero_linear(dim, dim)

    def forward(self, level: Tensor, span: Tensor) -> Tensor:
        """Embed `level` (B,), such as log(sigma / alpha) / 4 at the end, and `span` (B,), the time jumped over."""
        parts = torch.cat([fourier_features(part, self.features) for part in (level, span)], dim=-1)
        return self.second(silu(self.first(parts.to(self.first.weight.dtype))))
