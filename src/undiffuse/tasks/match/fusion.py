"""Co-PCA and fusion: from feature maps of several layers and networks to one vector for each cell.

Source: Zhang et al. 2023, "A Tale of Two Features: Stable Diffusion Complements DINO for Zero-Shot Semantic
    Correspondence", section 3, arXiv:2305.15347.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Maps = Mapping[str, Tensor]
"""Layer -> features (C, h, w), float32."""


def copca(a: Tensor, b: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Project the rows of two matrices on the principal axes of both together.

    The joint mean is removed. A basis of one picture alone does not fit the other, and two bases are rotated against
    each other. With all axes, distances between rows are kept, and cosines are those of centred rows. Exact, by the
    eigenvectors of the covariance (or of the Gram matrix, where there are fewer rows than columns), in float64.

    Args:
        a: (N, C).
        b: (M, C).
        dims: Axes to keep; more than min(C, N + M) are reduced to that, with a warning.

    Returns:
        (N, dims) and (M, dims), in the dtype of `a`.

    Raises:
        ValueError: Rows of different length, fewer than 1 dimension, or features that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"co-PCA of rows {tuple(a.shape)} and {tuple(b.shape)}; expected (N, C) and (M, C).")
    if dims < 1:
        raise ValueError(f"dims={dims} must be at least 1.")
    rows = torch.cat([a, b]).double()
    _check_finite(rows, "features")
    most = min(rows.shape)
    if dims > most:
        warnings.warn(
            f"co-PCA to {dims} dimensions of {len(rows)} rows of {rows.shape[1]}: {most} it is.", stacklevel=2
        )
    rows = rows - rows.mean(dim=0)
    found = _principal(rows, min(dims, most)).to(a.dtype)
    return found[: len(a)], found[len(a) :]


def _principal(rows: Tensor, dims: int) -> Tensor:
    """Return centred rows (N, C) on their first principal axes, (N, dims)."""
    if rows.shape[1] <= rows.shape[0]:
        return rows @ torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -dims:].flip(1)
    values, vectors = torch.linalg.eigh(rows @ rows.T)  # scores are eigenvectors times singular values
    return vectors[:, -dims:].flip(1) * values[-dims:].flip(0).clamp_min(0).sqrt()


def reduce_pair(src: Maps, dst: Maps, dims: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return both pictures' maps with co-PCA of each layer that has more than `dims` channels; 0 leaves all alone."""
    reduced: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, a in src.items():
        b = dst[name]
        sizes = a.shape[1:], b.shape[1:]
        if dims and a.shape[0] > dims:
            a, b = (rows.T for rows in copca(a.flatten(1).T, b.flatten(1).T, dims))
        for kept, part, size in zip(reduced, (a, b), sizes, strict=True):
            kept[name] = part.reshape(len(part), *size)
    return reduced


def join(maps: Maps) -> Tensor:
    """Return layers of several resolutions as one map (C, h, w) of the finest: from coarse to fine, what there is is
    enlarged (bilinear, align_corners False) and the next layer is put behind it.
    """
    layers = sorted(maps.values(), key=lambda layer: layer.shape[1] * layer.shape[2])
    joined = layers[0]
    for layer in layers[1:]:
        joined = torch.cat([resize(joined, tuple(layer.shape[1:])), layer])
    return joined


def resize(features: Tensor, grid: Sequence[int]) -> Tensor:
    """Return features (C, h, w) on another grid, bilinear; as they are on their own."""
    if tuple(features.shape[1:]) == tuple(grid):
        return features
    return F.interpolate(features[None], size=tuple(grid), mode="bilinear", align_corners=False)[0]


def fuse(maps: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return one vector per cell, (h w, D): every map scaled to unit length in each cell, times its weight, in a row.

    So |F - F'|^2 = sum_k 2 w_k^2 (1 - cos_k), a weighted sum of cosines. The result has unit length where no feature is
    zero: it is divided by sqrt(sum_k w_k^2), which changes no ranking and makes products comparable between weights.

    Args:
        maps: One (C_k, h, w) for each source, all on one grid.
        weights: One number for each.

    Raises:
        ValueError: Features that are not finite.
    """
    for features in maps:
        _check_finite(features, "features")
    total = sum(weight**2 for weight in weights) ** 0.5
    parts = [F.normalize(m.flatten(1).T, dim=1) * (w / total) for m, w in zip(maps, weights, strict=True) if w]
    return torch.cat(parts, dim=1)


def _check_finite(values: Tensor, what: str) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"{int((~values.isfinite()).sum())} of {values.numel()} {what} are not finite; the network overflowed: "
            "run it in float32."
        )
