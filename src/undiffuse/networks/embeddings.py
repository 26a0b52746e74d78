"""Noise levels, and the condition vector, as the context that modulates a network's blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

# Slowest and fastest angular frequency. Noise levels are EDM's log(sigma / alpha) / 4, about -3..3, or times in
# 0..1: the slowest wave is monotone over the first, the fastest makes 2.5 turns over the second. Faster waves
# would make derivatives in time, which flow maps are trained on, needlessly large.
LOWEST_FREQUENCY = 1 / 16
HIGHEST_FREQUENCY = 16.0


def fourier_features(level: Tensor, dim: int) -> Tensor:
    """Return cosines and sines of `level` (...) at `dim / 2` frequencies spaced evenly in the logarithm: (..., dim).

    They are scaled to unit mean square. Computed in float32 or better, whatever the network's precision.
    """
    level = level.to(torch.promote_types(level.dtype, torch.float32))
    low, high = math.log2(LOWEST_FREQUENCY), math.log2(HIGHEST_FREQUENCY)
    frequencies = torch.logspace(low, high, dim // 2, base=2.0, device=level.device, dtype=level.dtype)
    angles = level[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1) * math.sqrt(2.0)


class ContextMLP(nn.Module):
    """Noise level and condition vector -> context, silu(L2 silu(L1 features(level) + vector)).

    The condition enters before the nonlinearity, so that its effect may depend on the noise level.

    Args:
        dim: Size E of the context, and of the condition vector.
        time_dependent: Whether the noise level is read; if not, the context holds the condition alone.
        features: Number of Fourier features, even.
    """

    def __init__(self, dim: int, *, time_dependent: bool = True, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self.first = nn.Linear(features, dim) if time_dependent else None
        self.second = nn.Linear(dim, dim)

    def forward(self, level: Tensor | None, vector: Tensor | None = None) -> Tensor:
        """Return the context, (B, E) for `level` (B,) or None, (B, F, E) for (B, F); `vector` is (B, E)."""
        hidden = None if level is None else self.project(fourier_features(level, self.features))
        return self.combine(hidden, vector)

    def project(self, features: Tensor) -> Tensor:
        """Return L1 features, (..., features) -> (..., E); only where `time_dependent`."""
        assert self.first is not None
        return self.first(features.to(self.first.weight.dtype))

    def combine(self, hidden: Tensor | None, vector: Tensor | None) -> Tensor:
        """Return silu(L2 silu(hidden + vector)); `hidden` (B, E) or (B, F, E), `vector` (B, E); one may be None."""
        if hidden is None:
            assert vector is not None
            hidden = vector
        elif vector is not None:
            hidden = hidden + (vector[:, None] if hidden.ndim == 3 else vector)
        return silu(self.second(silu(hidden)))
