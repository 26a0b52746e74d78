r"""Geometric augmentation that does not leak: each item is transformed by chance, and the network is told how.

The parameters of the transformation go to the network as the vector condition "augment", zeros where nothing was
done. Sampling with zeros (`null="zero"`) asks for untransformed data, so a model may train on flipped and turned
pictures and never draw one. All transformations of an item become one matrix, applied by one bilinear look-up that
reflects at the borders; an item that drew none keeps its bits. Everything is a function of (seed, item number).

| name | parameters told | law |
| --- | --- | --- |
| xflip, yflip | 1 each: 0 or 1 | a fair coin |
| turn | 2: of 4 quarter turns | uniform |
| scale | 1: log2 of the factor | normal, 0.2 |
| rotate | 2: cos - 1, sin | uniform on the circle |
| stretch | 2: log2 of the factor, times cos and sin of twice its direction | normal, 0.2; every second along an axis |
| translate | 2: share of width and height | normal, 0.125 |

Each one is applied with probability p, independently.

Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix F.2,
    arXiv:2206.00364. Ours differs in this: values between pixels are bilinear (theirs: a wavelet filter on an enlarged
    picture), the flip along x has probability p like all others, and stretching is told by twice its direction, since
    half a turn is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.errors import ConfigError
from undiffuse.noise import NoiseSource
from undiffuse.spec import ConditionSpec, DataSpec

if TYPE_CHECKING:
    from undiffuse.data.options import DataOptions

CONDITION = "augment"
WIDTHS = {"xflip": 1, "yflip": 1, "turn": 2, "scale": 1, "rotate": 2, "stretch": 2, "translate": 2}
"""Parameters of each transformation, in the order in which they are applied and told."""

_SCALE_STD, _STRETCH_STD, _SHIFT_STD = 0.2, 0.2, 0.125  # log2, log2, share of the side; table 6 of the paper
_ON_AXIS = 0.5  # share of stretches along an axis


@dataclass(frozen=True)
class Transform:
    """What is done to each of N items; all float64, zeros for nothing.

    Args:
        xflip, yflip: 1 where mirrored, (N,).
        turn: Quarter turns counter-clockwise, 0 to 3, (N,).
        scale: log2 of the enlargement, (N,).
        rotate: Angle in radians, (N,).
        stretch: log2 of the stretch along `along`, (N,); the other direction shrinks as much.
        along: Direction of the stretch in radians, (N,).
        shift: Shares of width and height to move right and down by, (N, 2).
    """

    xflip: Tensor
    yflip: Tensor
    turn: Tensor
    scale: Tensor
    rotate: Tensor
    stretch: Tensor
    along: Tensor
    shift: Tensor

    @classmethod
    def none(cls, count: int, device: torch.device | str = "cpu", **given: Tensor) -> Transform:
        """Return one that does nothing to `count` items but for what is `given`."""
        zero = torch.zeros(count, dtype=torch.float64, device=device)
        fields: dict[str, Tensor] = dict.fromkeys(
            ("xflip", "yflip", "turn", "scale", "rotate", "stretch", "along"), zero
        )
        return cls(**{**fields, "shift": zero[:, None].expand(-1, 2), **given})

    def told(self) -> dict[str, Tensor]:
        """Return what the network is told of each transformation, (N, width) by name."""
        quarter = _turned(self.turn, torch.tensor([1.0, 0.0], dtype=torch.float64, device=self.turn.device))
        parts = {
            "xflip": self.xflip[:, None],
            "yflip": self.yflip[:, None],
            "turn": torch.stack((quarter[:, 0] - 1.0, quarter[:, 1]), -1),
            "scale": self.scale[:, None],
            "rotate": torch.stack((self.rotate.cos() - 1.0, self.rotate.sin()), -1),
            "stretch": self.stretch[:, None] * torch.stack(((2 * self.along).cos(), (2 * self.along).sin()), -1),
            "translate": self.shift,
        }
        return parts

    def matrix(self, height: int, width: int) -> Tensor:
        """Return the map from places in the result to places in the source, float64 (N, 2, 3).

        Places are (x, y, 1) in pixels from the centre, y downwards. The order on the picture is that of `WIDTHS`.
        """
        one, zero = torch.ones_like(self.scale), torch.zeros_like(self.scale)
        mirror = _matrix(1 - 2 * self.xflip, zero, zero, 1 - 2 * self.yflip)
        axes = torch.eye(2, dtype=torch.float64, device=one.device)
        quarter = torch.stack([_turned(self.turn, axis) for axis in axes], -1)
        shrink = torch.exp2(-self.scale)[:, None, None]
        stretch = _rotation(self.along) @ _matrix(torch.exp2(-self.stretch), zero, zero, torch.exp2(self.stretch))
        linear = mirror @ quarter @ (shrink * _rotation(self.rotate)) @ stretch @ _rotation(-self.along)
        shift = self.shift * self.shift.new_tensor((width, height))
        return torch.cat((linear, -linear @ shift[..., None]), -1)


@dataclass(frozen=True)
class Augment:
    """Draws and applies transformations.

    Args:
        probability: Of each transformation.
        names: Which of `WIDTHS`.

    Raises:
        ValueError: An unknown name, or a probability out of range.
    """

    probability: float
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in WIDTHS]
        if unknown or not self.names or not 0 < self.probability <= 1:
            raise ValueError(
                f"augmentation with probability {self.probability} of {', '.join(self.names) or 'nothing'}; expected "
                f"(0, 1] and some of {', '.join(WIDTHS)}."
            )

    @property
    def condition(self) -> ConditionSpec:
        """The condition that tells the network: zeros are no augmentation, and it is never dropped."""
        return ConditionSpec(kind="vector", width=sum(WIDTHS[name] for name in self.names), null="zero")

    def draw(self, noise: NoiseSource) -> tuple[Transform, Tensor]:
        """Return the transformations of the items of `noise`, and which items have any, bool (N,)."""
        names = tuple(WIDTHS)
        draws = noise.uniform("augment", 0, (2 * len(names) + 1,))  # whether each applies, then how
        normal = noise.normal("augment", 1, (4,), torch.float64)
        enabled = draws.new_tensor([name in self.names for name in names])
        applied = (draws[:, : len(names)] < self.probability) * enabled
        on = dict(zip(names, applied.unbind(1), strict=True))
        how = dict(zip(names, draws[:, len(names) : -1].unbind(1), strict=True))
        direction = torch.where(draws[:, -1] < _ON_AXIS, 0.0, 2 * math.pi * how["stretch"])
        found = Transform(
            xflip=on["xflip"] * (how["xflip"] < 0.5),
            yflip=on["yflip"] * (how["yflip"] < 0.5),
            turn=on["turn"] * (4 * how["turn"]).floor(),
            scale=on["scale"] * _SCALE_STD * normal[:, 0],
            rotate=on["rotate"] * math.pi * (2 * how["rotate"] - 1),
            stretch=on["stretch"] * _STRETCH_STD * normal[:, 1],
            along=on["stretch"] * direction,
            shift=on["translate"][:, None] * _SHIFT_STD * normal[:, 2:],
        )
        told = torch.cat(list(found.told().values()), 1)
        return found, (told != 0).any(1)

    def __call__(self, batch: dict[str, Any], noise: NoiseSource, maps: Sequence[str] = ()) -> dict[str, Any]:
        """Return the batch with "x" (N, C, H, W) or (N, F, C, H, W) transformed, and the parameters in "cond".

        Args:
            batch: "x" in model units, "cond".
            noise: Of N rows.
            maps: Conditions that lie over the data and are transformed alike, such as the source of a pair.

        Raises:
            ConfigError: Quarter turns of items that are not square.
        """
        found, changed = self.draw(noise)
        x: Tensor = batch["x"]
        if "turn" in self.names and x.shape[-1] != x.shape[-2]:
            raise ConfigError(
                f"data.augmentations has turn, but items of {x.shape[-2]} x {x.shape[-1]} pixels are not square; leave "
                "turn out."
            )
        told = found.told()
        cond = dict(batch.get("cond") or {})
        for name in maps:
            if name in cond:
                cond[name] = _transformed(cond[name], found, changed)
        cond[CONDITION] = torch.cat([told[name] for name in WIDTHS if name in self.names], 1).to(x.dtype)
        return {**batch, "x": _transformed(x, found, changed), "cond": cond}


def make_augment(options: DataOptions, spec: DataSpec) -> Augment | None:
    """Return what `data.augment` asks for, None for 0.

    Raises:
        ConfigError: The data have no pixels to move, are not square where quarter turns are asked for, or the data set
            has a condition of that name.
    """
    if not options.augment:
        return None
    if spec.kind not in ("image", "video"):
        raise ConfigError(f"data.augment moves the pixels of images and video; this is {spec.noun}. Set it to 0.")
    oblong = [size for size in (*spec.sizes, spec.shape[-2:]) if size[0] != size[1]]
    if "turn" in options.augmentations and oblong:
        size = " x ".join(map(str, oblong[0]))
        raise ConfigError(f"data.augmentations has 'turn', but pictures of {size} pixels are not square; leave it out.")
    if CONDITION in spec.cond:
        raise ConfigError(f"the data have a condition {CONDITION!r} of their own; rename it, or set data.augment=0.")
    return Augment(options.augment, tuple(name for name in WIDTHS if name in options.augmentations))


def augmented_spec(spec: DataSpec, options: DataOptions) -> DataSpec:
    """Return the spec of the model: that of the data, with the condition "augment" where there is one."""
    augment = make_augment(options, spec)
    return spec if augment is None else replace(spec, cond={**spec.cond, CONDITION: augment.condition})


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """Look up each pixel of the result at its place in the source.

    Args:
        x: (N, C, H, W), or (N, F, C, H, W), all frames alike.
        matrix: (N, 2, 3); see `Transform.matrix`. Places outside are reflected at the outermost pixels.

    Returns:
        The same shape; exact, bit for bit, where places are whole pixels (bilinear in between).
    """
    height, width = x.shape[-2:]
    flat = x.reshape(len(x), -1, height * width)
    across, down = _places(matrix, height, width)
    left, top = across.floor().clamp_max(max(width - 2, 0)), down.floor().clamp_max(max(height - 2, 0))
    right_share, lower_share = (across - left)[:, None].to(x.dtype), (down - top)[:, None].to(x.dtype)
    right, below = (left + 1).clamp_max(width - 1), (top + 1).clamp_max(height - 1)

    def at(row: Tensor, column: Tensor) -> Tensor:
        return flat.gather(2, (row * width + column).long()[:, None].expand(-1, flat.shape[1], -1))

    upper = at(top, left) * (1 - right_share) + at(top, right) * right_share
    lower = at(below, left) * (1 - right_share) + at(below, right) * right_share
    return (upper * (1 - lower_share) + lower * lower_share).view(x.shape)


def _places(matrix: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return column and row in the source of each pixel, float64 (N, H * W) each, reflected into it."""
    columns = torch.arange(width, dtype=torch.float64, device=matrix.device) - (width - 1) / 2
    rows = torch.arange(height, dtype=torch.float64, device=matrix.device) - (height - 1) / 2
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    found = matrix @ torch.stack((x.flatten(), y.flatten(), torch.ones_like(x).flatten()))
    return _reflect(found[:, 0] + (width - 1) / 2, width), _reflect(found[:, 1] + (height - 1) / 2, height)


def _reflect(place: Tensor, size: int) -> Tensor:
    if size == 1:
        return torch.zeros_like(place)
    period = 2.0 * (size - 1)
    place = (place * 2.0**20).round() * 2.0**-20  # whole pixels stay whole after cosines and products
    folded = place.remainder(period)
    return torch.minimum(folded, period - folded)


def _transformed(x: Tensor, found: Transform, changed: Tensor) -> Tensor:
    moved = warp(x, found.matrix(*x.shape[-2:]))
    return torch.where(changed.view(-1, *[1] * (x.ndim - 1)), moved, x)


def _turned(quarters: Tensor, vector: Tensor) -> Tensor:
    """Turn a vector (2,) by each number of quarter turns, (N, 2), exactly."""
    x, y = vector
    turns = torch.stack((torch.stack((x, y)), torch.stack((-y, x)), torch.stack((-x, -y)), torch.stack((y, -x))))
    return turns[quarters.long()]


def _matrix(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.stack((torch.stack((a, b), -1), torch.stack((c, d), -1)), -2)


def _rotation(angle: Tensor) -> Tensor:
    return _matrix(angle.cos(), -angle.sin(), angle.sin(), angle.cos())
