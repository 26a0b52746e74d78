"""Pairwise Euclidean distances in float64, in chunks, so that 10 000 x 10 000 points fit in memory.

Metrics take arrays or tensors of any shape `(N, *)`; `as_matrix` flattens them to `(N, D)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any] | Tensor
Matrix = NDArray[np.float64]
_CHUNK_BYTES = 64 * 2**20
_DIRECT_FEATURES = 32  # up to here differences are as fast as the matrix product and have no cancellation


def as_matrix(x: Array, name: str = "x") -> Matrix:
    """Return `x` of shape (N, *) as a float64 matrix (N, D).

    Raises:
        ValueError: There are no rows, or some hold NaN or infinite values.
    """
    values = x.detach().cpu().double().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if values.ndim == 0 or values.size == 0:
        raise ValueError(f"{name} has shape {values.shape}; expected (N, *) with at least one row.")
    matrix = values.reshape(len(values), -1).astype(np.float64)
    bad = int((~np.isfinite(matrix).all(axis=1)).sum())
    if bad:
        raise ValueError(
            f"{name} has NaN or infinite values in {bad} of {len(matrix)} rows; remove them and count them."
        )
    return matrix


def as_pair(x: Array, y: Array, names: tuple[str, str] = ("x", "y")) -> tuple[Matrix, Matrix]:
    """Return both arguments as float64 matrices of equal width.

    Raises:
        ValueError: The widths differ, or see `as_matrix`.
    """
    first, second = as_matrix(x, names[0]), as_matrix(y, names[1])
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{names[0]} has {first.shape[1]} features and {names[1]} has {second.shape[1]}; expected equal."
        )
    return first, second


def distance_chunks(x: Matrix, y: Matrix) -> Iterator[Tensor]:
    """Yield the Euclidean distances of successive rows of `x` to all of `y`: float64 tensors (chunk, len(y)).

    Wide rows go through a matrix product, whose cancellation costs about 1e-8 of the rows' norm near zero.
    """
    mode = "donot_use_mm_for_euclid_dist" if x.shape[1] <= _DIRECT_FEATURES else "use_mm_for_euclid_dist"
    target = torch.from_numpy(y)
    rows = max(1, _CHUNK_BYTES // (8 * len(y)))
    for part in torch.from_numpy(x).split(rows):
        yield torch.cdist(part, target, compute_mode=mode)


def mean_distance(x: Matrix, y: Matrix) -> float:
    """Return the mean of all len(x) * len(y) distances, those of a point to itself included."""
    return sum(float(chunk.sum()) for chunk in distance_chunks(x, y)) / (len(x) * len(y))
