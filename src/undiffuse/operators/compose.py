"""Operators made of operators: one after the other, side by side, times a number, and frame by frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from undiffuse.operators.base import LinearOperator, Operator, Shape, SVDOperator


class Chain(Operator):
    """x -> last(... first(x)); its approximate inverse, where all have one, undoes them in turn."""

    kind = "chain"

    def __init__(self, *parts: Operator) -> None:
        for before, after in pairwise(parts):
            if before.out_shape != after.in_shape:
                raise ValueError(f"{before.describe()} cannot be followed by {after.describe()}: the shapes differ.")
        super().__init__(parts[0].in_shape, parts[-1].out_shape, parts=parts)
        self.differentiable = all(part.differentiable for part in parts)
        self.has_pinv = all(part.has_pinv for part in parts)

    def apply(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def pinv(self, y: Tensor) -> Tensor:
        """Return last to first undone: an approximate inverse."""
        if not self.has_pinv:
            return super().pinv(y)
        for part in reversed(self.parts):
            y = part.pinv(y)
        return y

    def known(self, like: Tensor) -> Tensor | None:
        """Return what the last part measures."""
        return self.parts[-1].known(like)

    def label(self) -> str:
        """Return its parts, first to last."""
        return " | ".join(part.label() for part in self.parts)


class LinearChain(LinearOperator):
    """A chain of linear operators, with an adjoint; systems are solved by conjugate gradients."""

    kind = "linear-chain"
    parts: tuple[LinearOperator, ...]

    def __init__(self, *parts: LinearOperator) -> None:
        shapes = Chain(*parts)
        super().__init__(shapes.in_shape, shapes.out_shape, parts=parts)

    def apply(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def apply_adjoint(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            y = part.adjoint(y)
        return y

    known = Chain.known
    label = Chain.label


class Stack(Operator):
    """Several measurements of one item: y is all of them, flat, one after the other; `split` takes them apart."""

    kind = "stack"

    def __init__(self, *parts: Operator) -> None:
        shape = _common_shape(parts)
        super().__init__(shape, (sum(math.prod(part.out_shape) for part in parts),), parts=parts)
        self.differentiable = all(part.differentiable for part in parts)

    def apply(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)

    def split(self, y: Tensor) -> list[Tensor]:
        """Return the measurement of each part, (B, *its out_shape)."""
        return split(self, y)

    def known(self, like: Tensor) -> Tensor | None:
        """Return what the parts measure, one after the other."""
        found = [(part.known(piece), piece) for part, piece in zip(self.parts, self.split(like), strict=True)]
        if all(seen is None for seen, _ in found):
            return None
        every = [
            torch.ones_like(piece, dtype=torch.bool) if seen is None else seen.expand_as(piece) for seen, piece in found
        ]
        return torch.cat([seen.flatten(1) for seen in every], 1)

    def label(self) -> str:
        """Return its parts."""
        return " & ".join(part.label() for part in self.parts)


class LinearStack(LinearOperator):
    """A stack of linear operators, such as the two cameras of pansharpening."""

    kind = "linear-stack"
    parts: tuple[LinearOperator, ...]

    def __init__(self, *parts: LinearOperator) -> None:
        shapes = Stack(*parts)
        super().__init__(shapes.in_shape, shapes.out_shape, parts=parts)

    def apply(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        adjoints = [part.adjoint(piece) for part, piece in zip(self.parts, self.split(y), strict=True)]
        return torch.stack(adjoints).sum(0)

    def split(self, y: Tensor) -> list[Tensor]:
        """Return the measurement of each part, (B, *its out_shape)."""
        return split(self, y)

    known = Stack.known
    label = Stack.label


class Scaled(SVDOperator):
    """A times a number, for an operator with a known decomposition."""

    kind = "scaled"
    parts: tuple[SVDOperator]

    def __init__(self, part: SVDOperator, factor: float) -> None:
        super().__init__(part.in_shape, part.out_shape, settings={"factor": float(factor)}, parts=(part,))
        self.factor = float(factor)
        self.cutoff = part.cutoff
        self._sign = math.copysign(1.0, factor)

    def Vt(self, x: Tensor) -> Tensor:
        return self.parts[0].Vt(x)

    def V(self, z: Tensor) -> Tensor:
        return self.parts[0].V(z)

    def Ut(self, y: Tensor) -> Tensor:
        return self._sign * self.parts[0].Ut(y) * (self.factor != 0)

    def U(self, z: Tensor) -> Tensor:
        return self._sign * self.parts[0].U(z) * (self.factor != 0)

    def singulars(self, like: Tensor | None = None) -> Tensor:
        return abs(self.factor) * self.parts[0].singulars(like)

    def known(self, like: Tensor) -> Tensor | None:
        """Return what its part measures."""
        return self.parts[0].known(like)

    def label(self) -> str:
        """Return the factor and its part."""
        return f"{self.factor:g} * {self.parts[0].label()}"


class PerFrame(Operator):
    """The same measurement of every frame of a video or slice of a volume, (F, *) -> (F, *)."""

    kind = "per-frame"

    def __init__(self, part: Operator, frames: int) -> None:
        super().__init__(
            (frames, *part.in_shape), (frames, *part.out_shape), settings={"frames": frames}, parts=(part,)
        )
        if part.rows is not None:
            raise ValueError("an operator with parameters per item cannot be applied per frame; give shared ones.")
        self.differentiable = part.differentiable
        self.has_pinv = part.has_pinv

    def apply(self, x: Tensor) -> Tensor:
        return _unfold(self.parts[0](x.flatten(0, 1)), x)

    def pinv(self, y: Tensor) -> Tensor:
        """Return the pseudo-inverse of every frame."""
        return _unfold(self.parts[0].pinv(y.flatten(0, 1)), y)

    def known(self, like: Tensor) -> Tensor | None:
        """Return what is measured of every frame."""
        seen = self.parts[0].known(like.flatten(0, 1))
        return seen[None] if seen is not None and seen.ndim == like.ndim - 1 else seen

    def label(self) -> str:
        """Return its part."""
        return f"per frame: {self.parts[0].label()}"


class LinearPerFrame(LinearOperator):
    """A linear measurement of every frame of a video."""

    kind = "linear-per-frame"
    parts: tuple[LinearOperator]

    def __init__(self, part: LinearOperator, frames: int) -> None:
        PerFrame(part, frames)
        super().__init__(
            (frames, *part.in_shape), (frames, *part.out_shape), settings={"frames": frames}, parts=(part,)
        )

    def apply(self, x: Tensor) -> Tensor:
        return _unfold(self.parts[0](x.flatten(0, 1)), x)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return _unfold(self.parts[0].adjoint(y.flatten(0, 1)), y)

    known = PerFrame.known
    label = PerFrame.label


class SVDPerFrame(SVDOperator):
    """A measurement of every frame of a video whose decomposition is known; coefficients keep the axis of frames."""

    kind = "svd-per-frame"
    parts: tuple[SVDOperator]

    def __init__(self, part: SVDOperator, frames: int) -> None:
        PerFrame(part, frames)
        super().__init__(
            (frames, *part.in_shape), (frames, *part.out_shape), settings={"frames": frames}, parts=(part,)
        )
        self.cutoff = part.cutoff

    def apply(self, x: Tensor) -> Tensor:
        return _unfold(self.parts[0](x.flatten(0, 1)), x)

    def Vt(self, x: Tensor) -> Tensor:
        return _unfold(self.parts[0].Vt(x.flatten(0, 1)), x)

    def V(self, z: Tensor) -> Tensor:
        return _unfold(self.parts[0].V(z.flatten(0, 1)), z)

    def Ut(self, y: Tensor) -> Tensor:
        return _unfold(self.parts[0].Ut(y.flatten(0, 1)), y)

    def U(self, z: Tensor) -> Tensor:
        return _unfold(self.parts[0].U(z.flatten(0, 1)), z)

    def singulars(self, like: Tensor | None = None) -> Tensor:
        return self.parts[0].singulars(like)[:, None]

    known = PerFrame.known
    label = PerFrame.label


class TemporalAverage(LinearOperator):
    """The mean of every `length` frames in turn: a video (F, *) gives (F / length, *), as a long exposure does."""

    kind = "temporal-average"

    def __init__(self, in_shape: Shape, length: int) -> None:
        if length < 1 or in_shape[0] % length:
            raise ValueError(f"averages of {length} frames do not divide a video of {in_shape[0]} frames.")
        super().__init__(in_shape, (in_shape[0] // length, *in_shape[1:]), settings={"length": length})
        self.length = length

    def apply(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.length)).mean(2)

    def apply_adjoint(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.length, 1) / self.length

    def pinv(self, y: Tensor, *, iterations: int = 50, tol: float = 1e-6) -> Tensor:
        """Return every average repeated; nothing is iterated."""
        self._check(y, self.out_shape, "y")
        return y.repeat_interleave(self.length, 1)


def chain(*parts: Operator) -> Operator:
    """Return x -> last(... first(x)), linear where all parts are; chains within are laid flat."""
    flat: list[Operator] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, (Chain, LinearChain)) else (part,))
    if len(flat) == 1:
        return flat[0]
    linear = [part for part in flat if isinstance(part, LinearOperator)]
    return LinearChain(*linear) if len(linear) == len(flat) else Chain(*flat)


def stack(parts: Sequence[Operator]) -> Stack | LinearStack:
    """Return all measurements side by side, linear where all parts are."""
    linear = [part for part in parts if isinstance(part, LinearOperator)]
    return LinearStack(*linear) if len(linear) == len(parts) else Stack(*parts)


def scaled(part: Operator, factor: float) -> Operator:
    """Return the operator times a number."""
    from undiffuse.operators.diagonal import Identity

    if isinstance(part, SVDOperator):
        return Scaled(part, factor)
    return chain(part, Scaled(Identity(part.out_shape), factor))


def per_frame(part: Operator, frames: int) -> Operator:
    """Return the operator on every frame of a video or slice of a volume, with as much structure as the part has."""
    if isinstance(part, SVDOperator):
        return SVDPerFrame(part, frames)
    return LinearPerFrame(part, frames) if isinstance(part, LinearOperator) else PerFrame(part, frames)


def split(stacked: Operator, y: Tensor) -> list[Tensor]:
    """Return the measurement of each part of a stack, (B, *its out_shape)."""
    pieces = y.split([math.prod(part.out_shape) for part in stacked.parts], 1)
    return [piece.reshape(-1, *part.out_shape) for piece, part in zip(pieces, stacked.parts, strict=True)]


def _common_shape(parts: Sequence[Operator]) -> Shape:
    shapes = {part.in_shape for part in parts}
    if len(shapes) != 1:
        raise ValueError(f"a stack needs operators of one item shape; got {sorted(shapes)}.")
    return shapes.pop()


def _unfold(flat: Tensor, like: Tensor) -> Tensor:
    return flat.unflatten(0, like.shape[:2])
