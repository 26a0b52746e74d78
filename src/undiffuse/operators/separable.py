"""Operators that act on rows and columns one after the other: y = R X C^T for every channel.

The singular value decomposition is that of the two small matrices, so it is exact and cheap for any picture up to a
few thousand pixels across.
"""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.operators.base import Shape, SVDOperator, image_shape


class Separable(SVDOperator):
    """y = R X C^T over the last two axes.

    Args:
        in_shape: (..., H, W).
        rows_matrix: R, (H', H).
        columns_matrix: C, (W', W).
        settings: What a subclass was built with.
        saved: Whether the matrices are saved; a subclass that can make them again says no.
        cutoff: Relative cut-off of the pseudo-inverse.
    """

    kind = "separable"

    def __init__(
        self,
        in_shape: Shape,
        rows_matrix: Tensor,
        columns_matrix: Tensor,
        *,
        settings: dict[str, object] | None = None,
        saved: bool = True,
        cutoff: float = 0.0,
    ) -> None:
        lead, height, width = image_shape(in_shape, f"the operator {self.kind}")
        given = {"rows_matrix": rows_matrix.double(), "columns_matrix": columns_matrix.double()}
        for name, matrix, size in (("rows_matrix", rows_matrix, height), ("columns_matrix", columns_matrix, width)):
            if matrix.ndim != 2 or matrix.shape[1] != size:
                raise ValueError(f"{name} has shape {tuple(matrix.shape)}; (any, {size}) fits items of {in_shape}.")
        factors = {**_factors("r", given["rows_matrix"]), **_factors("c", given["columns_matrix"])}
        factors["s"] = factors.pop("r_s")[:, None] * factors.pop("c_s")
        super().__init__(
            in_shape,
            (*lead, rows_matrix.shape[0], columns_matrix.shape[0]),
            settings=settings if settings is not None else {"cutoff": cutoff},
            tensors=given if saved else {},
            derived=factors if saved else {**given, **factors},
        )
        self.cutoff = cutoff

    def apply(self, x: Tensor) -> Tensor:
        return self._get("rows_matrix", x) @ x @ self._get("columns_matrix", x).mT

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return self._get("rows_matrix", y).mT @ y @ self._get("columns_matrix", y)

    def Vt(self, x: Tensor) -> Tensor:
        return self._get("r_v", x).mT @ x @ self._get("c_v", x)

    def V(self, z: Tensor) -> Tensor:
        return self._get("r_v", z) @ z @ self._get("c_v", z).mT

    def Ut(self, y: Tensor) -> Tensor:
        return self._get("r_u", y).mT @ y @ self._get("c_u", y)

    def U(self, z: Tensor) -> Tensor:
        return self._get("r_u", z) @ z @ self._get("c_u", z).mT

    def singulars(self, like: Tensor | None = None) -> Tensor:
        s = self._tensors["s"] if like is None else self._get("s", like)
        return s.view(*[1] * (len(self.in_shape) - 1), *s.shape)


class Downsample(Separable):
    """Make a picture `factor` times smaller.

    "average" is the mean over cells of factor x factor pixels, whose pseudo-inverse repeats each pixel. "bicubic" is
    Keys' kernel (a = -1/2) stretched by the factor, folded at the edges; in the interior it equals torch's antialiased
    bicubic interpolation.

    Raises:
        ValueError: The factor does not divide the size, or the method is unknown.

    Source: Keys 1981, "Cubic convolution interpolation for digital image processing".
    """

    kind = "downsample"

    def __init__(self, in_shape: Shape, factor: int, method: str = "average") -> None:
        _, height, width = image_shape(in_shape, "downsample")
        if factor < 1 or height % factor or width % factor:
            raise ValueError(
                f"downsample by {factor} does not divide {height} x {width}; choose one that divides both, or crop."
            )
        if method not in ("average", "bicubic"):
            raise ValueError(f"downsample method {method!r} is unknown; choose average or bicubic.")
        make = average_matrix if method == "average" else bicubic_matrix
        self.factor = factor
        super().__init__(
            in_shape,
            make(height, factor),
            make(width, factor),
            settings={"factor": factor, "method": method},
            saved=False,
        )


def average_matrix(size: int, factor: int) -> Tensor:
    """Return the (size / factor, size) matrix that takes means of `factor` neighbours, float64."""
    return torch.kron(
        torch.eye(size // factor, dtype=torch.float64), torch.full((1, factor), 1 / factor, dtype=torch.float64)
    )


def bicubic_matrix(size: int, factor: int) -> Tensor:
    """Return the (size / factor, size) matrix of bicubic reduction, float64: rows sum to 1, edges fold (-1 -> 0)."""
    matrix = torch.zeros(size // factor, size, dtype=torch.float64)
    for row in range(size // factor):
        centre = (row + 0.5) * factor - 0.5
        first = int(centre - 2 * factor)
        taps = torch.arange(first, first + 4 * factor + 2)
        weights = cubic_kernel((taps - centre).double() / factor)
        matrix[row].index_add_(0, fold(taps, size), weights / weights.sum())
    return matrix


def cubic_kernel(u: Tensor) -> Tensor:
    """Return Keys' interpolation kernel with a = -1/2 at distances u."""
    u = u.abs()
    near = 1.5 * u**3 - 2.5 * u**2 + 1
    far = -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    return torch.where(u <= 1, near, torch.where(u < 2, far, 0.0))


def fold(index: Tensor, size: int) -> Tensor:
    """Return indices folded at the edges so that the edge pixel is repeated: -1 -> 0, size -> size - 1."""
    index = index % (2 * size)
    return torch.where(index < size, index, 2 * size - 1 - index)


def _factors(prefix: str, matrix: Tensor) -> dict[str, Tensor]:
    """Return the factors of a (m, n) matrix with n coefficients: u (m, n) and s (n,) filled with zeros, v (n, n)."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=True)
    rank = int((s > s.max() * 1e-12).sum())
    full_u, full_s = matrix.new_zeros(matrix.shape), matrix.new_zeros(matrix.shape[1])
    full_u[:, :rank], full_s[:rank] = u[:, :rank], s[:rank]
    return {f"{prefix}_u": full_u, f"{prefix}_s": full_s, f"{prefix}_v": vt.mT.contiguous()}
