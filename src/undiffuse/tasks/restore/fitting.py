"""Making prior and measurement meet: sizes (tiles, a frame around small pictures), units, and what is missing in y."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.data.pairs import SOURCE
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.each_slice import EachSlice
from undiffuse.denoisers.tiled import Tiled
from undiffuse.operators.base import LinearOperator, Operator
from undiffuse.operators.compose import chain
from undiffuse.operators.diagonal import Identity, Mask
from undiffuse.operators.noise import GaussianNoise, NoiseModel, NoNoise
from undiffuse.tasks.restore.latent import Decoded
from undiffuse.tasks.restore.prior import Prior


@dataclass(frozen=True)
class Fitted:
    """A prior and a measurement that fit each other.

    Args:
        prior: On the states that are sampled.
        operator: On those states.
        y: (B, *operator.out_shape).
        noise_std: Model units, one number.
        noise_model: Where the noise is not Gaussian.
        window: Where the data lie in a larger state, of pictures smaller than the model's; None: everywhere.
        warnings: For people.
    """

    prior: Prior
    operator: Operator
    y: Tensor
    noise_std: float
    noise_model: NoiseModel | None = None
    window: tuple[Any, ...] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def pixels(self) -> Operator:
        """The operator on data, the frame around small pictures included."""
        return self.operator.pixels if isinstance(self.operator, Decoded) else self.operator

    def data(self, x: Tensor) -> Tensor:
        """Return the data (B, *shape) of states: decoded, and without the frame around small pictures."""
        if self.prior.codec is not None:
            x = self.prior.codec.decode(x.float()).to(x.dtype)
        return x if self.window is None else x[(..., *self.window)]

    def states(self, x: Tensor) -> Tensor:
        """Return the states of data (B, *shape): with zeros around small pictures, and encoded.

        Raises:
            ValueError: They are not what the operator takes.
        """
        whole = x.new_zeros(len(x), *self.pixels.in_shape)
        inside = (...,) if self.window is None else (..., *self.window)
        if x.shape != whole[inside].shape:
            raise ValueError(
                f"x_init has shape {tuple(x.shape)}; expected items that the operator takes, "
                f"{tuple(whole[inside].shape[1:])}."
            )
        whole[inside] = x
        return whole if self.prior.codec is None else self.prior.codec.encode(whole.float()).to(x.dtype)


class Crop(LinearOperator):
    """The inner part of a larger state: pictures smaller than the model's are seen as its middle.

    Args:
        in_shape: Of the state.
        size: Of the picture, on the last axes.
    """

    kind = "crop"

    def __init__(self, in_shape: tuple[int, ...], size: tuple[int, ...]) -> None:
        whole = tuple(in_shape[len(in_shape) - len(size) :])
        starts = [(a - b) // 2 for a, b in zip(whole, size, strict=True)]
        self.window: tuple[Any, ...] = tuple(slice(a, a + part) for a, part in zip(starts, size, strict=True))
        super().__init__(in_shape, (*in_shape[: len(in_shape) - len(size)], *size), settings={"size": list(size)})

    def apply(self, x: Tensor) -> Tensor:
        """Return the inner part."""
        return x[(..., *self.window)]

    def apply_adjoint(self, y: Tensor) -> Tensor:
        """Return y in a frame of zeros."""
        x = y.new_zeros(len(y), *self.in_shape)
        x[(..., *self.window)] = y
        return x

    def pinv(self, y: Tensor, *, iterations: int = 50, tol: float = 1e-6) -> Tensor:
        """Return y in a frame of zeros."""
        return self.apply_adjoint(y)


def fit(
    prior: Prior,
    y: Tensor,
    operator: Operator,
    noise_std: float | None,
    noise: NoiseModel | None,
    tile: int | None,
    overlap: int | None,
) -> Fitted:
    """Return prior and measurement fitted to each other.

    Args:
        prior: Of the model.
        y: (B, *operator.out_shape), or one measurement without B.
        operator: On data.
        noise_std: Model units; None: from `noise`, else 0.
        noise: The noise's law.
        tile: Side of tiles in pixels; None: that of the model where the picture is larger; 0: no tiles.
        overlap: Of tiles, in pixels; None: a quarter of their side. Of latents: rounded up to whole ones.

    Raises:
        ValueError: Shapes, units or numbers that do not fit.
    """
    y = checked(y, operator, prior)
    model = None if noise is None or isinstance(noise, GaussianNoise | NoNoise) else noise
    std, found = _noise_std(noise_std, noise, y)
    y, operator = _known_part(y, operator, model)
    if not operator.linear:
        same = operator.as_linear(y)
        if same is not None:
            operator, y = same
    fitted = _sized(Fitted(prior, operator, operator.measured(y), std, model, warnings=tuple(found)), tile, overlap)
    if fitted.prior.codec is not None:
        fitted = replace(fitted, operator=Decoded(fitted.operator, fitted.prior.codec))
    return fitted


def checked(y: Tensor, operator: Operator, prior: Prior) -> Tensor:
    """Return y with a batch axis, in the prior's dtype and on its device.

    Raises:
        ValueError: It is complex, of another shape, or not finite.
    """
    if y.is_complex():
        raise ValueError("y is complex; operators here are real: give real and imaginary parts as two channels.")
    y = y if y.is_floating_point() else y.float()
    if tuple(y.shape) == operator.out_shape:
        y = y[None]
    if tuple(y.shape[1:]) != operator.out_shape:
        raise ValueError(
            f"y has shape {tuple(y.shape)}; expected (B, {', '.join(map(str, operator.out_shape))}) of the operator "
            f"{operator.describe()}."
        )
    if operator.rows not in (None, len(y)):
        raise ValueError(
            f"y has {len(y)} items and the operator {operator.describe()} parameters for {operator.rows}; choose its "
            "rows with take()."
        )
    bad = int((~y.isfinite()).sum())
    if bad:
        raise ValueError(f"y has {bad} values that are not finite; set them to 0 and leave them out by a mask.")
    return y.to(prior.device, prior.dtype)


def _noise_std(noise_std: float | None, noise: NoiseModel | None, y: Tensor) -> tuple[float, list[str]]:
    """Return one number for the noise, and warnings."""
    if noise_std is not None and not noise_std >= 0:
        raise ValueError(
            f"noise_std={noise_std} is negative; give a standard deviation in model units, where a picture spans "
            "[-1, 1]: 0.02 of the range [0, 1] is 0.04."
        )
    if noise_std is not None and noise is not None:
        raise ValueError("noise_std and noise both say what disturbs y; give one of them.")
    if noise is not None:
        return float(noise.std_like(y).double().square().mean().sqrt()), []
    std = noise_std or 0.0
    if std > 2:
        return std, [
            f"noise_std={std:g} is more than a picture's whole range [-1, 1] in model units: are these units of "
            "[0, 255]? Divide by 127.5."
        ]
    return std, []


def _known_part(y: Tensor, operator: Operator, noise: NoiseModel | None) -> tuple[Tensor, Operator]:
    """Leave out what the noise has destroyed, such as the atoms of salt and pepper."""
    known = None if noise is None else noise.known(y)
    if known is None or bool(known.all()):
        return y, operator
    kept = Mask(operator.out_shape, known.to(y.dtype))
    return torch.where(known, y, 0.0), kept if _is_identity(operator) else chain(operator, kept)


def _is_identity(operator: Operator) -> bool:
    from undiffuse.operators.diagonal import Identity

    return isinstance(operator, Identity)


def _sized(fitted: Fitted, tile: int | None, overlap: int | None) -> Fitted:
    """Put a frame around pictures smaller than the model's, tiles under larger ones, and slices into volumes."""
    prior, shape = fitted.prior, fitted.operator.in_shape
    wanted = prior.data_shape
    kind = "image" if prior.spec is None else prior.spec.kind
    slices = shape[0] if kind == "image" and len(shape) == len(wanted) + 1 else None
    item = shape if slices is None else shape[1:]
    if item == wanted and tile:
        raise ValueError(f"tile={tile} but the picture {item} is as large as the model's; leave tile out.")
    if shape == wanted:
        return fitted
    if kind != "image" or len(item) != len(wanted) or item[0] != wanted[0]:
        volumes = f" A volume is its slices, (Z, {', '.join(map(str, wanted))})." if kind == "image" else ""
        raise ValueError(
            f"the operator {fitted.operator.describe()} takes items of shape {shape}; the model's are {wanted}. "
            f"Channels must agree, and only pictures may differ in height and width.{volumes}"
        )
    unit = _unit(prior, slices, tile)
    side = wanted[1:] if not tile else (tile, tile)
    size = tuple(-(-max(whole, part) // unit) * unit for whole, part in zip(item[1:], side, strict=True))
    window, operator, state = None, fitted.operator, (*shape[: -len(size)], *size)
    if size != item[1:]:
        crop: Any = Crop(state, item[1:])
        window, operator = crop.window, _framed(crop, operator)
    denoiser = prior.denoiser
    if tile != 0 and size != side:
        denoiser = Tiled(denoiser, tuple(part // unit for part in side), _shared(min(side), overlap, unit))
        denoiser.places(tuple(whole // unit for whole in size))
    if slices is not None:
        denoiser = _of_slices(denoiser, slices)
    if prior.codec is not None:
        state = prior.codec.code_shape(state)
    return replace(fitted, prior=replace(prior, denoiser=denoiser, shape=state), operator=operator, window=window)


def _unit(prior: Prior, slices: int | None, tile: int | None) -> int:
    """Return how many pixels one element of a state stands for, on each axis.

    Raises:
        ValueError: A latent model was given slices, or tiles that are no whole latents.
    """
    if prior.codec is None:
        return 1
    if slices is not None:
        raise ValueError("a latent model restores pictures, not volumes; give the slices as the batch.")
    unit = prior.codec.factor
    if tile and tile % unit:
        raise ValueError(f"tile={tile} must be a multiple of {unit}, the pixels that one latent stands for.")
    return unit


def _shared(side: int, overlap: int | None, unit: int) -> int:
    """Return how many elements of a state neighbouring tiles share.

    Raises:
        ValueError: As many as a tile of a latent model has.
    """
    if overlap is None:
        return min(-(-(side // 4) // unit), side // unit - 1)
    if unit > 1 and overlap > side - unit:
        raise ValueError(
            f"overlap={overlap} must be at most {side - unit}: tiles of {side} pixels in latents of {unit}."
        )
    return -(-overlap // unit)


def _of_slices(denoiser: Denoiser, slices: int) -> Denoiser:
    """Return the prior of volumes whose slices say nothing of each other."""
    if denoiser.spec is not None and SOURCE in denoiser.spec.conditions:
        raise ValueError("a model trained with given pictures restores slices one by one: give them as the batch.")
    return EachSlice(denoiser, slices)


def _framed(crop: Crop, operator: Operator) -> Operator:
    """Return the operator on the larger state; a mask stays a mask, with nothing known in the frame."""
    if isinstance(operator, Identity):
        operator = Mask(operator.in_shape, torch.ones(operator.in_shape))
    if isinstance(operator, Mask):
        mask = operator.mask
        lead = [1] * (len(operator.in_shape) + 1 - mask.ndim)
        whole = mask.reshape(*lead, *mask.shape).expand(-1, *operator.in_shape)
        return Mask(crop.in_shape, crop.apply_adjoint(whole))
    return chain(crop, operator)


def measured_y(fitted: Fitted, y: Tensor) -> Tensor:
    """Return measurements where the operator stands now: a mask's are as large as the state."""
    if isinstance(fitted.pixels, Mask) and tuple(y.shape[1:]) != fitted.pixels.out_shape:
        whole = y.new_zeros(len(y), *fitted.pixels.out_shape)
        assert fitted.window is not None
        whole[(..., *fitted.window)] = y
        return whole
    return y
