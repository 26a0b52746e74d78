"""A residual branch whose normalisation and strength follow the context (adaLN-zero)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ModulatedResidual(nn.Module):
    """x + gate * inner((1 + scale) * norm(x) + shift), with scale, shift and gate linear in the context.

    They start at 0, so the branch starts as the identity. Without a context (`context_dim` None) it is the
    plain x + inner(norm(x)).

    Source: Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", section 3.2, arXiv:2212.09748.
    """

    def __init__(self, inner: nn.Module, dim: int, context_dim: int | None) -> None:
        super().__init__()
        self.inner = inner
        self.norm = nn.LayerNorm(dim, elementwise_affine=context_dim is None)
        self.modulate = None if context_dim is None else zero_linear(context_dim, 3 * dim)

    def forward(self, x: Tensor, context: Tensor | None = None, *args: Any) -> Tensor:
        """Map `x` (B, ..., D); `context` (B, ..., E) broadcasts over it; `args` go to `inner`."""
        if self.modulate is None:
            return x + self.inner(self.norm(x), *args)
        scale, shift, gate = self.modulate(context).chunk(3, dim=-1)
        return x + gate * self.inner(torch.addcmul(shift, self.norm(x), 1.0 + scale), *args)


class ModulatedNorm(nn.Module):
    """(1 + scale) * norm(x) + shift, with scale and shift linear in the context and 0 at the start."""

    def __init__(self, dim: int, context_dim: int | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=context_dim is None)
        self.modulate = None if context_dim is None else zero_linear(context_dim, 2 * dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map `x` (B, ..., D); `context` (B, ..., E) broadcasts over it."""
        if self.modulate is None:
            return self.norm(x)
        scale, shift = self.modulate(context).chunk(2, dim=-1)
        return torch.addcmul(shift, self.norm(x), 1.0 + scale)


def zero_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer that starts at 0."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.zeros_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
