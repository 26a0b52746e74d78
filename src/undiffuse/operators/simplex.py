"""Projection onto the simplex: the nearest kernel that is at least 0 and sums to 1, for blind restoration."""

from __future__ import annotations

import torch
from torch import Tensor


def project_simplex(kernel: Tensor) -> Tensor:
    """Return the nearest point of the simplex to each kernel (..., h, w), over its last two axes.

    Source: Duchi et al. 2008, "Efficient projections onto the l1-ball for learning in high dimensions", figure 1.
    """
    flat = kernel.flatten(-2)
    ordered = flat.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - 1
    rank = torch.arange(1, flat.shape[-1] + 1, device=flat.device)
    count = (ordered * rank > excess).sum(-1, keepdim=True)
    shift = excess.gather(-1, count - 1) / count
    return (flat - shift).clamp_min(0).view_as(kernel)
