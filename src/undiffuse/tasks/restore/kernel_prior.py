r"""What kernels of blurs look like before anything was seen, and what a picture and its blurred self add to it.

A prior of kernels is a denoiser of their pictures (1, h, w) in model units: black, -1, is nothing, and the kernel is
what stands above black over its sum, so its brightness means nothing. It is a model that was trained on such pictures,
or the Gaussian of the kernels that this library draws.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.linearised import Linearised
from undiffuse.denoisers.mixture import LowRankMixtureDenoiser
from undiffuse.guidance.covariance import MMPS, kept_near
from undiffuse.models.bundle import load
from undiffuse.models.model import Model
from undiffuse.operators.base import LinearOperator
from undiffuse.operators.kernels import draw_kernels
from undiffuse.operators.simplex import project_simplex
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time

_DRAWN = 256  # kernels behind the Gaussian, half of each kind
_RANK = 24  # directions kept: more say little (99 % of the variance at 9 x 9 taps)
_VARIANCE = 0.2  # of a pixel of the Gaussian's pictures: about that of pictures whose brightest pixel is white
_LEAST_SUM = 1e-6  # of what stands above black, which is divided by


def kernel_prior(
    prior: str | Model | Denoiser, size: tuple[int, int], process: GaussianProcess, device: torch.device
) -> Denoiser:
    """Return a prior of kernels of `size` (h, w): a denoiser of their pictures.

    Args:
        prior: "gaussian", a model, its name or folder, or a denoiser.
        size: Of the kernels.
        process: Of the Gaussian.
        device: Where to.

    Raises:
        ValueError: It is one of other pictures.
        UndiffuseError: The folder has no model.
    """
    if prior == "gaussian":
        return gaussian_of_kernels(*size, process).to(device)
    if isinstance(prior, str):
        prior = load(prior)
    denoiser = prior.denoiser if isinstance(prior, Model) else prior
    spec = denoiser.spec
    fits = spec is None or (spec.kind == "image" and spec.range is not None and spec.shape == (1, *size))
    if not fits or not isinstance(denoiser.process, GaussianProcess) or getattr(prior, "codec", None) is not None:
        what = f"{spec.noun} of shape {spec.shape}" if spec is not None else "tokens"
        raise ValueError(
            f"the prior of kernels is a model of {what}; expected grey pictures (1, {size[0]}, {size[1]}), the size of "
            f"the operator's kernel: undiffuse train kernels data.size={size[0]}."
        )
    return denoiser.eval().to(device)


def gaussian_of_kernels(height: int, width: int, process: GaussianProcess) -> LowRankMixtureDenoiser:
    """Return the Gaussian of drawn kernels of a size, the same each time, as a denoiser of their pictures."""
    mean, basis, variances = _moments(height, width)
    scale = (_VARIANCE * mean.numel() / variances.sum()) ** 0.5
    pictures = (scale * mean - 1)[None, None]
    return LowRankMixtureDenoiser(torch.ones(1), pictures, basis[None], scale**2 * variances[None], process)


def kernel_of(pictures: Tensor) -> Tensor:
    """Return the kernels (B, h, w) that pictures (B, 1, h, w) show: at least 0, with sum 1."""
    above = pictures + 1
    return project_simplex((above / _total(above))[:, 0])


def picture_of(kernels: Tensor) -> Tensor:
    """Return pictures (B, 1, h, w) of kernels (B, h, w), the largest weight white."""
    return (2 * kernels / kernels.amax((1, 2), keepdim=True) - 1)[:, None]


def sparse(kernels: Tensor, share: float, norm: Literal["l0", "l1"]) -> Tensor:
    """Return kernels (B, h, w) with sum 1 without weights below `share` of the largest.

    That is the proximal step of the number of weights ("l0") or of their sum ("l1", which lowers the others as much).
    """
    least = share * kernels.amax((1, 2), keepdim=True)
    kept = (kernels - least).clamp(min=0) if norm == "l1" else torch.where(kernels >= least, kernels, 0.0)
    return kept / kept.sum((1, 2), keepdim=True)


class SeenBlur(MMPS):
    """A prior of kernels that knows what one blurred: E[k | k_t, y] for y = k * x + noise with x known.

    MMPS for a measurement that is not quite linear, k being a picture over its sum: its derivative at the answer.

    Args:
        denoiser: Of pictures of kernels (1, h, w).
        blur: k * x, an operator on kernels.
        y: What x became.
        noise_std: Of y, and of what is not known of x.
        iterations: Of the solver; for the Gaussian as many as directions are exact.
    """

    def shift(self, answer: Linearised, x: Tensor, t: Time) -> Tensor:
        """Return V G^T (G V G^T + sy^2)^-1 (y - k * x) with G the derivative of k * x by the picture of k."""
        blur, y, std = self.measured(x)
        above = answer.post.mean + 1
        seen = OverSum(cast(LinearOperator, blur), above)
        residual = y - blur(seen.kernel)
        return kept_near(self.gain(seen, answer, std, residual), seen, residual, std)


class OverSum(LinearOperator):
    """The derivative of A(p / sum(p)) by p at pictures `above` black (B, 1, h, w): d -> A((d - k sum(d)) / sum(p))."""

    def __init__(self, operator: LinearOperator, above: Tensor) -> None:
        super().__init__(operator.in_shape, operator.out_shape)
        self.operator, self.total = operator, _total(above)
        self.kernel = above / self.total

    def apply(self, x: Tensor) -> Tensor:
        return self.operator((x - self.kernel * x.sum((-2, -1), keepdim=True)) / self.total)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        back = self.operator.adjoint(y) / self.total
        return back - (self.kernel * back).sum((-2, -1), keepdim=True)


def _total(above: Tensor) -> Tensor:
    return above.sum((-2, -1), keepdim=True).clamp(min=_LEAST_SUM)


@lru_cache(maxsize=8)
def _moments(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (h, w), directions (h w, r) and variances (r,) of drawn kernels."""
    kernels = draw_kernels(_DRAWN, height, width)
    mean = kernels.mean(0)
    _, sizes, directions = torch.linalg.svd((kernels - mean).flatten(1), full_matrices=False)
    rank = min(_RANK, int((sizes > 1e-9 * sizes[0]).sum()))
    return mean, directions[:rank].T.contiguous(), sizes[:rank].square() / (_DRAWN - 1)
