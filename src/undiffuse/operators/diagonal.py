"""Operators that weigh every number of an item by itself: the identity (denoising) and masks (inpainting)."""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.operators.base import Shape, SVDOperator, double


class Identity(SVDOperator):
    """y = x: denoising."""

    kind = "identity"

    def __init__(self, in_shape: Shape) -> None:
        super().__init__(in_shape, in_shape)

    def Vt(self, x: Tensor) -> Tensor:
        return x

    def V(self, z: Tensor) -> Tensor:
        return z

    def Ut(self, y: Tensor) -> Tensor:
        return y

    def U(self, z: Tensor) -> Tensor:
        return z

    def singulars(self, like: Tensor | None = None) -> Tensor:
        if like is not None:
            return like.new_ones([1] * (1 + len(self.in_shape)))
        return torch.ones([1] * (1 + len(self.in_shape)), dtype=torch.float64)


class Diagonal(SVDOperator):
    """y = w x with weights w >= 0 that broadcast over an item, or (B, *) with a row per item.

    Raises:
        ValueError: A weight is negative or not finite, or their shape does not fit.
    """

    kind = "diagonal"

    def __init__(self, in_shape: Shape, weights: Tensor) -> None:
        weights = double(weights)
        _check_weights(weights, tuple(in_shape), self.kind)
        own_rows = weights.ndim == len(in_shape) + 1 and weights.shape[0] > 1
        super().__init__(in_shape, in_shape, tensors={"weights": weights}, batched=("weights",) if own_rows else ())

    def Vt(self, x: Tensor) -> Tensor:
        return x

    def V(self, z: Tensor) -> Tensor:
        return z

    def Ut(self, y: Tensor) -> Tensor:
        return torch.where(self._get("weights", y) > 0, y, 0.0)

    def U(self, z: Tensor) -> Tensor:
        return self.Ut(z)

    def apply(self, x: Tensor) -> Tensor:
        return self._get("weights", x) * x

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return self._get("weights", y) * y

    def known(self, like: Tensor) -> Tensor:
        """Return where the weights are positive."""
        return self.singulars(like) > 0

    def singulars(self, like: Tensor | None = None) -> Tensor:
        weights = self._tensors["weights"] if like is None else self._get("weights", like)
        return weights.view(*[1] * (1 + len(self.in_shape) - weights.ndim), *weights.shape)


class Mask(Diagonal):
    """y = m x with m of zeros and ones: inpainting, outpainting, missing data, demosaicing. y has zeros where m is 0.

    Args:
        in_shape: Shape of one item.
        mask: 1 where the item is known, 0 where it is not; it broadcasts over an item, or has a row per item.

    Raises:
        ValueError: The mask has other values than 0 and 1, or its shape does not fit.
    """

    kind = "mask"

    def __init__(self, in_shape: Shape, mask: Tensor | None = None, *, weights: Tensor | None = None) -> None:
        values = double(mask if mask is not None else weights)
        odd = values[(values != 0) & (values != 1)]
        if odd.numel():
            raise ValueError(
                f"the mask has {odd.numel()} values that are neither 0 (missing) nor 1 (known), such as "
                f"{float(odd[0]):.4g}; threshold it, for example mask > 0.5."
            )
        super().__init__(in_shape, values)

    @property
    def mask(self) -> Tensor:
        """The mask, float64."""
        return self._tensors["weights"]

    def describe(self) -> str:
        """Return what it is, with the share of the item that is known."""
        return f"mask({float(self.mask.mean()):.0%} known) {self.in_shape}"


def _check_weights(weights: Tensor, shape: Shape, kind: str) -> None:
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError(f"the weights of a {kind} operator must be finite and at least 0.")
    item = weights.shape[1:] if weights.ndim == len(shape) + 1 else weights.shape
    fits = len(item) <= len(shape) and all(a in (1, b) for a, b in zip(reversed(item), reversed(shape), strict=False))
    if not fits:
        raise ValueError(
            f"a {kind} of shape {tuple(weights.shape)} does not fit items of shape {shape}; give one that broadcasts "
            "over an item, or with a row per item."
        )
