"""What a denoiser answers: a posterior over clean data. Frozen, tensors only, registered as pytrees."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree

PURITY = "purity"
"""Name among the extras of a categorical posterior of how sure it is of each token, (B, ...), for solvers that mind."""


@dataclass(frozen=True)
class _Fields:
    """Shared by both posteriors: a copy with some fields changed."""

    def replace(self, **changes: Any) -> Self:
        """Return a copy with the named fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Posterior(_Fields):
    """Posterior over continuous x_0 given x_t.

    Args:
        mean: E[x_0 | x_t], (B, *).
        var: Variance per element, (B, *), where the denoiser knows it.
        raw: What the network put out, before conversion to `mean`.
        eps: The noise that goes with `mean`, where a correction chose to keep it; None: it follows from x_t and mean.
        extras: Outputs of further heads, by name.
    """

    mean: Tensor
    var: Tensor | None = None
    raw: Tensor | None = None
    eps: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class CategoricalPosterior(_Fields):
    """Posterior over K classes at each position.

    Args:
        logits: log p(x_0 | x_t) up to a constant, (B, L, K) or (B, H, W, K); -inf is allowed.
        extras: Outputs of further heads, by name.
    """

    logits: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)

    @property
    def probs(self) -> Tensor:
        """Probabilities in float64, (B, ..., K)."""
        return torch.softmax(self.logits.double(), dim=-1)


AnyPosterior = Posterior | CategoricalPosterior

for _cls in (Posterior, CategoricalPosterior):
    _pytree.register_dataclass(_cls, field_names=[f.name for f in dataclasses.fields(_cls)])
