"""Measurements as pictures to look at; what is exact is the measurement itself."""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.operators.base import Operator
from undiffuse.operators.compose import Chain, LinearChain, LinearStack, Stack, split


def pictures_of(operator: Operator, y: Tensor) -> list[Tensor]:
    """Return one measurement as pictures (1 or 3, H, W) in [-1, 1]: one per part of a stack, none where it is flat.

    Pictures stay as they are, clipped. k-space and Fourier magnitudes are shown by their logarithm, a sinogram from its
    least to its largest value.

    Args:
        operator: What measured it.
        y: operator.out_shape, without a batch.
    """
    if isinstance(operator, Stack | LinearStack):
        pieces = split(operator, y[None])
        return [
            found for part, piece in zip(operator.parts, pieces, strict=True) for found in pictures_of(part, piece[0])
        ]
    last = operator.parts[-1] if isinstance(operator, Chain | LinearChain) else operator
    y = y.detach().cpu().double()
    if last.kind in ("mri", "single-coil-mri"):
        magnitude = y.square().sum((0, 1)).sqrt()[None]
        return [_stretch((magnitude + 1e-3 * magnitude.max()).log())]
    if y.ndim != 3:
        return []
    if last.kind == "phase-retrieval":
        magnitude = torch.fft.fftshift(y.mean(0, keepdim=True), dim=(-2, -1))
        return [_stretch((magnitude + 1e-3 * magnitude.max()).log())]
    if last.kind == "radon":
        return [_stretch(y.mean(0, keepdim=True))]
    return [y.clamp(-1, 1) if y.shape[0] in (1, 3) else y.mean(0, keepdim=True).clamp(-1, 1)]


def _stretch(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return 2 * (values - low) / torch.where(high > low, high - low, 1.0) - 1
