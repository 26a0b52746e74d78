"""Operators of other libraries as ours, and ours as theirs: by deepinv's interface `A`, `A_adjoint`, `A_dagger`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import LinearOperator, Operator, Shape
from undiffuse.operators.krylov import conjugate_gradient


def from_deepinv(
    physics: Any, in_shape: Shape, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Operator:
    """Return any object with `A(x)` as an operator; linear where it also has `A_adjoint(y)`.

    Items pass as they are: an operator that was written for pictures in [0, 1] and is not linear must convert itself.
    The object's noise model is not taken over; give noise by its own name.

    Args:
        physics: Has A, and perhaps A_adjoint and A_dagger.
        in_shape: Shape of one item.
        device: Where the object's tensors live.
        dtype: Their dtype.

    Raises:
        TypeError: It has no `A`.
        ValueError: It does not take items of this shape, or does not return one real tensor.
    """
    if not callable(getattr(physics, "A", None)):
        raise TypeError(
            f"{type(physics).__name__} has no method A(x); from_deepinv takes objects with A, as deepinv's."
        )
    x = KeyedNoise(0, [0], device).normal("probe", 0, tuple(in_shape), dtype)
    try:
        y = physics.A(x)
    except Exception as error:  # another library's code raises what it likes
        raise ValueError(f"{type(physics).__name__}.A does not take (1, {in_shape}): {error}") from error
    if not isinstance(y, Tensor) or y.is_complex():
        raise ValueError(f"{type(physics).__name__}.A must return one real tensor; view complex ones as real channels.")
    if not callable(getattr(physics, "A_adjoint", None)):
        return ForeignOperator(physics, tuple(in_shape), tuple(y.shape[1:]))
    found = ForeignLinearOperator(physics, tuple(in_shape), tuple(y.shape[1:]))
    found.check(x, y)
    return found


class ForeignOperator(Operator):
    """An object with A(x); its approximate inverse is A_dagger(y), where it has one."""

    kind = "foreign"

    def __init__(self, physics: Any, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__(in_shape, out_shape)
        self.physics = physics
        self.has_pinv = callable(getattr(physics, "A_dagger", None))

    def apply(self, x: Tensor) -> Tensor:
        return self.physics.A(x)  # type: ignore[no-any-return]

    def pinv(self, y: Tensor) -> Tensor:
        """Return A_dagger(y)."""
        return self.physics.A_dagger(y) if self.has_pinv else super().pinv(y)

    def label(self) -> str:
        """Return the name of its class."""
        return type(self.physics).__name__

    def to_json(self) -> dict[str, Any]:
        """Raise ValueError: what another library built is not ours to save."""
        raise ValueError(f"{self.label()} comes from another library and cannot be saved; save what it was built from.")


class ForeignLinearOperator(LinearOperator):
    """An object with A(x) and A_adjoint(y)."""

    kind = "foreign-linear"

    def __init__(self, physics: Any, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__(in_shape, out_shape)
        self.physics = physics
        self._true_adjoint = True

    def check(self, x: Tensor, y: Tensor) -> None:
        """Compare <A x, v> with <x, A_adjoint v> for a random v; where they differ, warn and use autograd instead."""
        v = KeyedNoise(1, [0], y.device).normal("probe", 0, self.out_shape, y.dtype)
        one, other = (y * v).sum(), (x * self.physics.A_adjoint(v)).sum()
        scale = float(y.norm() * v.norm())
        if abs(float(one - other)) > 1e-3 * scale:
            self._true_adjoint = False
            warnings.warn(
                f"{self.label()}.A_adjoint is not the adjoint of A (<Ax, v> = {float(one):.4g}, <x, A_adjoint v> = "
                f"{float(other):.4g}); the transpose by autograd is used instead.",
                stacklevel=3,
            )

    def apply(self, x: Tensor) -> Tensor:
        return self.physics.A(x)  # type: ignore[no-any-return]

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return self.physics.A_adjoint(y) if self._true_adjoint else super().apply_adjoint(y)

    def pinv(self, y: Tensor, *, iterations: int = 50, tol: float = 1e-6) -> Tensor:
        """Return A_dagger(y), or conjugate gradients where there is none."""
        self._check(y, self.out_shape, "y")
        if callable(getattr(self.physics, "A_dagger", None)):
            return self.physics.A_dagger(y)  # type: ignore[no-any-return]
        return conjugate_gradient(self.gram, self.adjoint(y), iterations=iterations, tol=tol)

    def label(self) -> str:
        """Return the name of its class."""
        return type(self.physics).__name__

    def to_json(self) -> dict[str, Any]:
        """Raise ValueError: what another library built is not ours to save."""
        raise ValueError(f"{self.label()} comes from another library and cannot be saved; save what it was built from.")


class AsPhysics:
    """One of our operators with deepinv's names: A, A_adjoint, A_dagger, and calling it measures without noise."""

    def __init__(self, operator: Operator) -> None:
        self.operator = operator

    def A(self, x: Tensor, **_: Any) -> Tensor:
        """Return the measurement."""
        return self.operator(x)

    __call__ = A

    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        """Return the adjoint; a nonlinear operator has none."""
        if not isinstance(self.operator, LinearOperator):
            raise ValueError(f"{self.operator.describe()} is not linear and has no adjoint.")
        return self.operator.adjoint(y)

    def A_dagger(self, y: Tensor, **_: Any) -> Tensor:
        """Return the pseudo-inverse."""
        return self.operator.pinv(y)


def to_deepinv(operator: Operator) -> AsPhysics:
    """Return an operator with deepinv's interface."""
    return AsPhysics(operator)
