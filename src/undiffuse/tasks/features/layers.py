"""The layers of a model that features can be read from: names, shapes, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.models.model import Model
from undiffuse.networks.block_maps import block_map
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.hooks import capture
from undiffuse.process.times import Time
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean

Layers = str | Sequence[str]
AUTO, ALL = "auto", "all"
_DEPTH = 0.7  # of the way through the blocks: Mukhopadhyay et al. find block 24 of 37; here it must also fit few blocks
_HELD_BY = ("backbone", "transformer", "denoiser", "flow_map")
_ENDS = ("in", "out", "variance", "embedding")


class Reader:
    """Reads maps of layers from one call of a denoiser.

    The layers of a network are its blocks. A denoiser without one has its answer: "mean", of tokens "probabilities",
    and "responsibilities" of the components of a mixture.

    Args:
        denoiser: Asked for its answer.
        spec: What its states are, where known.
        inputs: Read what goes into blocks instead of what comes out.

    Raises:
        ValueError: `inputs` of a denoiser without blocks.
    """

    def __init__(self, denoiser: Denoiser, spec: DataSpec | None, *, inputs: bool = False) -> None:
        self.denoiser, self.spec, self.inputs = denoiser, spec, inputs
        self.network = network_of(denoiser)
        if inputs and self.network is None:
            raise ValueError(f"{type(denoiser).__name__} has no blocks, so there are no inputs of them; leave it out.")

    @property
    def names(self) -> list[str]:
        """Names of all layers, in order of execution."""
        if self.network is not None:
            return list(self._blocks(self.network))
        answer = "probabilities" if self._is_discrete else "mean"
        return [answer, "responsibilities"] if isinstance(self.denoiser, MixtureDenoiser) else [answer]

    @torch.no_grad()
    def shapes(self, x: Tensor, t: Time, cond: Embedded | None) -> dict[str, tuple[int, ...]]:
        """Return the shapes (C, *) of the maps of all layers that one call for a state `x` (1, *) reaches."""
        return {name: tuple(value.shape[1:]) for name, value in self._read(x, t, cond, self.names, False).items()}

    @torch.no_grad()
    def read(self, x: Tensor, t: Time, cond: Embedded | None, names: Sequence[str]) -> dict[str, Tensor]:
        """Return float32 maps (B, C, *) by name; nothing behind the last of `names` is computed."""
        return self._read(x, t, cond, names, True)

    def _read(self, x: Tensor, t: Time, cond: Embedded | None, names: Sequence[str], early: bool) -> dict[str, Tensor]:
        network, sizes = self.network, self._sizes(x)
        if network is None:
            answers = self._answers(x, t, cond)
            return {name: block_map(nn.Identity(), name, answers[name], len(x), sizes).float() for name in names}
        with capture(network, names, stop_when_full=early, inputs=self.inputs) as taken:
            self.denoiser(x, t, cond)
        maps = {name: value for name, value in taken.items() if isinstance(value, Tensor) and value.is_floating_point()}
        ordered = [name for name in names if name in maps]
        return {name: block_map(network, name, maps[name], len(x), sizes).float() for name in ordered}

    def _answers(self, x: Tensor, t: Time, cond: Embedded | None) -> dict[str, Tensor]:
        post = self.denoiser(x, t, cond)
        if isinstance(post, CategoricalPosterior):
            answers = {"probabilities": post.logits.softmax(-1).movedim(-1, 1)}
        else:
            answers = {"mean": post.mean}
        if isinstance(self.denoiser, MixtureDenoiser):
            answers["responsibilities"] = self.denoiser.responsibilities(x, t, cond)
        return answers

    @property
    def _is_discrete(self) -> bool:
        return self.spec is not None and self.spec.is_discrete

    def _sizes(self, x: Tensor) -> tuple[int, ...]:
        """Return the spatial sizes of a state (B, *), or the grid of its tokens."""
        if not x.is_floating_point():
            grid = () if self.spec is None else self.spec.grid
            return tuple(grid) if grid else tuple(x.shape[1:])
        channels = 0 if self.spec is None else self.spec.channel_axis
        return tuple(x.shape[channels + 2 :])

    def _blocks(self, network: nn.Module) -> Mapping[str, nn.Module]:
        blocks = getattr(network, "blocks", None)
        if isinstance(blocks, Mapping):
            return blocks
        return {name: module for name, module in network.named_modules() if name}


def network_of(denoiser: nn.Module) -> nn.Module | None:
    """Return the network inside a denoiser, through wrappers and flow maps; None where there is none."""
    for name in _HELD_BY:
        inner = getattr(denoiser, name, None)
        if isinstance(inner, nn.Module):
            return inner if name in ("backbone", "transformer") else network_of(inner)
    return None


def layers_of(model: Model | Denoiser, x: Tensor | None = None, *, inputs: bool = False) -> dict[str, tuple[int, ...]]:
    """Return the layers of a model in order of execution: name -> shape (C, *) of its map. Costs one call.

    Args:
        model: A model, or a denoiser.
        x: An item in model units (1, *) that says the size; None takes that of the spec.
        inputs: Of what goes into blocks.

    Raises:
        ValueError: A denoiser without a spec, and no item.
    """
    from undiffuse.tasks.features.encoder import FeatureEncoder

    return FeatureEncoder(model, ALL, inputs=inputs).shapes(x)


def choose_layers(asked: Layers, known: Sequence[str], shapes: Any = None) -> tuple[str, ...]:
    """Return the layers that are asked for, in order of execution.

    "auto" is one block at 0.7 of the depth, "all" every layer. Blocks at the ends, between the levels of a U-Net,
    inside other blocks and over frames do not count for "auto"; a search with labels (`probe_search`) chooses better.

    Args:
        asked: "auto", "all", a name, or several.
        known: All names.
        shapes: Name -> shape, or a function that returns them, for the message.

    Raises:
        ValueError: No name, one that is unknown or one given twice; the message lists names with shapes.
    """
    if asked == ALL:
        return tuple(known)
    if asked == AUTO:
        return (_automatic(known),)
    names = [asked] if isinstance(asked, str) else list(asked)
    unknown = next((name for name in names if name not in known), None)
    if not names or unknown is not None or len(set(names)) < len(names):
        what = "is empty" if not names else "names a layer twice"
        what = what if unknown is None else f"has {unknown!r}, which does not exist.{did_you_mean(unknown, known)}"
        listed = shapes() if callable(shapes) else dict.fromkeys(known)
        shown = ", ".join(name if shape is None else f"{name} {describe(shape)}" for name, shape in listed.items())
        raise ValueError(f"layers {what} The layers are {shown}; or say auto or all.")
    return tuple(sorted(names, key=list(known).index))


def describe(shape: Sequence[int]) -> str:
    """Return a shape as people write it: "64 x 4 x 4"."""
    return " x ".join(map(str, shape))


def _automatic(known: Sequence[str]) -> str:
    main = [name for name in known if name not in _ENDS and not name.startswith(("reduce", "enlarge"))]
    # "down0.0" is a block of a level; "down0.resnet0", "mid.temporal" are parts of blocks.
    main = [name for name in main if "." not in name or name.rpartition(".")[2].isdigit()] or list(known)
    return main[ceil(_DEPTH * (len(main) - 1))]
