"""Compressed sensing and dense matrices: a few random combinations of all numbers of an item."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import Shape, SVDOperator, double, image_shape
from undiffuse.operators.jpeg import dct_matrix

_MOST = 4096


class SampledTransform(SVDOperator):
    """Random rows of an orthogonal transform after random signs, for every channel: all singular values are 1 or 0.

    Args:
        in_shape: (..., H, W).
        rows: Which coefficients are measured, int64 (m,), of H * W.
        signs: +1 or -1 for every pixel, (H * W,).
        transform: "hadamard" (H * W a power of two) or "dct" (over rows and columns).
    """

    kind = "sampled-transform"

    def __init__(self, in_shape: Shape, rows: Tensor, signs: Tensor, transform: str = "hadamard") -> None:
        lead, height, width = image_shape(in_shape, "compressed sensing")
        count = height * width
        if transform not in ("hadamard", "dct"):
            raise ValueError(f"transform {transform!r} is unknown; choose hadamard or dct.")
        if transform == "hadamard" and count & (count - 1):
            raise ValueError(
                f"the Walsh-Hadamard transform needs a power of two of pixels; {height} x {width} has none. Use cs:dct."
            )
        kept = torch.zeros(count, dtype=torch.float64)
        kept[rows] = 1
        super().__init__(
            in_shape,
            (*lead, len(rows)),
            settings={"transform": transform},
            tensors={"rows": rows, "signs": double(signs)},
            derived={"kept": kept, "dct_h": dct_matrix(height), "dct_w": dct_matrix(width)},
        )
        self.transform = transform

    def Vt(self, x: Tensor) -> Tensor:
        flat = x.flatten(-2) * self._get("signs", x)
        if self.transform == "hadamard":
            return hadamard(flat)
        return (self._get("dct_h", x) @ flat.view_as(x) @ self._get("dct_w", x).mT).flatten(-2)

    def V(self, z: Tensor) -> Tensor:
        height, width = self.in_shape[-2:]
        if self.transform == "hadamard":
            flat = hadamard(z)
        else:
            flat = (self._get("dct_h", z).mT @ z.unflatten(-1, (height, width)) @ self._get("dct_w", z)).flatten(-2)
        return (flat * self._get("signs", z)).unflatten(-1, (height, width))

    def Ut(self, y: Tensor) -> Tensor:
        z = y.new_zeros(*y.shape[:-1], math.prod(self.in_shape[-2:]))
        return z.index_copy(-1, self._get("rows", y), y)

    def U(self, z: Tensor) -> Tensor:
        return z[..., self._get("rows", z)]

    def singulars(self, like: Tensor | None = None) -> Tensor:
        kept = self._tensors["kept"] if like is None else self._get("kept", like)
        return kept.view(*[1] * (len(self.in_shape) - 1), -1)

    def label(self) -> str:
        """Return its transform and the share of coefficients."""
        return f"compressed-sensing({self.transform}, {self.out_shape[-1]} of {math.prod(self.in_shape[-2:])})"


class Matrix(SVDOperator):
    """y = M x for the flat item x and any matrix (m, n) with n at most 4096; y is (m,).

    Raises:
        ValueError: The matrix does not fit, or n is too large for a dense decomposition.
    """

    kind = "matrix"

    def __init__(self, in_shape: Shape, matrix: Tensor) -> None:
        count = math.prod(in_shape)
        matrix = double(matrix)
        if matrix.ndim != 2 or matrix.shape[1] != count:
            raise ValueError(
                f"a matrix of shape {tuple(matrix.shape)} does not fit {count} numbers; give (m, {count})."
            )
        if count > _MOST:
            raise ValueError(
                f"a dense matrix for {count} numbers is too large (at most {_MOST}); use cs:hadamard or cs:dct."
            )
        u, s, vt = torch.linalg.svd(matrix, full_matrices=True)
        rank = int((s > s.max() * 1e-12).sum())
        full_s = matrix.new_zeros(count)
        full_s[:rank] = s[:rank]
        super().__init__(
            in_shape,
            (matrix.shape[0],),
            tensors={"matrix": matrix},
            derived={"u": u[:, :rank].contiguous(), "s": full_s, "vt": vt},
        )

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._get("matrix", x).mT

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return (y @ self._get("matrix", y)).view(-1, *self.in_shape)

    def Vt(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._get("vt", x).mT

    def V(self, z: Tensor) -> Tensor:
        return (z @ self._get("vt", z)).view(-1, *self.in_shape)

    def Ut(self, y: Tensor) -> Tensor:
        u = self._get("u", y)
        return torch.nn.functional.pad(y @ u, (0, math.prod(self.in_shape) - u.shape[1]))

    def U(self, z: Tensor) -> Tensor:
        u = self._get("u", z)
        return z[:, : u.shape[1]] @ u.mT

    def singulars(self, like: Tensor | None = None) -> Tensor:
        return (self._tensors["s"] if like is None else self._get("s", like))[None]

    def label(self) -> str:
        """Return its size."""
        return f"matrix({self.out_shape[0]} x {math.prod(self.in_shape)})"


def sampled(shape: Shape, *, ratio: float = 0.25, transform: str = "hadamard", seed: int = 0) -> SampledTransform:
    """Return the share `ratio` of the coefficients of a transform, chosen by `seed`."""
    count = math.prod(shape[-2:])
    noise = KeyedNoise(seed, [0])
    order = noise.uniform("operator", 0, (count,))[0].argsort()
    signs = torch.where(noise.uniform("operator", 1, (count,))[0] < 0.5, -1.0, 1.0).double()
    return SampledTransform(shape, order[: _share(ratio, count)].sort().values, signs, transform)


def gaussian_matrix(shape: Shape, *, ratio: float = 0.25, seed: int = 0) -> Matrix:
    """Return a matrix of m = ratio * n rows of normal numbers with variance 1 / m, drawn by `seed`."""
    count = math.prod(shape)
    if count > _MOST:
        raise ValueError(
            f"a Gaussian matrix for {count} numbers is too large (at most {_MOST}); use cs:hadamard or cs:dct."
        )
    rows = _share(ratio, count)
    return Matrix(shape, KeyedNoise(seed, [0]).normal("operator", 0, (rows, count), torch.float64)[0] / math.sqrt(rows))


def hadamard(x: Tensor) -> Tensor:
    """Return the orthonormal Walsh-Hadamard transform of the last axis, whose length is a power of two."""
    size = x.shape[-1]
    width = 1
    while width < size:
        pairs = x.unflatten(-1, (-1, 2, width))
        x = torch.stack((pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]), -2).flatten(-3)
        width *= 2
    return x / math.sqrt(size)


def _share(ratio: float, count: int) -> int:
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio} of measurements to numbers must be above 0 and at most 1.")
    return max(1, round(ratio * count))
