"""Blurs: convolution with a kernel, by FFT where the picture wraps around, else with a boundary of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import LinearOperator, Shape, SVDOperator, double, image_shape
from undiffuse.operators.separable import Separable

BOUNDARIES = ("circular", "reflect", "zero", "replicate")
CUTOFF = 3e-2
"""Relative cut-off of a blur's pseudo-inverse: below it, dividing by a singular value only amplifies noise."""


class Blur(SVDOperator):
    """Convolution with a kernel on a picture that wraps around, one kernel for all channels.

    The singular vectors are those of the Hartley transform, which is real and orthogonal: with k^ the FFT of the
    kernel, A = (F^H e^{i arg k^} F) (H |k^| H), and H diagonalises any even spectrum.

    Args:
        in_shape: (..., H, W).
        kernel: (h, w), or (B, h, w) with a kernel per item; its centre is (h // 2, w // 2).
        cutoff: Relative cut-off of the pseudo-inverse.

    Raises:
        ValueError: The kernel is larger than the picture.
    """

    kind = "blur"

    def __init__(self, in_shape: Shape, kernel: Tensor, cutoff: float = CUTOFF) -> None:
        lead, height, width = image_shape(in_shape, "blur")
        kernel = double(kernel)
        check_kernel(kernel, height, width)
        spectrum = kernel_spectrum(kernel, height, width)
        own_rows = kernel.ndim == 3
        if own_rows:
            spectrum = spectrum.view(-1, *[1] * len(lead), *spectrum.shape[-2:])
        size = spectrum.abs()
        size = torch.where(size > 1e-13 * size.detach().max(), size, 0.0)  # the phase of rounding errors is not even
        phase = torch.where(size > 0, spectrum / torch.where(size > 0, size, 1.0), 1.0)
        names = ("kernel", "spectrum", "size", "phase")
        super().__init__(
            in_shape,
            in_shape,
            settings={"cutoff": cutoff},
            tensors={"kernel": kernel},
            derived={"spectrum": spectrum, "size": size, "phase": phase},
            batched=names if own_rows else (),
        )
        self.cutoff = cutoff

    @property
    def kernel(self) -> Tensor:
        """The kernel, float64 unless it carries a gradient."""
        return self._tensors["kernel"]

    def with_kernel(self, kernel: Tensor) -> Blur:
        """Return the blur with another kernel: the A_k of blind restoration, differentiable in the kernel too."""
        return type(self)(self.in_shape, kernel, self.cutoff)

    def of(self, x: Tensor) -> KernelBlur:
        """Return what each kernel of this size (1, h, w) makes of x (B, *in_shape): linear in the kernel."""
        return KernelBlur(x, tuple(self.kernel.shape[-2:]))  # type: ignore[arg-type]

    def apply(self, x: Tensor) -> Tensor:
        return _filter(x, self._get("spectrum", x))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return _filter(y, self._get("spectrum", y).conj())

    def Vt(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x, norm="ortho")
        return spectrum.real - spectrum.imag

    def V(self, z: Tensor) -> Tensor:
        return self.Vt(z)  # the transform is its own inverse

    def Ut(self, y: Tensor) -> Tensor:
        z = self.Vt(_filter(y, self._get("phase", y).conj()))
        return torch.where(self.singulars(y) > 0, z, 0.0)

    def U(self, z: Tensor) -> Tensor:
        z = torch.where(self.singulars(z) > 0, z, 0.0)
        return _filter(self.V(z), self._get("phase", z))

    def singulars(self, like: Tensor | None = None) -> Tensor:
        s = self._tensors["size"] if like is None else self._get("size", like)
        return s if s.ndim == len(self.in_shape) + 1 else s.view(*[1] * (1 + len(self.in_shape) - s.ndim), *s.shape)

    def label(self) -> str:
        """Return its kind and the size of its kernel."""
        return f"blur({self.kernel.shape[-2]} x {self.kernel.shape[-1]} taps, circular)"


