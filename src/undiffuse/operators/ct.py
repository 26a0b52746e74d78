"""Computed tomography: line integrals along parallel rays (the Radon transform), and filtered back-projection."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.operators.base import LinearOperator, Shape

_AT_ONCE = 1 << 22  # numbers of rotated pictures held at a time


class Radon(LinearOperator):
    """Sums of a square picture along rays at a number of angles; y is (C, angles, W).

    The picture is turned by bilinear sampling and its rows are summed, times the size of a pixel. The adjoint is the
    exact transpose of that. What lies outside the inscribed circle turns out of view at some angles.

    Args:
        in_shape: (C, W, W).
        angles: In degrees, (A,).
        pixel: Side of a pixel, the unit of length of the line integrals.

    Raises:
        ValueError: The picture is not square, or there are no angles.
    """

    kind = "radon"

    def __init__(self, in_shape: Shape, angles: Tensor, pixel: float = 1.0) -> None:
        if len(in_shape) != 3 or in_shape[1] != in_shape[2]:
            raise ValueError(f"ct works on square pictures (C, W, W); got {tuple(in_shape)}. Crop or pad it.")
        if angles.ndim != 1 or len(angles) < 1 or pixel <= 0:
            raise ValueError(
                f"ct needs angles (A,) in degrees and a pixel above 0; got {tuple(angles.shape)}, {pixel}."
            )
        super().__init__(
            in_shape,
            (in_shape[0], len(angles), in_shape[2]),
            settings={"pixel": float(pixel)},
            tensors={"angles": angles.double()},
        )
        self.pixel = pixel

    def apply(self, x: Tensor) -> Tensor:
        size = self.in_shape[-1]
        radians = torch.deg2rad(self._get("angles", x))
        zero = torch.zeros_like(radians)
        turns = torch.stack(
            (
                torch.stack((radians.cos(), -radians.sin(), zero), 1),
                torch.stack((radians.sin(), radians.cos(), zero), 1),
            ),
            1,
        )  # (A, 2, 3)
        pictures = x.flatten(0, 1)[None]  # angles take the axis of the batch, pictures that of the channels
        some = max(1, _AT_ONCE // max(1, pictures.numel()))
        sums = []
        for part in turns.split(some):
            grid = functional.affine_grid(part, [len(part), 1, size, size], align_corners=False)
            turned = functional.grid_sample(
                pictures.expand(len(part), -1, -1, -1), grid, padding_mode="zeros", align_corners=False
            )
            sums.append(turned.sum(-2))
        sinogram = torch.cat(sums)  # (A, B * C, W)
        return self.pixel * sinogram.transpose(0, 1).unflatten(0, x.shape[:2])

    def pinv(self, y: Tensor, *, iterations: int = 50, tol: float = 1e-6) -> Tensor:
        """Return the filtered back-projection of y: an approximate inverse, quick and exact in level.

        The ramp filter is Ram-Lak's in space (1/4 at 0, -1/(pi k)^2 at odd k): sampling |f| in frequency instead would
        bias the level by some per cent. `least_squares` solves the system.

        Source: Kak and Slaney 1988, "Principles of Computerized Tomographic Imaging", section 3.3.
        """
        self._check(y, self.out_shape, "y")
        kernel = ram_lak(self.in_shape[-1]).to(y)
        length = 2 ** math.ceil(math.log2(2 * y.shape[-1] + len(kernel)))
        filtered = torch.fft.irfft(torch.fft.rfft(y, length) * torch.fft.rfft(kernel, length), length)
        filtered = filtered[..., len(kernel) // 2 : len(kernel) // 2 + y.shape[-1]]
        # Back-projection sums over angles with the angle between them as weight, in lengths of a pixel.
        weight = self._spacing() / self.pixel**2
        return weight * self.apply_adjoint(filtered)

    def least_squares(self, y: Tensor, *, iterations: int = 50, tol: float = 1e-6) -> Tensor:
        """Return the x of least norm among those that fit y best, by conjugate gradients."""
        return super().pinv(y, iterations=iterations, tol=tol)

    def _spacing(self) -> float:
        angles = self._tensors["angles"].sort().values
        return math.radians(float((angles[1:] - angles[:-1]).mean())) if len(angles) > 1 else math.pi

    def label(self) -> str:
        """Return its angles."""
        angles = self._tensors["angles"]
        return f"ct({len(angles)} angles, {float(angles.min()):.3g} to {float(angles.max()):.3g} degrees)"


def ct_scan(shape: Shape, *, angles: int = 60, limit: float = 180.0, pixel: float = 0.0, seed: int = 0) -> Radon:
    """Return a scan at `angles` even angles from 0 to below `limit` degrees.

    Few angles of 180 degrees are a sparse view, a limit of 90 or 120 is a limited angle.

    Args:
        angles: Their number.
        limit: Degrees.
        pixel: Side of a pixel; 0 for 1 / W, so that a ray through a picture of ones gives about 1.
    """
    if angles < 1 or not 0 < limit <= 180:
        raise ValueError(f"angles={angles} of ct must be at least 1 and limit={limit} above 0 and at most 180 degrees.")
    if pixel < 0:
        raise ValueError(f"pixel={pixel} of ct must be above 0, or 0 for 1 / W.")
    return Radon(shape, limit * torch.arange(angles).double() / angles, pixel or 1 / shape[-1])


def ram_lak(size: int) -> Tensor:
    """Return the ramp filter in space for `size` detectors, float64 (2 size - 1,), its middle at size - 1."""
    at = torch.arange(-(size - 1), size)
    odd = at % 2 != 0
    kernel = torch.where(odd, -1 / (math.pi * torch.where(odd, at, 1).double()) ** 2, 0.0)
    kernel[size - 1] = 0.25
    return kernel


def low_dose(line_integrals: Tensor, counts: Tensor, photons: float) -> Tensor:
    """Return noisy line integrals -log(counts / photons), at least one photon counted.

    Args:
        line_integrals: Clean ones, at least 0, in natural units.
        counts: Poisson draws with mean photons * exp(-line_integrals), shaped alike.
        photons: Photons per ray without an object.
    """
    return -(counts.clamp_min(1) / photons).log().to(line_integrals.dtype)
