r"""What kernels of blurs look like before anything was seen: a Gaussian, and what a blurred picture adds to it.

With k = m + L w and w ~ N(0, I), a blur is linear in w, so the most probable kernel for a known picture has a closed
form. The Gaussian is that of kernels drawn by this library: paths of a shaken camera and Gaussian blurs of any width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise
from undiffuse.operators.blur import gaussian_line, motion_kernel
from undiffuse.operators.simplex import project_simplex

_DRAWN = 256  # kernels behind the Gaussian, half of each kind
_RANK = 24  # directions kept: more cost a blur each, and say little (99 % of the variance at 9 x 9 taps)


@dataclass(frozen=True)
class KernelPrior:
    """N(mean, roots^T roots) of kernels (h, w).

    Args:
        mean: (h, w).
        roots: (r, h, w), the rows of L^T.
    """

    mean: Tensor
    roots: Tensor

    def fitted(self, operator: Any, x: Tensor, y: Tensor, variance: Tensor | float) -> Tensor:
        """Return the most probable kernels (B, h, w) for y = k * x + noise, moved to the nearest that sum to 1.

        Args:
            operator: A blur, for its boundary; `with_kernel` says how it blurs with others.
            x: Pictures (B, C, H, W).
            y: What they became, shaped alike.
            variance: Of the noise, one number.
        """
        mean, roots = self.mean.to(x), self.roots.to(x)
        columns = torch.stack([operator.with_kernel(root)(x).flatten(1) for root in roots], 2)  # (B, D, r)
        rest = (y - operator.with_kernel(mean)(x)).flatten(1)
        normal = columns.mT @ columns / variance + torch.eye(len(roots), dtype=x.dtype, device=x.device)
        w = torch.linalg.solve(normal, (columns.mT @ rest[..., None]) / variance)[..., 0]
        return project_simplex(mean + torch.einsum("br,rhw->bhw", w, roots))


@lru_cache(maxsize=8)
def kernel_prior(height: int, width: int) -> KernelPrior:
    """Return the Gaussian of kernels of a size, from the same draws each time."""
    size = max(height, width) // 2 * 2 + 1
    half = _DRAWN // 2
    shares = KeyedNoise(0, range(_DRAWN)).uniform("operator", 2, ())
    drawn = [motion_kernel(size, float(shares[i].clamp(min=0.05)), i) for i in range(half)]
    for share in shares[half:]:
        line = gaussian_line(0.3 + float(share) * size / 4, size)
        drawn.append(line[:, None] * line)
    top, left = size // 2 - height // 2, size // 2 - width // 2  # centres lie at (h // 2, w // 2)
    kernels = torch.stack(drawn)[:, top : top + height, left : left + width]
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    mean = kernels.mean(0)
    _, sizes, directions = torch.linalg.svd((kernels - mean).flatten(1), full_matrices=False)
    rank = min(_RANK, int((sizes > 1e-9 * sizes[0]).sum()))
    roots = directions[:rank] * sizes[:rank, None] / (_DRAWN - 1) ** 0.5
    return KernelPrior(mean, roots.reshape(-1, height, width))
