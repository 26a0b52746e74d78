"""From options and a `DataSpec` to a network."""

from __future__ import annotations

import torch

from undiffuse.networks.backbone import Backbone
from undiffuse.networks.mlp import MLP
from undiffuse.networks.options import MLPOptions, NetworkOptions, TransformerOptions, UNetOptions
from undiffuse.networks.transformer import Transformer
from undiffuse.networks.unet import UNet
from undiffuse.spec import DataSpec

_SPATIAL_AXES = {"signal": 1, "image": 2, "video": 2, "volume": 3}
_KINDS: dict[str, tuple[str, ...]] = {"mlp": ("vector",), "unet": tuple(_SPATIAL_AXES), "transformer": ("tokens",)}


def build_network(options: NetworkOptions, spec: DataSpec, *, states: int | None = None, seed: int = 0) -> Backbone:
    """Return a freshly initialised network, on the CPU, for the data that `spec` describes.

    Conditioners follow the spec: "label" where it has classes, one vector conditioner per entry of `cond`.

    Args:
        options: Which network, and its size; kept as `network.options`.
        spec: Kind and shape of the data.
        states: Tokens only: number of input tokens, K (default) or K + 1 with a mask.
        seed: Seed of the initial weights; the global generator is neither read nor changed.

    Raises:
        ValueError: The network does not fit the kind of data.
    """
    if spec.kind not in _KINDS[options.kind]:
        fitting = [kind for kind, served in _KINDS.items() if spec.kind in served]
        raise ValueError(
            f"model={options.kind} is made for {' / '.join(_KINDS[options.kind])} data, but this is {spec.kind} data; "
            f"choose model={' or '.join(fitting)}."
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        network = _construct(options, spec, states)
    network.options = options
    return network


def _construct(options: NetworkOptions, spec: DataSpec, states: int | None) -> Backbone:
    classes, vectors = len(spec.classes), {name: part.width for name, part in spec.cond.items()}
    if isinstance(options, MLPOptions):
        return MLP(spec.channels, width=options.width, depth=options.depth, classes=classes, vectors=vectors)
    if isinstance(options, UNetOptions):
        _check_temporal(options, spec)
        return UNet(_SPATIAL_AXES[spec.kind], spec.channels, options, classes=classes, vectors=vectors)
    return _transformer(options, spec, states)


def _transformer(options: TransformerOptions, spec: DataSpec, states: int | None) -> Transformer:
    kinds = spec.categories
    states = kinds if states is None else states
    if not kinds or states not in (kinds, kinds + 1):
        raise ValueError(
            f"states={states} but the vocabulary has {kinds} tokens; give a vocabulary, and states={kinds} or, "
            f"with a mask, {kinds + 1}."
        )
    return Transformer(
        kinds,
        states,
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        time_dependent=options.time_dependent,
        dropout=options.dropout,
        neighbours=options.neighbours,
        classes=len(spec.classes),
        vectors={name: part.width for name, part in spec.cond.items()},
    )


def _check_temporal(options: UNetOptions, spec: DataSpec) -> None:
    if options.temporal and spec.kind != "video":
        raise ValueError(f"model.temporal is for video, but this is {spec.kind} data; leave it off.")
