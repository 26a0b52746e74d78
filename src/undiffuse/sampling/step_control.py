"""How adaptive solvers choose their steps: a size per sample, so that none depends on the others of its batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0


def error_ratio(error: Tensor, before: Tensor, after: Tensor, rtol: float, atol: float) -> Tensor:
    """Return the size of a local error relative to what is allowed, (B,): at most 1 is accepted.

    The root of the mean square of error / max(atol, rtol max(|before|, |after|)) over the elements of a sample.
    """
    allowed = torch.maximum(before.abs(), after.abs()).mul(rtol).clamp(min=atol)
    return (error / allowed).reshape(len(error), -1).square().mean(1).sqrt().double()


def largest(ratios: Iterable[Tensor]) -> Tensor:
    """Return the largest ratio of each sample, (B,), so that a small part of a state is not lost in a large one."""
    return torch.stack(list(ratios)).amax(0)


def growth(ratio: Tensor, order: int) -> Tensor:
    """Return the factor (B,) by which the next step is longer, for a local error that falls like h^order.

    0.9 ratio^(-1 / order), between 0.2 and 5; 0.2 where the ratio is not finite.
    """
    factor = SAFETY * ratio.clamp(min=1e-12) ** (-1 / order)
    return torch.where(ratio.isfinite(), factor, SHRINK).clamp(SHRINK, GROW)
