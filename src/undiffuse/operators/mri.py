"""Magnetic resonance imaging: y_c = M F (S_c x), with coil sensitivities S_c, the centred FFT F and a mask M.

Complex numbers are stored as two real channels (real, imaginary), in x, (2, H, W), and in y, (coils, 2, H, W); so
everything else (noise, adjoints, solvers) stays real. A prior on real pictures takes x as (1, H, W): its imaginary part
is 0, and what phase the picture has belongs into the sensitivities (`with_phase`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from undiffuse.operators import kspace_masks
from undiffuse.operators.base import LinearOperator, Operator, Shape, SVDOperator, image_shape
from undiffuse.operators.diagonal import _check_weights

MASKS = ("random", "equispaced", "gaussian1d", "gaussian2d", "radial", "spiral", "poisson_disc")


class MRI(LinearOperator):
    """Multi-coil MRI.

    Args:
        in_shape: (2, H, W), or (1, H, W) for real pictures.
        mask: 0 or 1, (H, W), or (B, 1, 1, H, W) with a mask per item.
        coils: Complex sensitivities (coils, H, W), or (B, coils, H, W); one uniform coil by default.

    Raises:
        ValueError: Shapes do not fit.
    """

    kind = "mri"

    def __init__(self, in_shape: Shape, mask: Tensor, coils: Tensor | None = None) -> None:
        height, width = _check(in_shape, mask)
        maps = torch.ones(1, height, width, dtype=torch.complex128) if coils is None else coils.to(torch.complex128)
        if maps.ndim not in (3, 4) or maps.shape[-2:] != (height, width):
            raise ValueError(
                f"coil maps of shape {tuple(maps.shape)} do not fit; give complex (coils, {height}, {width})."
            )
        batched = (("mask",) if mask.ndim == 5 else ()) + (("coils",) if maps.ndim == 4 else ())
        super().__init__(
            in_shape,
            (maps.shape[-3], 2, height, width),
            tensors={"mask": mask.double(), "coils": maps},
            batched=batched,
        )

    @property
    def mask(self) -> Tensor:
        """The mask of k-space, float64."""
        return self._tensors["mask"]

    def apply(self, x: Tensor) -> Tensor:
        picture = torch.complex(x[:, 0], x[:, 1] if x.shape[1] == 2 else torch.zeros_like(x[:, 0]))
        kspace = fourier(self._get("coils", x) * picture[:, None])
        return self._get("mask", x) * torch.stack((kspace.real, kspace.imag), 2)

    def each_coil(self) -> EachCoil:
        """Return M F on the pictures of all coils, each by itself."""
        return EachCoil(self.out_shape, self.mask)

    def split(self, x: Tensor) -> Tensor:
        """Return what each coil sees, S_c x: (B, coils, 2, H, W) for x (B, 2, H, W)."""
        seen = self._get("coils", x) * torch.complex(x[:, 0], x[:, 1])[:, None]
        return torch.stack((seen.real, seen.imag), 2)

    def combined(self, pictures: Tensor) -> Tensor:
        """Return sum_c conj(S_c) x_c: (B, 2, H, W) for pictures x_c (B, coils, 2, H, W)."""
        picture = (self._get("coils", pictures).conj() * torch.complex(pictures[:, :, 0], pictures[:, :, 1])).sum(1)
        return torch.stack((picture.real, picture.imag), 1)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        y = self._get("mask", y) * y
        pictures = inverse_fourier(torch.complex(y[:, :, 0], y[:, :, 1]))
        picture = (self._get("coils", y).conj() * pictures).sum(1)
        return torch.stack((picture.real, picture.imag), 1)[:, : self.in_shape[0]]

    def known(self, like: Tensor) -> Tensor:
        """Return the points of k-space that are sampled."""
        return self._get("mask", like) > 0

    def label(self) -> str:
        """Return its coils and the share of k-space."""
        return f"mri({self.out_shape[0]} coils, {float(self.mask.mean()):.0%} of k-space)"


class EachCoil(LinearOperator):
    """y_c = M F x_c for the pictures x_c of all coils, which then have nothing to do with each other.

    Args:
        in_shape: (coils, 2, H, W).
        mask: 0 or 1, (H, W), or (B, 1, 1, H, W) with a mask per item.
    """

    def __init__(self, in_shape: Shape, mask: Tensor) -> None:
        super().__init__(in_shape, in_shape, tensors={"mask": mask}, batched=("mask",) if mask.ndim == 5 else ())

    def apply(self, x: Tensor) -> Tensor:
        kspace = fourier(torch.complex(x[:, :, 0], x[:, :, 1]))
        return self._get("mask", x) * torch.stack((kspace.real, kspace.imag), 2)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        y = self._get("mask", y) * y
        pictures = inverse_fourier(torch.complex(y[:, :, 0], y[:, :, 1]))
        return torch.stack((pictures.real, pictures.imag), 2)


class SingleCoilMRI(SVDOperator):
    """MRI with one uniform coil: y = M F x, whose singular values are the mask. Shapes as for `MRI`, with one coil."""

    kind = "single-coil-mri"

    def __init__(self, in_shape: Shape, mask: Tensor) -> None:
        height, width = _check(in_shape, mask)
        if in_shape[0] != 2:
            raise ValueError("the decomposition is that of complex pictures (2, H, W); use MRI for real ones.")
        super().__init__(
            in_shape,
            (1, 2, height, width),
            tensors={"mask": mask.double()},
            batched=("mask",) if mask.ndim == 5 else (),
        )

    @property
    def mask(self) -> Tensor:
        """The mask of k-space, float64."""
        return self._tensors["mask"]

    def Vt(self, x: Tensor) -> Tensor:
        kspace = fourier(torch.complex(x[:, 0], x[:, 1]))
        return torch.stack((kspace.real, kspace.imag), 1)[:, None]

    def each_coil(self) -> EachCoil:
        """Return itself as an operator on the picture of one coil among others."""
        return EachCoil(self.out_shape, self.mask)

    def split(self, x: Tensor) -> Tensor:
        """Return what its coil sees: (B, 1, 2, H, W) for x (B, 2, H, W)."""
        return x[:, None]

    def combined(self, pictures: Tensor) -> Tensor:
        """Return the picture (B, 2, H, W) of its only coil."""
        return pictures[:, 0]

    def V(self, z: Tensor) -> Tensor:
        picture = inverse_fourier(torch.complex(z[:, 0, 0], z[:, 0, 1]))
        return torch.stack((picture.real, picture.imag), 1)

    def Ut(self, y: Tensor) -> Tensor:
        return self._get("mask", y) * y

    def U(self, z: Tensor) -> Tensor:
        return self.Ut(z)

    def singulars(self, like: Tensor | None = None) -> Tensor:
        mask = self.mask if like is None else self._get("mask", like)
        return mask if mask.ndim == 5 else mask.view(1, 1, 1, *mask.shape)

    def known(self, like: Tensor) -> Tensor:
        """Return the points of k-space that are sampled."""
        return self._get("mask", like) > 0

    def label(self) -> str:
        """Return the share of k-space."""
        return f"mri(1 coil, {float(self.mask.mean()):.0%} of k-space)"


def mri_scan(
    shape: Shape,
    *,
    pattern: str = "random",
    acceleration: float = 4.0,
    centre: float = 0.08,
    coils: int | Tensor = 1,
    spokes: int = 16,
    turns: float = 8.0,
    mask: Tensor | None = None,
    seed: int = 0,
    items: Sequence[int] | None = None,
) -> Operator:
    """Return an MR scan with a mask of `MASKS` (or a given one), and a number of simulated coils or given maps.

    Args:
        pattern: Which points are measured.
        acceleration: Points in all to points measured, for the patterns that take it.
        centre: Share of the axis around the centre that is measured in full.
        coils: Number of simulated coils, or complex maps (coils, H, W).
        spokes: Of "radial".
        turns: Of "spiral".
        mask: 0 or 1, (H, W), instead of a pattern.
        seed: Of random patterns.
        items: Numbers of the items, for a mask of each.
    """
    _, height, width = image_shape(shape, "mri")
    if mask is None:
        drawn = [_pattern(pattern, height, width, acceleration, centre, spokes, turns, seed, i) for i in items or [0]]
        mask = torch.stack(drawn)[:, None, None] if items is not None else drawn[0]
    if isinstance(coils, int) and coils < 1:
        raise ValueError(f"coils={coils} of mri must be at least 1.")
    if isinstance(coils, Tensor):
        return MRI(shape, mask, coils)
    if coils == 1 and shape[0] == 2:
        return SingleCoilMRI(shape, mask)
    return MRI(shape, mask, simulate_coils(coils, height, width) if coils > 1 else None)


def fourier(picture: Tensor) -> Tensor:
    """Return the orthonormal FFT over the last two axes, with the zero frequency in the middle."""
    shifted = torch.fft.ifftshift(picture, dim=(-2, -1))
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=(-2, -1))


def inverse_fourier(kspace: Tensor) -> Tensor:
    """Undo `fourier`."""
    shifted = torch.fft.ifftshift(kspace, dim=(-2, -1))
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=(-2, -1))


def simulate_coils(coils: int, height: int, width: int) -> Tensor:
    """Return sensitivities of `coils` coils around the picture: Gaussian lobes with a phase that turns away from each.

    Returns:
        complex128 (coils, H, W) with sum_c |S_c|^2 = 1 everywhere.
    """
    rows = ((torch.arange(height) + 0.5) / height - 0.5).double()[:, None]
    columns = ((torch.arange(width) + 0.5) / width - 0.5).double()
    angles = 2 * math.pi * torch.arange(coils).double()[:, None, None] / coils
    distance = (rows - 0.6 * angles.sin()) ** 2 + (columns - 0.6 * angles.cos()) ** 2
    phase = math.pi * (rows * angles.cos() - columns * angles.sin()) + angles
    maps = torch.polar((-distance / (2 * 0.4**2)).exp(), phase)
    return maps / maps.abs().square().sum(0).sqrt()


def estimate_coils(kspace: Tensor, centre: int = 24) -> Tensor:
    """Return sensitivities from the centre of k-space: each coil's low-resolution picture over the norm of all.

    Args:
        kspace: (B, coils, 2, H, W).
        centre: Side of the square that was measured, in points; a Hann window is laid over it.

    Returns:
        complex (B, coils, H, W) with sum_c |S_c|^2 = 1.

    Raises:
        ValueError: The centre was not measured in full.
    """
    low = _low_resolution(kspace, centre)
    return low / low.abs().square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)


def with_phase(coils: Tensor, kspace: Tensor, centre: int = 24) -> Tensor:
    """Return sensitivities that carry the phase of the low-resolution picture, so that x may be real.

    Args:
        coils: complex (coils, H, W) or (B, coils, H, W).
        kspace: (B, coils, 2, H, W) with a fully measured centre of `centre` points.

    Raises:
        ValueError: The centre was not measured in full.
    """
    picture = (coils.conj() * _low_resolution(kspace, centre)).sum(1)
    return coils * torch.polar(torch.ones_like(picture.abs()), picture.angle())[:, None]


def _low_resolution(kspace: Tensor, centre: int) -> Tensor:
    """Return each coil's picture (B, coils, H, W) from the centre of k-space, complex."""
    height, width = kspace.shape[-2:]
    window = torch.outer(_window(height, min(centre, height)), _window(width, min(centre, width))).to(kspace)
    missing = int(((kspace == 0).all(2).all(1).any(0) & (window > 0)).sum())
    if missing:
        raise ValueError(
            f"k-space is 0 at {missing} of the {int((window > 0).sum())} points of its centre, so the mask did not "
            f"measure them; give a smaller centre than {centre}, or coil maps."
        )
    return inverse_fourier(torch.complex(kspace[:, :, 0] * window, kspace[:, :, 1] * window))


