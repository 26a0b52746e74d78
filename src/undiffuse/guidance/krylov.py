"""GMRES for a batch of systems, each row with a subspace of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gmres(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """Return the x in span(b, M b, ..., M^(k-1) b) with the least residual |b - M x|, per row; M need not be symmetric.

    Args:
        apply: The matrix-vector product, (B, *) -> (B, *).
        b: Right-hand sides (B, *).
        iterations: k; that many products.

    Source: Saad and Schultz 1986.
    """
    size = b.flatten(1).norm(dim=1)
    vectors = [_over(_inverse(size), b) * b]
    images: list[Tensor] = []
    for _ in range(iterations):
        image = apply(vectors[-1])
        images.append(image.flatten(1))
        rest = image
        for _ in range(2):  # twice: one pass of Gram and Schmidt loses orthogonality in float32
            for vector in vectors:
                rest = rest - _over((rest * vector).flatten(1).sum(1), b) * vector
        # A subspace that is complete leaves rounding errors, which are no direction.
        length = rest.flatten(1).norm(dim=1)
        real = length > 1e3 * torch.finfo(b.dtype).eps * image.flatten(1).norm(dim=1)
        vectors.append(_over(torch.where(real, _inverse(length), 0.0), b) * rest)
    columns = torch.stack(images, dim=2)  # (B, D, k)
    q, r = torch.linalg.qr(columns)
    weights = torch.linalg.pinv(r) @ (q.mT @ b.flatten(1)[..., None])
    basis = torch.stack([v.flatten(1) for v in vectors[:iterations]], dim=2)
    return (basis @ weights)[..., 0].reshape(b.shape)


def _inverse(value: Tensor) -> Tensor:
    return torch.where(value > 0, 1 / torch.where(value > 0, value, 1.0), 0.0)


def _over(row: Tensor, like: Tensor) -> Tensor:
    return row.view(-1, *[1] * (like.ndim - 1))