class KernelBlur(LinearOperator):
    """k * x as an operator on kernels (1, h, w), for given pictures x that wrap around, one kernel for all channels.

    Args:
        x: (B, ..., H, W).
        size: (h, w) of the kernels, whose centres are (h // 2, w // 2).
    """

    def __init__(self, x: Tensor, size: tuple[int, int]) -> None:
        super().__init__((1, *size), tuple(x.shape[1:]), derived={"spectrum": torch.fft.fft2(x)}, batched=("spectrum",))

    def apply(self, x: Tensor) -> Tensor:
        height, width = self.out_shape[-2:]
        spectrum = kernel_spectrum(x[:, 0], height, width)
        lead = [1] * (len(self.out_shape) - 2)
        return torch.fft.ifft2(self._get("spectrum", x) * spectrum.view(len(x), *lead, height, width)).real

    def apply_adjoint(self, y: Tensor) -> Tensor:
        h, w = self.in_shape[-2:]
        back = torch.fft.ifft2(self._get("spectrum", y).conj() * torch.fft.fft2(y)).real
        flat = back.flatten(1, -3).sum(1, keepdim=True)
        return flat.roll((h // 2, w // 2), dims=(-2, -1))[..., :h, :w]


class SeparableBlur(Separable):
    """Blur by a kernel that is a product of two equal lines, with the picture continued beyond its edges.

    The boundary makes the matrix asymmetric: its adjoint is the transpose, not a blur with the kernel turned round, and
    singular values can exceed 1.

    Args:
        in_shape: (..., H, W).
        line: (n,), n odd.
        boundary: "reflect" (the edge pixel is not repeated), "replicate", "zero" or "circular".

    Raises:
        ValueError: The kernel is larger than the picture, or the boundary is unknown.
    """

    kind = "separable-blur"

    def __init__(self, in_shape: Shape, line: Tensor, boundary: str = "reflect", cutoff: float = CUTOFF) -> None:
        _, height, width = image_shape(in_shape, "blur")
        line = double(line)
        check_kernel(line[:, None] * line, height, width)
        super().__init__(
            in_shape,
            blur_matrix(height, line, boundary),
            blur_matrix(width, line, boundary),
            settings={"boundary": boundary, "cutoff": cutoff},
            saved=False,
            cutoff=cutoff,
        )
        self._saved = ("line",)
        self._tensors["line"] = line

    def label(self) -> str:
        """Return its kind, size and boundary."""
        return f"blur({len(self._tensors['line'])} taps, {self.settings['boundary']})"


class PaddedBlur(LinearOperator):
    """Blur by any kernel, with the picture continued beyond its edges; systems are solved by conjugate gradients."""

    kind = "padded-blur"

    def __init__(self, in_shape: Shape, kernel: Tensor, boundary: str = "reflect") -> None:
        _, height, width = image_shape(in_shape, "blur")
        kernel = double(kernel)
        if kernel.ndim != 2:
            raise ValueError(f"a kernel of shape {tuple(kernel.shape)} with boundary {boundary!r}: give one, (h, w).")
        check_kernel(kernel, height, width)
        rows = boundary_index(height, kernel.shape[0], boundary)
        columns = boundary_index(width, kernel.shape[1], boundary)
        super().__init__(
            in_shape,
            in_shape,
            settings={"boundary": boundary},
            tensors={"kernel": kernel},
            derived={"rows": rows, "columns": columns},
        )

    def apply(self, x: Tensor) -> Tensor:
        rows, columns = self._get("rows", x), self._get("columns", x)
        padded = functional.pad(x, (0, 1, 0, 1))[..., rows, :][..., columns]  # index -1 is the row of zeros
        flat = padded.reshape(-1, 1, *padded.shape[-2:])
        kernel = self._get("kernel", x).flip(0, 1)
        return functional.conv2d(flat, kernel[None, None]).view_as(x)

    def label(self) -> str:
        """Return its kind, size and boundary."""
        kernel = self._tensors["kernel"]
        return f"blur({kernel.shape[0]} x {kernel.shape[1]} taps, {self.settings['boundary']})"


def gaussian_blur(
    shape: Shape, *, sigma: float = 2.0, size: int = 0, boundary: str = "circular", seed: int = 0
) -> Blur | SeparableBlur:
    """Return a Gaussian blur of standard deviation `sigma` pixels; size 0 takes 2 ceil(3 sigma) + 1 taps."""
    if sigma <= 0:
        raise ValueError(f"sigma={sigma} of a Gaussian blur must be above 0 (pixels).")
    return _line_blur(shape, gaussian_line(sigma, size or 2 * math.ceil(3 * sigma) + 1), boundary)


def uniform_blur(shape: Shape, *, size: int = 9, boundary: str = "circular", seed: int = 0) -> Blur | SeparableBlur:
    """Return the mean over size x size pixels, size odd."""
    _odd(size)
    return _line_blur(shape, torch.full((size,), 1 / size, dtype=torch.float64), boundary)


def motion_blur(
    shape: Shape, *, size: int = 61, intensity: float = 0.5, boundary: str = "circular", seed: int = 0
) -> Blur | PaddedBlur:
    """Return a blur along a random path of the camera; the path is a function of `seed`."""
    kernel = motion_kernel(size, intensity, seed)
    return kernel_blur(shape, kernel=kernel, boundary=boundary)


def kernel_blur(shape: Shape, *, kernel: Tensor, boundary: str = "circular", seed: int = 0) -> Blur | PaddedBlur:
    """Return a blur by a given kernel (h, w)."""
    check_boundary(boundary)
    return Blur(shape, kernel) if boundary == "circular" else PaddedBlur(shape, kernel, boundary)


def gaussian_line(sigma: float, size: int) -> Tensor:
    """Return `size` (odd) weights of a Gaussian, which sum to 1, float64."""
    _odd(size)
    at = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-0.5 * (at / sigma) ** 2)
    return line / line.sum()


def motion_kernel(size: int, intensity: float, seed: int) -> Tensor:
    """Return a (size, size) kernel of ones along a random smooth path, smoothed a little, summing to 1.

    The path is a random walk of the velocity; `intensity` in (0, 1] says how much it turns.
    """
    _odd(size)
    if not 0 < intensity <= 1:
        raise ValueError(f"intensity={intensity} of a motion blur must be above 0 and at most 1.")
    steps = 16 * size
    turns = KeyedNoise(seed, [0]).normal("operator", 0, (steps,), torch.float64)[0]
    start = KeyedNoise(seed, [0]).uniform("operator", 1, ())[0]
    angle = 2 * math.pi * start + intensity * math.pi * turns.cumsum(0) / math.sqrt(steps)
    path = torch.stack((angle.sin(), angle.cos()), 1).cumsum(0)
    path = path - (path.max(0).values + path.min(0).values) / 2
    reach = path.abs().max().clamp_min(1e-12)
    at = (path / reach * 0.45 * (size - 1) + size // 2).round().long().clamp(0, size - 1)
    kernel = torch.zeros(size, size, dtype=torch.float64)
    kernel.index_put_((at[:, 0], at[:, 1]), torch.ones(steps, dtype=torch.float64), accumulate=True)
    soft = gaussian_line(0.7, 3)
    kernel = functional.conv2d(kernel[None, None], (soft[:, None] * soft)[None, None], padding=1)[0, 0]
    return kernel / kernel.sum()


def blur_matrix(size: int, line: Tensor, boundary: str) -> Tensor:
    """Return the (size, size) matrix of convolution with `line` on a row continued by `boundary`, float64."""
    index = boundary_index(size, len(line), boundary)
    padded = functional.pad(torch.eye(size, dtype=torch.float64), (0, 0, 0, 1))[index]  # (size + taps - 1, size)
    return torch.stack([line.flip(0) @ padded[row : row + len(line)] for row in range(size)])


def boundary_index(size: int, taps: int, boundary: str) -> Tensor:
    """Return which pixel stands at each place of a padded row, int64 (size + taps - 1,); `size` means zero."""
    check_boundary(boundary)
    before = taps - 1 - taps // 2  # convolution turns the kernel, whose centre is at taps // 2, round
    at = torch.arange(-before, size + taps // 2)
    if boundary == "circular":
        return at % size
    if boundary == "replicate":
        return at.clamp(0, size - 1)
    if boundary == "zero":
        return torch.where((at >= 0) & (at < size), at, size)
    if size <= max(before, taps // 2):
        raise ValueError(
            f"boundary 'reflect' with {taps} taps needs more than {taps // 2} pixels; the picture has {size}."
        )
    period = 2 * (size - 1)
    at = at % period if period else at * 0
    return torch.where(at < size, at, period - at)


def check_boundary(boundary: str) -> None:
    """Raise ValueError for an unknown boundary."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary {boundary!r} is unknown; choose {', '.join(BOUNDARIES)}.")


def check_kernel(kernel: Tensor, height: int, width: int) -> None:
    """Raise ValueError for a kernel that is no picture, larger than the picture, or not finite."""
    if kernel.ndim not in (2, 3):
        raise ValueError(f"a kernel has shape (h, w), or (B, h, w) with one per item; got {tuple(kernel.shape)}.")
    if kernel.shape[-2] > height or kernel.shape[-1] > width:
        raise ValueError(
            f"the kernel ({kernel.shape[-2]} x {kernel.shape[-1]}) is larger than the picture ({height} x {width}); "
            "use a smaller one."
        )
    if not bool(torch.isfinite(kernel).all()):
        raise ValueError("the kernel has values that are not finite.")


def kernel_spectrum(kernel: Tensor, height: int, width: int) -> Tensor:
    """Return the FFT (..., height, width) of a kernel whose centre (h // 2, w // 2) is moved to the origin."""
    h, w = kernel.shape[-2:]
    padded = functional.pad(kernel, (0, width - w, 0, height - h))
    return torch.fft.fft2(padded.roll((-(h // 2), -(w // 2)), dims=(-2, -1)))


def _line_blur(shape: Shape, line: Tensor, boundary: str) -> Blur | SeparableBlur:
    check_boundary(boundary)
    if boundary == "circular":
        return Blur(shape, line[:, None] * line)
    return SeparableBlur(shape, line, boundary)


def _filter(x: Tensor, spectrum: Tensor) -> Tensor:
    return torch.fft.ifft2(torch.fft.fft2(x) * spectrum).real


def _odd(size: int) -> None:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size={size} of a kernel must be odd, so that it has a centre.")