def _window(size: int, inner: int) -> Tensor:
    window = torch.zeros(size, dtype=torch.float64)
    first = size // 2 - inner // 2
    window[first : first + inner] = torch.hann_window(inner + 2, periodic=False, dtype=torch.float64)[1:-1]
    return window


def _pattern(
    pattern: str,
    height: int,
    width: int,
    acceleration: float,
    centre: float,
    spokes: int,
    turns: float,
    seed: int,
    item: int,
) -> Tensor:
    if pattern in kspace_masks.CARTESIAN:
        options = {"acceleration": acceleration, "centre": centre, "seed": seed, "item": item}
        return kspace_masks.cartesian(height, width, pattern=pattern, **options)  # type: ignore[arg-type]
    if pattern == "gaussian2d":
        return kspace_masks.gaussian2d(height, width, acceleration=acceleration, centre=centre, seed=seed, item=item)
    if pattern == "poisson_disc":
        return kspace_masks.poisson_disc(height, width, acceleration=acceleration, centre=centre, seed=seed, item=item)
    if pattern == "radial":
        return kspace_masks.radial(height, width, spokes=spokes)
    if pattern == "spiral":
        return kspace_masks.spiral(height, width, turns=turns)
    raise ValueError(f"pattern={pattern!r} of mri is unknown; choose {', '.join(MASKS)}.")


def _check(in_shape: Shape, mask: Tensor) -> tuple[int, int]:
    lead, height, width = image_shape(in_shape, "mri")
    if lead not in ((1,), (2,)):
        raise ValueError(
            f"mri works on (2, H, W), real and imaginary part, or on real pictures (1, H, W); got {tuple(in_shape)}."
        )
    if mask.shape[-2:] != (height, width) or mask.ndim not in (2, 5):
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit k-space; give ({height}, {width}).")
    _check_weights(mask.double(), (1, 1, height, width), "mask")
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("the mask of k-space has values that are neither 0 nor 1; threshold it.")
    return height, width
