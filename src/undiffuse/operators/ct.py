"""Computed tomography: line integrals along parallel rays (the Radon transform), and filtered back-projection."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.operators.base import LinearOperator, Operator, Shape

_AT_ONCE = 1 << 22  # numbers of rotated pictures held at a time
_SUSPICIOUS = 7.0  # degrees: so few that several angles are radians, up to a full turn of 6.28
WINDOWS = ("ramp", "hann")


class Radon(LinearOperator):
    """Sums of a square picture along rays at a number of angles; y is (C, angles, W).

    The picture is turned by bilinear sampling and its rows are summed, times the size of a pixel. The adjoint is the
    exact transpose of that. What lies outside the inscribed circle turns out of view at some angles.

    Args:
        in_shape: (C, W, W).
        angles: In degrees, (A,), between -360 and 360.
        pixel: Side of a pixel, the unit of length of the line integrals.
        window: Of the filter of back-projection: "ramp" is none, "hann" takes the noise of high frequencies away.

    Raises:
        ValueError: The picture is not square, there are no angles, one is beyond a full turn, or the window is unknown.
    """

    kind = "radon"

    def __init__(self, in_shape: Shape, angles: Tensor, pixel: float = 1.0, window: str = "ramp") -> None:
        if len(in_shape) != 3 or in_shape[1] != in_shape[2]:
            raise ValueError(f"ct works on square pictures (C, W, W); got {tuple(in_shape)}. Crop or pad it.")
        if angles.ndim != 1 or len(angles) < 1 or pixel <= 0:
            raise ValueError(
                f"ct needs angles (A,) in degrees and a pixel above 0; got {tuple(angles.shape)}, {pixel}."
            )
        _check_degrees(angles)
        if window not in WINDOWS:
            raise ValueError(f"window={window!r} of ct is unknown; choose {' or '.join(WINDOWS)}.")
        super().__init__(
            in_shape,
            (in_shape[0], len(angles), in_shape[2]),
            settings={"pixel": float(pixel), "window": window},
            tensors={"angles": angles.double()},
        )
        self.pixel, self.window = pixel, window

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
        response = torch.fft.rfft(kernel, length)
        if self.window == "hann":
            response = response * (0.5 + 0.5 * torch.linspace(0, math.pi, len(response)).to(y).cos())
        filtered = torch.fft.irfft(torch.fft.rfft(y, length) * response, length)
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


class Transmission(Operator):
    """The share of the photons of each ray that passes the picture, u = exp(-a R((x + 1) / 2)), as y = 2 u - 1.

    With `PoissonNoise(scale=photons)` this is a scan of low dose as it is counted, before any logarithm.

    Args:
        scan: R.
        attenuation: a, of white; black lets all pass.

    Raises:
        ValueError: The attenuation is not positive.
    """

    kind = "transmission"
    has_pinv = True
    parts: tuple[Radon]

    def __init__(self, scan: Radon, attenuation: float = 3.0) -> None:
        if not attenuation > 0:
            raise ValueError(f"attenuation={attenuation} of ct-counts must be above 0.")
        super().__init__(scan.in_shape, scan.out_shape, settings={"attenuation": float(attenuation)}, parts=(scan,))
        self.attenuation = attenuation

    def apply(self, x: Tensor) -> Tensor:
        return 2 * torch.exp(-self.attenuation * self.parts[0]((x + 1) / 2)) - 1

    def pinv(self, y: Tensor) -> Tensor:
        """Return the filtered back-projection of the logarithms; rays without a photon count as a share of 1e-6."""
        integrals = -((y + 1) / 2).clamp(1e-6, 1).log() / self.attenuation
        return 2 * self.parts[0].pinv(integrals) - 1

    def label(self) -> str:
        """Return its scan and attenuation."""
        return f"transmission({self.parts[0].label()}, attenuation {self.attenuation:g})"


def ct_counts(
    shape: Shape, *, angles: int = 60, limit: float = 180.0, attenuation: float = 3.0, seed: int = 0
) -> Transmission:
    """Return the transmission of `ct_scan`; Poisson noise makes it a scan of low dose."""
    return Transmission(ct_scan(shape, angles=angles, limit=limit), attenuation)


def ct_scan(
    shape: Shape, *, angles: int = 60, limit: float = 180.0, pixel: float = 0.0, window: str = "ramp", seed: int = 0
) -> Radon:
    """Return a scan at `angles` even angles from 0 to below `limit` degrees.

    Few angles of 180 degrees are a sparse view, a limit of 90 or 120 is a limited angle.

    Args:
        angles: Their number.
        limit: Degrees.
        pixel: Side of a pixel; 0 for 1 / W, so that a ray through a picture of ones gives about 1.
        window: Of filtered back-projection; see `Radon`.
    """
    if angles < 1 or not 0 < limit <= 180:
        raise ValueError(f"angles={angles} of ct must be at least 1 and limit={limit} above 0 and at most 180 degrees.")
    if pixel < 0:
        raise ValueError(f"pixel={pixel} of ct must be above 0, or 0 for 1 / W.")
    return Radon(shape, limit * torch.arange(angles).double() / angles, pixel or 1 / shape[-1], window)


def _check_degrees(angles: Tensor) -> None:
    """Refuse angles beyond a full turn; warn of some that look like radians."""
    most = float(angles.abs().max())
    if not most <= 360:
        raise ValueError(f"an angle of {most:g} is beyond a full turn; the angles of ct are degrees, up to 360.")
    if len(angles) > 3 and float(angles.max() - angles.min()) < _SUSPICIOUS:
        warnings.warn(
            f"all {len(angles)} angles of ct lie within {float(angles.max() - angles.min()):.3g} degrees; if they are "
            "radians, give torch.rad2deg(angles).",
            stacklevel=3,
        )


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
