"""Sources of features: what describes the cells of a picture. Each gives maps of one or more layers.

diffusion  inner blocks of a diffusion model (`undiffuse.tasks.features`)
dino       a DINO network (`undiffuse.tasks.match.dino`)
patch      raw pixels around each pixel: what needs no network
position   a code of the position alone: a control; what it adds to a feature is layout
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.models.model import Model
from undiffuse.tasks.features.encoder import FeatureEncoder
from undiffuse.tasks.match.dino import DinoFeatures
from undiffuse.tasks.match.frame import BLACK, Frame, Picture
from undiffuse.tasks.match.layers import correspondence_layers
from undiffuse.tasks.match.options import MatchOptions

_LARGEST = 256  # pixels of the longer side that raw patches see, where no model says how many
_FREQUENCY = 3.0  # of the position code: cos 3u, sin 3u tell every u in [-1, 1] from every other


class Source(Protocol):
    """What gives features."""

    def maps(self, picture: Picture, frame: Frame) -> dict[str, Tensor]:
        """Return maps (C, h, w) of the picture's canvas by layer, float32 on the CPU."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what they depend on, as plain JSON."""
        ...


class DiffusionFeatures:
    """Maps of inner blocks of a diffusion model, of a picture that was noised a little.

    One noise is shared by all pictures (and averaged over `options.draws`), so that what differs is the pictures.

    Args:
        model: A model of images.
        options: layers, t, draws, cond, size, batch_size and seed.

    Raises:
        ValueError: The model is not of images, or a layer is unknown or no map.
    """

    def __init__(self, model: Model, options: MatchOptions) -> None:
        self.model, self.size, self.times = model, read_size(model, options.size), options.times
        how: dict[str, Any] = {
            "draws": options.draws,
            "seed": options.seed,
            "cond": dict(options.cond) if options.cond else None,
        }
        how["batch_size"] = options.batch_size
        layers = options.layers
        if layers is None:
            every = FeatureEncoder(model, "all", options.times, **how)
            layers = correspondence_layers(every.names, every.shapes())
        self.encoder = FeatureEncoder(model, list(layers), options.times, **how)
        flat = [name for name, shape in self.encoder.layers.items() if len(shape) != 3]
        if flat:
            raise ValueError(f"layers {', '.join(flat)} give no maps (C, h, w), so there are no places to match.")

    def maps(self, picture: Picture, frame: Frame) -> dict[str, Tensor]:
        """Return the maps of all layers and times."""
        pixels = frame.canvas(picture.channels(self.model.spec.channels), self.size)
        return {name: part[0] for name, part in self.encoder.maps(pixels[None]).items()}

    def describe(self) -> dict[str, Any]:
        """Return layers with shapes, times, draws, condition and size."""
        encoder = self.encoder
        layers = {name: list(shape) for name, shape in encoder.layers.items()}
        return {
            "layers": layers,
            "t": list(self.times),
            "draws": encoder.draws,
            "cond": encoder.cond or "none: every condition's null",
            "size": list(self.size),
        }


class PatchFeatures:
    """Raw pixels: the patch around each pixel of the scaled canvas, black beyond its edges.

    Args:
        side: Of the patch in pixels, odd.
        size: Height and width of the scaled canvas; None: the picture's own, at most 256.
        channels: 1 or 3.
    """

    def __init__(self, side: int, size: tuple[int, int] | None = None, channels: int = 3) -> None:
        self.side, self.size, self.channels = side, size, channels

    def maps(self, picture: Picture, frame: Frame) -> dict[str, Tensor]:
        """Return {"patch": (C side side, h, w)}."""
        pixels = picture.channels(self.channels)
        return {"patch": raw_patches(frame.canvas(pixels, self.size or _at_most(frame, _LARGEST))[None], self.side)[0]}

    def describe(self) -> dict[str, Any]:
        """Return the side and the size."""
        return {"side": self.side, "size": None if self.size is None else list(self.size)}


class PositionFeatures:
    """Where a cell lies, and nothing else: cos 3u, sin 3u of its x and y, u from -1 to 1 across the canvas.

    Args:
        size: Rows and columns of cells; None: those of the picture, at most 64.
    """

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.size = size

    def maps(self, picture: Picture, frame: Frame) -> dict[str, Tensor]:
        """Return {"position": (4, h, w)}."""
        return {"position": position_code(self.size or _at_most(frame, 64))}

    def describe(self) -> dict[str, Any]:
        """Return the number of cells."""
        return {"size": None if self.size is None else list(self.size)}


def raw_patches(x: Tensor, side: int) -> Tensor:
    """Return the patches of `side` x `side` pixels around each pixel, (B, C side side, H, W), black beyond the edge."""
    padded = F.pad(x, (side // 2,) * 4, value=BLACK)
    return F.unfold(padded, side).unflatten(2, x.shape[2:])


def position_code(size: tuple[int, int]) -> Tensor:
    """Return cos 3u and sin 3u of the coordinates of cells, u in [-1, 1], (4, h, w)."""
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in size]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([wave(_FREQUENCY * u) for u in (x, y) for wave in (torch.cos, torch.sin)])


def make_sources(model: Model | None, options: MatchOptions, device: torch.device | str = "cpu") -> dict[str, Source]:
    """Return the sources that options ask for, by name; `device` is where DINO runs if there is no model.

    Raises:
        ValueError: Diffusion features without a model, or one that is not of images.
        CheckpointError: The DINO network cannot be read.
    """
    if model is not None and model.spec.kind != "image":
        raise ValueError(f"pictures are matched and this model makes {model.spec.kind} data; use a model of images.")
    if model is None and "diffusion" in options.sources:
        raise ValueError("diffusion features need a model; give one, or other features: dino, patch, position.")
    size = canvas_size(model, options.size)
    channels = 3 if model is None else model.spec.channels
    place = device if model is None else model.device
    found: dict[str, Source] = {}
    for name in options.sources:
        if name == "diffusion":
            assert model is not None
            found[name] = DiffusionFeatures(model, options)
        elif name == "dino":
            assert options.dino is not None
            found[name] = DinoFeatures(options.dino, options.dino_size, place)
        else:
            found[name] = PatchFeatures(options.patch, size, channels) if name == "patch" else PositionFeatures(size)
    return found


def read_size(model: Model, size: int | Sequence[int] | None) -> tuple[int, int]:
    """Return height and width in pixels at which a model sees pictures; errors as for `check_size`."""
    return check_size(model.spec.shape[1:] if size is None else size)


def canvas_size(model: Model | None, size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return height and width in pixels to which pictures are scaled; None where neither a model nor a size says."""
    if model is not None:
        return read_size(model, size)
    return None if size is None else check_size(size)


def check_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width.

    Raises:
        ValueError: Not one or two numbers of at least 1.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"size={size}; expected one side in pixels, or height and width.")
    return int(pair[0]), int(pair[1])


def _at_most(frame: Frame, longest: int) -> tuple[int, int]:
    """Return the size of a canvas, scaled down to a longest side."""
    shrink = max(1.0, max(frame.rows, frame.columns) / longest)
    return ceil(frame.rows / shrink), ceil(frame.columns / shrink)
