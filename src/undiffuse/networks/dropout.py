"""Layers that draw in training, dropout among them, without ever reading the global generator.

The trainer sets `network.dropout_generator` to a generator that it reseeds each step from (seed, images
seen), so that a resumed run drops the same features as an uninterrupted one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Drawing(nn.Module):
    """Base of layers that draw in training at a `rate` above 0."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    @property
    def draws(self) -> bool:
        """Whether this layer draws now."""
        return self.training and self.rate > 0.0

    def require_generator(self, device: torch.device) -> torch.Generator:
        """Return the generator.

        Raises:
            RuntimeError: Nobody has set one.
        """
        if self.generator is None:
            raise RuntimeError(
                f"{type(self).__name__.lower()}={self.rate} needs a generator in training; set "
                f"network.dropout_generator (a torch.Generator on {device}), or call network.eval()."
            )
        return self.generator


class Dropout(Drawing):
    """Zero a share `rate` of the features in training and scale the others by 1 / (1 - rate)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with features dropped, or `x` itself in evaluation.

        Raises:
            RuntimeError: Training, and nobody has set a generator.
        """
        if not self.draws:
            return x
        kept = torch.rand(x.shape, generator=self.require_generator(x.device), device=x.device) >= self.rate
        return x * kept / (1.0 - self.rate)


def draws_in_training(network: nn.Module) -> bool:
    """Whether some layer inside `network` draws in training."""
    return any(isinstance(module, Drawing) and module.rate > 0.0 for module in network.modules())


def set_dropout_generator(network: nn.Module, generator: torch.Generator | None) -> None:
    """Let every layer inside `network` that draws take its numbers from `generator`."""
    for module in network.modules():
        if isinstance(module, Drawing):
            module.generator = generator
