"""Operators that mix the channels of a picture, pixel by pixel: grey from colour, spectral responses."""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.operators.base import LinearOperator, Shape, SVDOperator, double
from undiffuse.operators.blur import gaussian_blur
from undiffuse.operators.compose import LinearStack, chain
from undiffuse.operators.separable import Downsample

WEIGHTS = {"mean": (1 / 3, 1 / 3, 1 / 3), "luma": (0.299, 0.587, 0.114)}


class ChannelMix(SVDOperator):
    """y_m = sum_c W_mc x_c at every pixel.

    Args:
        in_shape: (C, *).
        matrix: W, (M, C).

    Raises:
        ValueError: The matrix does not fit the channels.
    """

    kind = "channel-mix"

    def __init__(self, in_shape: Shape, matrix: Tensor) -> None:
        matrix = double(matrix)
        if matrix.ndim != 2 or matrix.shape[1] != in_shape[0]:
            raise ValueError(
                f"weights of shape {tuple(matrix.shape)} do not fit {in_shape[0]} channels; give (M, {in_shape[0]})."
            )
        u, s, vt = torch.linalg.svd(matrix, full_matrices=True)
        rank = int((s > s.max() * 1e-12).sum())
        full_u, full_s = matrix.new_zeros(matrix.shape), matrix.new_zeros(matrix.shape[1])
        full_u[:, :rank], full_s[:rank] = u[:, :rank], s[:rank]
        super().__init__(
            in_shape,
            (matrix.shape[0], *in_shape[1:]),
            tensors={"matrix": matrix},
            derived={"u": full_u, "s": full_s, "vt": vt},
        )

    def apply(self, x: Tensor) -> Tensor:
        return _mix(self._get("matrix", x), x)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return _mix(self._get("matrix", y).mT, y)

    def Vt(self, x: Tensor) -> Tensor:
        return _mix(self._get("vt", x), x)

    def V(self, z: Tensor) -> Tensor:
        return _mix(self._get("vt", z).mT, z)

    def Ut(self, y: Tensor) -> Tensor:
        return _mix(self._get("u", y).mT, y)

    def U(self, z: Tensor) -> Tensor:
        return _mix(self._get("u", z), z)

    def singulars(self, like: Tensor | None = None) -> Tensor:
        s = self._tensors["s"] if like is None else self._get("s", like)
        return s.view(1, -1, *[1] * (len(self.in_shape) - 1))

    def label(self) -> str:
        """Return its kind and channels."""
        return f"channel-mix({self.in_shape[0]} to {self.out_shape[0]} channels)"


def colourise(shape: Shape, *, weights: str = "luma", seed: int = 0) -> ChannelMix:
    """Return grey = weights . RGB, whose inverse is to colourise; "luma" (0.299, 0.587, 0.114) or "mean"."""
    if shape[0] != 3:
        raise ValueError(f"colourise works on RGB pictures (3, H, W); an item has shape {tuple(shape)}.")
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r} of colourise is unknown; choose {' or '.join(WEIGHTS)}.")
    return ChannelMix(shape, torch.tensor([WEIGHTS[weights]], dtype=torch.float64))


def pansharpen(shape: Shape, *, factor: int = 4, sigma: float = 0.0, seed: int = 0) -> LinearStack:
    """Return the two cameras of pansharpening: one sharp mean over the channels, and all channels blurred and small.

    Args:
        factor: How many times smaller the coloured picture is.
        sigma: Its blur in pixels; 0 for half the factor.
    """
    sharp = ChannelMix(shape, torch.full((1, shape[0]), 1 / shape[0], dtype=torch.float64))
    taps = 2 * min(int(3 * (sigma or factor / 2)) + 1, (min(shape[-2:]) - 1) // 2) + 1
    coloured = chain(gaussian_blur(shape, sigma=sigma or factor / 2, size=taps), Downsample(shape, factor))
    assert isinstance(coloured, LinearOperator)
    return LinearStack(sharp, coloured)


def _mix(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("mc,bc...->bm...", matrix, x)
