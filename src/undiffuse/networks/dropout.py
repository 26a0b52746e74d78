"""Dropout that never reads the global generator.

The trainer sets `network.dropout_generator` to a generator that it reseeds each step from (seed, images
seen), so that a resumed run drops the same features as an uninterrupted one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Zero a share `rate` of the features in training and scale the others by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with features dropped, or `x` itself in evaluation.

        Raises:
            RuntimeError: Training, and nobody has set a generator.
        """
        if not self.training or self.rate == 0.0:
            return x
        if self.generator is None:
            raise RuntimeError(
                f"dropout={self.rate} needs a generator in training; set network.dropout_generator "
                f"(a torch.Generator on {x.device}), or call network.eval()."
            )
        kept = torch.rand(x.shape, generator=self.generator, device=x.device) >= self.rate
        return x * kept / (1.0 - self.rate)


def set_dropout_generator(network: nn.Module, generator: torch.Generator | None) -> None:
    """Let every `Dropout` inside `network` draw from `generator`."""
    for module in network.modules():
        if isinstance(module, Dropout):
            module.generator = generator
