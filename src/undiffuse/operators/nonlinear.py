"""Nonlinear operators that act across pixels: phase retrieval and a blur by a fixed network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import Operator, Shape, image_shape
from undiffuse.operators.blur import gaussian_line


class PhaseRetrieval(Operator):
    """y = |FFT(pad(x))|: the magnitude of an orthonormal Fourier transform of the picture with a margin of zeros.

    The sign of x, a rotation by 180 degrees and shifts into the margin cannot be told from y.

    Args:
        in_shape: (..., H, W).
        oversampling: The margin on each side is oversampling / 8 of the picture's side.
    """

    kind = "phase-retrieval"

    def __init__(self, in_shape: Shape, oversampling: float = 2.0) -> None:
        lead, height, width = image_shape(in_shape, "phase retrieval")
        if oversampling < 0:
            raise ValueError(f"oversampling={oversampling} must be at least 0.")
        self._margin = (int(oversampling / 8 * height), int(oversampling / 8 * width))
        out = (*lead, height + 2 * self._margin[0], width + 2 * self._margin[1])
        super().__init__(in_shape, out, settings={"oversampling": float(oversampling)})

    def apply(self, x: Tensor) -> Tensor:
        rows, columns = self._margin
        return torch.fft.fft2(functional.pad(x, (columns, columns, rows, rows)), norm="ortho").abs()

    def guess(self, y: Tensor) -> Tensor:
        """Return the magnitude of the inverse transform, cropped: a start, not an inverse."""
        rows, columns = self._margin
        height, width = self.in_shape[-2:]
        return torch.fft.ifft2(
            y.to(torch.complex64 if y.dtype != torch.float64 else torch.complex128), norm="ortho"
        ).abs()[..., rows : rows + height, columns : columns + width]


class NetworkBlur(Operator):
    """A nonlinear blur: y = sum_j w_j(x) (k_j * x), a choice among blurs that a fixed small network makes per pixel.

    The kernels are anisotropic and the choice depends on the picture's own brightness, as a camera's saturating
    response does; all is drawn from `seed` at construction and kept.

    Args:
        in_shape: (C, H, W).
        kernels: (J, size, size), each of sum 1.
        gate: (J, 3, 3), the filters of the network.
    """

    kind = "network-blur"

    def __init__(self, in_shape: Shape, kernels: Tensor, gate: Tensor) -> None:
        image_shape(in_shape, "a nonlinear blur")
        super().__init__(in_shape, in_shape, tensors={"kernels": kernels.double(), "gate": gate.double()})

    def apply(self, x: Tensor) -> Tensor:
        kernels, gate = self._get("kernels", x), self._get("gate", x)
        flat = x.reshape(-1, 1, *x.shape[-2:])
        margin = kernels.shape[-1] // 2
        blurred = functional.conv2d(functional.pad(flat, [margin] * 4, mode="replicate"), kernels[:, None])
        choice = functional.conv2d(functional.pad(flat.tanh(), [1] * 4, mode="replicate"), gate[:, None]).softmax(1)
        return (choice * blurred).sum(1).view_as(x)

    def guess(self, y: Tensor) -> Tensor:
        """Return y."""
        return y

    def label(self) -> str:
        """Return its kind and kernels."""
        kernels = self._tensors["kernels"]
        return f"nonlinear-blur({kernels.shape[0]} kernels of {kernels.shape[-1]} taps)"


def phase_retrieval(shape: Shape, *, oversampling: float = 2.0, seed: int = 0) -> PhaseRetrieval:
    """Return the magnitude of the Fourier transform of the padded picture."""
    return PhaseRetrieval(shape, oversampling)


def network_blur(shape: Shape, *, sigma: float = 2.0, kernels: int = 4, seed: int = 0) -> NetworkBlur:
    """Return a nonlinear blur of about `sigma` pixels with a number of kernels, drawn by `seed`."""
    _, height, width = image_shape(shape, "a nonlinear blur")
    if sigma <= 0 or kernels < 1:
        raise ValueError(f"sigma={sigma} must be above 0 and kernels={kernels} at least 1.")
    size = min(2 * int(3 * sigma) + 1, 2 * ((min(height, width) - 1) // 2) + 1)
    noise = KeyedNoise(seed, range(kernels))
    widths = sigma * (0.25 + 0.75 * noise.uniform("operator", 0, (2,)))
    lines = [[gaussian_line(float(width), size) for width in row] for row in widths]
    made = torch.stack([rows[:, None] * columns for rows, columns in lines])
    return NetworkBlur(shape, made, 2 * noise.normal("operator", 1, (3, 3), torch.float64))
