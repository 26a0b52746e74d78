"""Measurement operators: what turns a clean item x into a measurement y = A(x).

Everything is real and in model units (images in [-1, 1]); `x` is (B, *in_shape), `y` is (B, *out_shape). An operator
is fixed once built: random masks and kernels are drawn at construction and travel with it. Its numbers are kept in
float64 and meet `x` in the dtype and on the device of `x`; `to` moves them for good.

A linear operator adds its adjoint, and whatever needs a system solved uses conjugate gradients. An `SVDOperator` knows
A = U diag(s) V^T with one singular value per coefficient of x, zeros included, so all of that is elementwise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse._lazy import resolve
from undiffuse.noise import KeyedNoise
from undiffuse.operators.krylov import conjugate_gradient, largest_eigenvalue
from undiffuse.spec import DataSpec

Shape = tuple[int, ...]


class Operator:
    """A measurement y = A(x), possibly nonlinear.

    Args:
        in_shape: Shape of one item x, without the batch.
        out_shape: Shape of one measurement y.
        settings: What the class was built with beside tensors, as plain JSON: names of its constructor.
        tensors: Tensors that the class was built with, by the names of its constructor; saved with it.
        derived: Tensors computed from the above; moved by `to`, not saved.
        batched: Names of tensors that have a row per item of the batch.
    """

    kind: ClassVar[str] = ""
    """Name of the class in `registry.KINDS`, which a file carries."""
    linear: bool = False
    differentiable: bool = True
    has_pinv: bool = False
    """Whether `pinv` exists: exact for linear operators, an approximate inverse for others."""
    is_svd: bool = False

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        settings: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        derived: Mapping[str, Tensor] | None = None,
        batched: tuple[str, ...] = (),
        parts: tuple[Operator, ...] = (),
    ) -> None:
        self.in_shape = tuple(int(size) for size in in_shape)
        self.out_shape = tuple(int(size) for size in out_shape)
        self.settings: dict[str, Any] = dict(settings or {})
        self.parts = parts
        self._saved = tuple(tensors or {})
        self._tensors: dict[str, Tensor] = {**(tensors or {}), **(derived or {})}
        self._batched = batched
        self._cast: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    # --- what a class gives

    def apply(self, x: Tensor) -> Tensor:
        """Return A(x); shapes have been checked."""
        raise NotImplementedError

    # --- what a caller uses

    def __call__(self, x: Tensor) -> Tensor:
        """Return the measurement (B, *out_shape) of x (B, *in_shape).

        Raises:
            ValueError: The shape is another one.
        """
        self._check(x, self.in_shape, "x")
        if x.dtype in (torch.float16, torch.bfloat16):
            return self.apply(x.float()).to(x.dtype)
        return self.apply(x)

    def pinv(self, y: Tensor) -> Tensor:
        """Return an x (B, *in_shape) that would give about y."""
        raise ValueError(f"the operator {self.describe()} has no pseudo-inverse; use a solver that needs none.")

    def guess(self, y: Tensor) -> Tensor:
        """Return an item (B, *in_shape) to start from: the pseudo-inverse where there is one, else zeros."""
        if self.has_pinv:
            return self.pinv(y)
        return y.new_zeros(y.shape[0], *self.in_shape)

    def to_items(self, y: Tensor) -> Tensor:
        """Return y on the grid of items (B, *in_shape): as it is where it fits, else `guess`."""
        return y if self.out_shape == self.in_shape else self.guess(y)

    def known(self, like: Tensor) -> Tensor | None:
        """Return which numbers of y say anything, bool and broadcasting with `like` (B, *out_shape); None: all do."""
        return None

    def measured(self, y: Tensor) -> Tensor:
        """Return y with zeros where nothing is measured, such as behind a mask: noise has no place there."""
        seen = self.known(y)
        return y if seen is None else torch.where(seen, y, 0.0)

    def as_linear(self, y: Tensor) -> tuple[LinearOperator, Tensor] | None:
        """Return a linear operator and a measurement that say the same as this one and y, or None where none do."""
        return None

    @property
    def rows(self) -> int | None:
        """Number of items that have parameters of their own; None where all items share them."""
        own = [self._tensors[name].shape[0] for name in self._batched] + [part.rows for part in self.parts if part.rows]
        return own[0] if own else None

    def take(self, index: Tensor) -> Operator:
        """Return the operator for the items `index` (int64) of the batch; itself where all items share parameters."""
        if self.rows is None:
            return self
        taken = self._copy(lambda name, tensor: tensor[index.to(tensor.device)] if name in self._batched else tensor)
        taken.parts = tuple(part.take(index) for part in self.parts)
        return taken

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Operator:
        """Return the operator with its tensors on `device` and its real ones in `dtype`."""

        def move(name: str, tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=_dtype_for(tensor, dtype) if dtype else None)

        moved = self._copy(move)
        moved.parts = tuple(part.to(device, dtype) for part in self.parts)
        return moved

    def describe(self) -> str:
        """Return what it is in a line, such as "downsample(factor=4, method=average) (3, 64, 64) -> (3, 16, 16)"."""
        return f"{self.label()} {self.in_shape} -> {self.out_shape}"

    def label(self) -> str:
        """Return its kind and settings."""
        inner = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.kind}({inner})"

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def __matmul__(self, first: Operator) -> Operator:
        """Return x -> self(first(x))."""
        from undiffuse.operators.compose import chain

        return chain(first, self)

    def __mul__(self, factor: float) -> Operator:
        """Return x -> factor * self(x)."""
        from undiffuse.operators.compose import scaled

        return scaled(self, factor)

    __rmul__ = __mul__

    # --- to files and back

    def to_json(self) -> dict[str, Any]:
        """Return everything but the tensors as plain JSON types."""
        parts = [part.to_json() for part in self.parts]
        own = {"kind": self.kind, "in_shape": list(self.in_shape), "settings": self.settings}
        return {**own, "parts": parts} if parts else own

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that belong to `to_json`, by name; those of part i as "i.name"."""
        own = {name: self._tensors[name] for name in self._saved}
        for number, part in enumerate(self.parts):
            own.update({f"{number}.{name}": tensor for name, tensor in part.tensors().items()})
        return own

    @staticmethod
    def from_json(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Operator:
        """Rebuild an operator from `to_json` and `tensors`.

        Raises:
            ValueError: The kind is unknown, for example because a newer version wrote it.
        """
        from undiffuse.operators.registry import KINDS

        kind = fields.get("kind")
        if kind not in KINDS:
            raise ValueError(f"operator kind {kind!r} is unknown to this version, which knows {', '.join(KINDS)}.")
        built = resolve(KINDS[kind])
        shape = tuple(fields["in_shape"])
        parts = [
            Operator.from_json(part, {key[2:]: value for key, value in tensors.items() if key.startswith(f"{number}.")})
            for number, part in enumerate(fields.get("parts", ()))
        ]
        own = {key: value for key, value in tensors.items() if "." not in key}
        return built(*parts, **fields["settings"]) if parts else built(shape, **fields["settings"], **own)

    # --- for the classes below

    def _get(self, name: str, like: Tensor) -> Tensor:
        """Return a tensor of its own in the dtype and on the device of `like`."""
        tensor = self._tensors[name]
        dtype = _dtype_for(tensor, like.dtype)
        if tensor.requires_grad or (tensor.device == like.device and tensor.dtype == dtype):
            return tensor.to(like.device, dtype)
        key = (name, like.device, dtype)
        if key not in self._cast:
            self._cast[key] = tensor.to(like.device, dtype)
        return self._cast[key]

    def _copy(self, change: Any) -> Any:
        copied = copy.copy(self)
        copied._tensors = {name: change(name, tensor) for name, tensor in self._tensors.items()}
        copied._cast = {}
        return copied

    def _check(self, value: Tensor, shape: Shape, name: str) -> None:
        if value.is_complex():
            raise ValueError(f"{name} is complex; operators are real: give real and imaginary part as two channels.")
        if tuple(value.shape[1:]) != shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, but the operator {self.describe()} needs (B, "
                f"{', '.join(map(str, shape))})."
            )
        if self.rows is not None and value.shape[0] != self.rows:
            raise ValueError(
                f"{name} has {value.shape[0]} items, but the operator {self.describe()} has parameters for "
                f"{self.rows}; choose its rows with take()."
            )


class LinearOperator(Operator):
    """A linear measurement: a class gives `apply`, and `apply_adjoint` where it can do better than autograd."""

    linear = True
    has_pinv = True

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y; by default the transpose of `apply` as autograd knows it, which is exact."""
        return _Transpose.apply(y, self)  # type: ignore[no-any-return]

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, (B, *in_shape)."""
        self._check(y, self.out_shape, "y")
        return self.apply_adjoint(y)

    def gram(self, x: Tensor) -> Tensor:
        """Return A^T A x."""
        return self.apply_adjoint(self(x))

    def pinv(self, y: Tensor, *, iterations: int = 50, tol: float = 1e-6) -> Tensor:
        """Return the x of least norm among those that fit y best, by conjugate gradients on A^T A."""
        return conjugate_gradient(self.gram, self.adjoint(y), iterations=iterations, tol=tol)

    def prox(self, x: Tensor, y: Tensor, rho: float | Tensor, *, iterations: int = 50, tol: float = 1e-6) -> Tensor:
        """Return (A^T A + rho)^-1 (A^T y + rho x): the minimum of |A z - y|^2 + rho |z - x|^2.

        Args:
            x: (B, *in_shape).
            y: (B, *out_shape).
            rho: Positive number, or (B,), or whatever broadcasts with x.
        """
        weight = per_row(rho, x)
        right = self.adjoint(y) + weight * x
        return conjugate_gradient(
            lambda v: self.gram(v) + weight * v, right, start=x.expand_as(right), iterations=iterations, tol=tol
        )

    def to_model(self, y: Tensor, spec: DataSpec) -> Tensor:
        """Return what y = A v, measured on items v in data units, is on the same items in model units.

        Real measurements (k-space, line integrals) are of intensities v, not of x = (v - middle) / half the range.

        Args:
            y: (B, *out_shape).
            spec: Units of the data.

        Raises:
            ValueError: The data's features have units of their own (several standard deviations).
        """
        if len(set(spec.std)) > 1:
            raise ValueError("the features of these data have different units; scale them before they are measured.")
        low, high = spec.from_model(y.new_zeros(1, *self.in_shape)), spec.from_model(y.new_ones(1, *self.in_shape))
        rows = (self.rows or 1, *self.in_shape)
        return (y - self.apply(low.expand(rows))) / (high - low).flatten()[0]

    def norm(self) -> float:
        """Return the largest singular value (of any row), by Lanczos on A^T A, in float64."""
        some = next(iter(self._all_tensors()), torch.zeros((), dtype=torch.float64))
        start = KeyedNoise(0, range(self.rows or 1), some.device).normal("probe", 0, self.in_shape, torch.float64)
        return math.sqrt(largest_eigenvalue(self.gram, start))

    def as_linear(self, y: Tensor) -> tuple[LinearOperator, Tensor]:
        """Return itself and y."""
        return self, y

    def _all_tensors(self) -> list[Tensor]:
        return list(self._tensors.values()) + [t for part in self.parts for t in part._tensors.values()]


class SVDOperator(LinearOperator):
    """A linear measurement with A = U diag(s) V^T known: a class gives Vt, V, Ut, U and singulars.

    The coefficients are real, one for every number of x (any shape and order), with a singular value each, zeros
    included. V is orthogonal. `Ut` gives zeros where s = 0 and `U` ignores what stands there.
    """

    is_svd = True
    cutoff: float = 0.0
    """`pinv` leaves out singular values at or below this share of the largest."""

    def Vt(self, x: Tensor) -> Tensor:
        """Return the coefficients of x."""
        raise NotImplementedError

    def V(self, z: Tensor) -> Tensor:
        """Return the item (B, *in_shape) of coefficients."""
        raise NotImplementedError

    def Ut(self, y: Tensor) -> Tensor:
        """Return the coefficients of y, zero where s = 0."""
        raise NotImplementedError

    def U(self, z: Tensor) -> Tensor:
        """Return the measurement (B, *out_shape) of coefficients."""
        raise NotImplementedError

    def singulars(self, like: Tensor | None = None) -> Tensor:
        """Return the singular values, at least 0, that broadcast with `Vt(x)`; in the dtype of `like`, else float64."""
        raise NotImplementedError

    def apply(self, x: Tensor) -> Tensor:
        """Return A x."""
        return self.U(self.singulars(x) * self.Vt(x))

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y."""
        return self.V(self.singulars(y) * self.Ut(y))

    def gram(self, x: Tensor) -> Tensor:
        """Return A^T A x."""
        return self.V(self.singulars(x).square() * self.Vt(x))

    def pinv(self, y: Tensor, *, iterations: int = 50, tol: float = 1e-6) -> Tensor:
        """Return V diag(1/s) U^T y over the singular values above the cut-off; nothing is iterated."""
        self._check(y, self.out_shape, "y")
        s = self.singulars(y)
        kept = s > self.cutoff * s.max() if self.cutoff else s > 1e-10 * s.max()
        return self.V(torch.where(kept, 1 / torch.where(kept, s, 1.0), 0.0) * self.Ut(y))

    def prox(self, x: Tensor, y: Tensor, rho: float | Tensor, *, iterations: int = 50, tol: float = 1e-6) -> Tensor:
        """Return (A^T A + rho)^-1 (A^T y + rho x); a tensor `rho` that is not one number per row needs iterations."""
        self._check(y, self.out_shape, "y")
        if isinstance(rho, Tensor) and rho.ndim > 1 and rho[0].numel() > 1:
            return super().prox(x, y, rho, iterations=iterations, tol=tol)
        s = self.singulars(x)
        z = self.Vt(x)
        weight = per_row(rho.flatten() if isinstance(rho, Tensor) and rho.ndim else rho, z)
        return self.V((s * self.Ut(y) + weight * z) / (s.square() + weight))

    def norm(self) -> float:
        """Return the largest singular value."""
        return float(self.singulars().max())


class _Transpose(torch.autograd.Function):
    """y -> A^T y by autograd through A, itself differentiable as often as wanted (its derivative is A)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, operator: LinearOperator) -> Tensor:
        ctx.operator = operator
        with torch.enable_grad():
            x = y.new_zeros(y.shape[0], *operator.in_shape, requires_grad=True)
            (found,) = torch.autograd.grad(operator.apply(x), x, y.detach())
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.operator.apply(grads[0]), None


def per_row(value: float | Tensor, like: Tensor) -> float | Tensor:
    """Return a number, or one per row (B,), so that it broadcasts over `like` (B, *)."""
    if not isinstance(value, Tensor):
        return value
    value = value.to(like.device, like.dtype)
    return value.view(-1, *[1] * (like.ndim - 1)) if value.ndim == 1 else value


def double(value: Any) -> Tensor:
    """Return a tensor in float64, as operators keep their numbers; one that carries a gradient keeps its dtype."""
    tensor = torch.as_tensor(value)
    return tensor if tensor.requires_grad else tensor.to(torch.float64)


def image_shape(shape: Shape, what: str) -> tuple[Shape, int, int]:
    """Split an item's shape into its leading axes, height and width.

    Raises:
        ValueError: There are fewer than two axes.
    """
    if len(shape) < 2:
        raise ValueError(f"{what} works on pictures (..., H, W); an item of shape {tuple(shape)} is none.")
    return tuple(shape[:-2]), int(shape[-2]), int(shape[-1])


def _dtype_for(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    if tensor.is_complex():
        return torch.complex128 if dtype == torch.float64 else torch.complex64
    return dtype if tensor.is_floating_point() else tensor.dtype
