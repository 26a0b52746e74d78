"""What the network tests share."""

from __future__ import annotations

import torch
from torch import nn

from undiffuse.spec import ConditionSpec


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def described(classes: int = 0, **widths: int) -> dict[str, ConditionSpec]:
    """Describe a label of so many classes, and vectors by name."""
    label = {"label": ConditionSpec(kind="label", classes=tuple(map(str, range(classes))))} if classes else {}
    return label | {name: ConditionSpec(kind="vector", width=width) for name, width in widths.items()}


def randomise(network: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Fill every parameter with noise: layers that start at zero would hide what reaches the output."""
    draws = generator(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draws))
    return network


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def parameters_without_gradient(network: nn.Module) -> list[str]:
    return [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
