"""Krylov methods for a batch of systems, each row with its own subspace: conjugate gradients, GMRES, Lanczos."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    start: Tensor | None = None,
    iterations: int = 50,
    tol: float = 1e-6,
    least: float = -math.inf,
) -> Tensor:
    """Solve apply(x) = b for a symmetric positive (semi-)definite `apply`, row by row of the batch.

    From zero it stays in the span of b, apply(b), ..., so for a singular system that has a solution it finds the one
    of least norm. A row that has converged stands still while others go on.

    Args:
        apply: The matrix-vector product, (B, *) -> (B, *).
        b: Right-hand sides, (B, *).
        start: First guess, (B, *); zero by default.
        iterations: Most iterations.
        tol: Stops where every row's residual is below `tol` times the norm of its right-hand side; 0 never stops early
            (nor waits for the device).
        least: Least eigenvalue that `apply` can have: a row whose next direction has a smaller curvature keeps what it
            has, for there `apply` is not what it is taken for, as a network's derivative may not be.

    Source: Hestenes and Stiefel 1952.
    """
    x = torch.zeros_like(b) if start is None else start
    residual = b if start is None else b - apply(start)
    direction = residual
    square = _dot(residual, residual)
    target = tol * tol * _dot(b, b)
    sound = torch.ones_like(square, dtype=torch.bool)
    for _ in range(iterations):
        if tol > 0 and bool((square <= target).all()):
            break
        product = apply(direction)
        curvature = _dot(direction, product)
        sound = sound & (curvature >= least * _dot(direction, direction))
        moving = (square > target) & (square > 0) & sound
        step = torch.where(moving, square / _safe(curvature), torch.zeros_like(square))
        x = x + _over(step, x) * direction
        residual = residual - _over(step, x) * product
        after = _dot(residual, residual)
        direction = residual + _over(after / _safe(square), x) * direction
        square = torch.where(moving, after, square)
    return x


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


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], start: Tensor, iterations: int = 80) -> float:
    """Return the largest eigenvalue of a symmetric positive semi-definite `apply`, over all rows of the batch.

    By Lanczos; directions that lose their orthogonality repeat eigenvalues, which does not move the largest.

    Args:
        apply: The matrix-vector product, (B, *) -> (B, *).
        start: A random direction, (B, *).
        iterations: Most iterations.
    """
    v, last = start / _over(_dot(start, start).sqrt(), start), torch.zeros_like(start)
    diagonal, beside = [], []
    off = torch.zeros_like(_dot(start, start))
    for _ in range(min(iterations, start[0].numel())):
        w = apply(v) - _over(off, v) * last
        diagonal.append(_dot(w, v))
        w = w - _over(diagonal[-1], v) * v
        off = _dot(w, w).sqrt()
        beside.append(off)
        if not bool((off > 1e-13 * diagonal[0].abs()).any()):
            break
        last, v = v, w / _over(_safe(off), w)
    matrix = torch.diag_embed(torch.stack(diagonal, -1))
    if len(diagonal) > 1:
        sides = torch.diag_embed(torch.stack(beside[:-1], -1), offset=1)
        matrix = matrix + sides + sides.mT
    return float(torch.linalg.eigvalsh(matrix).max().clamp_min(0))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _safe(value: Tensor) -> Tensor:
    return torch.where(value == 0, torch.ones_like(value), value)


def _inverse(value: Tensor) -> Tensor:
    return torch.where(value > 0, 1 / torch.where(value > 0, value, 1.0), 0.0)


def _over(row: Tensor, like: Tensor) -> Tensor:
    return row.view(-1, *[1] * (like.ndim - 1))
