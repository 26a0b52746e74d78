"""How near is a restored picture to the true one, and to what was measured? PSNR, SSIM, NMSE, consistency.

Tensors are (B, C, *axes) in any units, computed in float64; every function returns one figure per item, (B,). The range
is that of the units, 2 for model units [-1, 1], never that of the batch: otherwise the figure of one picture would
depend on its neighbours. See `metrics.calibration` for what a restorer's samples say beside their mean.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

_WINDOW, _WINDOW_STD = 11, 1.5
_K1, _K2 = 0.01, 0.03
_MODEL_RANGE = 2.0


def psnr(x: Tensor, truth: Tensor, data_range: float = _MODEL_RANGE) -> Tensor:
    """Return 10 log10(range^2 / mean squared error) of each item in dB, (B,); infinite where they are equal.

    Average over items after taking the logarithm, as here; the logarithm of an average is another figure.

    Args:
        x, truth: (B, *).
        data_range: Highest minus lowest value that the units allow.

    Raises:
        ValueError: The shapes differ, or the range is not positive.
    """
    first, second = _pair(x, truth)
    _check_range(data_range)
    return 10.0 * (data_range**2 / (first - second).square().flatten(1).mean(1)).log10()


def nmse(x: Tensor, truth: Tensor) -> Tensor:
    """Return the squared error over the squared norm of the truth of each item, (B,); 0 is perfect.

    Raises:
        ValueError: The shapes differ.
    """
    first, second = _pair(x, truth)
    return (first - second).square().flatten(1).sum(1) / second.square().flatten(1).sum(1)


def consistency(measured: Tensor, y: Tensor) -> Tensor:
    """Return the mean absolute difference of A(x) and the measurement y of each item, (B,), in their units.

    Args:
        measured: What the operator makes of the restored item, (B, *); complex or real.
        y: The measurement, likewise.

    Raises:
        ValueError: The shapes differ.
    """
    return _difference(measured, y).abs().flatten(1).mean(1)


def residual_rms(measured: Tensor, y: Tensor) -> Tensor:
    """Return the root mean square of A(x) - y of each item, (B,): a restorer that knows the noise reaches its level.

    Of complex measurements each entry counts as two numbers.

    Raises:
        ValueError: The shapes differ.
    """
    difference = _difference(measured, y)
    parts = torch.view_as_real(difference) if difference.is_complex() else difference
    return parts.square().flatten(1).mean(1).sqrt()


def ssim(x: Tensor, truth: Tensor, data_range: float = _MODEL_RANGE) -> Tensor:
    r"""Return the structural similarity of each item, (B,), 1 for equal ones.

    With local means mu, variances v and covariance c in a Gaussian window,

        SSIM = (2 mu_x mu_y + C1) (2 c + C2) / ((mu_x^2 + mu_y^2 + C1) (v_x + v_y + C2)),

    C1 = (0.01 range)^2, C2 = (0.03 range)^2, averaged over the positions where the window fits, and over channels. The
    window has standard deviation 1.5 and 11 points along each axis; on items smaller than that the largest odd number
    that fits, with a warning, for then the figure is no longer comparable with published ones. So scikit-image computes
    it; torchmetrics reflects the edges instead, which changes the third digit.

    Args:
        x, truth: (B, C, *axes) with one axis or more.
        data_range: Highest minus lowest value that the units allow.

    Raises:
        ValueError: The shapes differ, there are no axes, or the range is not positive.

    Source: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility to structural
        similarity", section III.B.
    """
    first, second = _pair(x, truth)
    _check_range(data_range)
    if first.ndim < 3:
        raise ValueError(f"items of shape {tuple(first.shape[1:])} have no axes; SSIM needs (B, C, *axes).")
    size = _window_size(min(first.shape[2:]))
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    mean_x, mean_y = _blur(first, size), _blur(second, size)
    spread_x, spread_y = _blur(first**2, size) - mean_x**2, _blur(second**2, size) - mean_y**2
    shared = _blur(first * second, size) - mean_x * mean_y
    similar = (2 * mean_x * mean_y + c1) * (2 * shared + c2)
    local = similar / ((mean_x**2 + mean_y**2 + c1) * (spread_x + spread_y + c2))
    return local.flatten(1).mean(1)


def ms_ssim(x: Tensor, truth: Tensor, data_range: float = _MODEL_RANGE) -> Tensor:
    """Return the multi-scale structural similarity of each image, (B,), computed by torchmetrics.

    Args:
        x, truth: Images (B, C, H, W) of at least 176 x 176 pixels, since they are halved four times.
        data_range: Highest minus lowest value that the units allow.

    Raises:
        ValueError: The shapes differ, or images are too small.
        ImportError: torchmetrics is not installed.
    """
    first, second = _pair(x, truth)
    _check_range(data_range)
    smallest = _WINDOW * 2**4
    if first.ndim != 4 or min(first.shape[2:]) < smallest:
        raise ValueError(
            f"MS-SSIM halves images four times and needs (B, C, H, W) with at least {smallest} pixels a side; "
            f"got {tuple(first.shape)}. Use ssim."
        )
    try:
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure
    except ImportError as error:
        raise ImportError("MS-SSIM is computed by torchmetrics: pip install torchmetrics.") from error
    return torch.stack([measure(a[None], b[None], data_range=data_range) for a, b in zip(first, second, strict=True)])


# -- helpers ------------------------------------------------------------------------------------------


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"shapes {tuple(x.shape)} and {tuple(y.shape)}; expected two equal ones, batch first.")
    return x.detach().double(), y.detach().double()


def _difference(measured: Tensor, y: Tensor) -> Tensor:
    if measured.shape != y.shape:
        raise ValueError(
            f"the operator gives {tuple(measured.shape)} and the measurement is {tuple(y.shape)}; expected equal."
        )
    wide = torch.complex128 if y.is_complex() else torch.float64
    return measured.detach().to(wide) - y.detach().to(wide)


def _check_range(data_range: float) -> None:
    if not (math.isfinite(data_range) and data_range > 0):
        raise ValueError(f"data_range={data_range} must be positive: 2 for [-1, 1], 1 for [0, 1], 255 for bytes.")


def _window_size(smallest: int) -> int:
    if smallest >= _WINDOW:
        return _WINDOW
    size = smallest - 1 + smallest % 2
    warnings.warn(
        f"items have {smallest} points along an axis, fewer than SSIM's window of {_WINDOW}; a window of {size} is "
        "used, and the figure cannot be compared with published ones.",
        stacklevel=3,
    )
    return size


def _blur(x: Tensor, size: int) -> Tensor:
    """Return Gaussian local means of `x` (B, C, *axes) at the positions where the window fits."""
    offsets = torch.arange(size, dtype=x.dtype, device=x.device) - (size - 1) / 2
    window = torch.exp(-0.5 * (offsets / _WINDOW_STD) ** 2)
    window = window / window.sum()
    for axis in range(2, x.ndim):
        x = x.unfold(axis, size, 1) @ window
    return x
