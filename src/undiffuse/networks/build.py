"""From options and a `DataSpec` to a network."""

from __future__ import annotations

import torch

from undiffuse.networks.backbone import Backbone
from undiffuse.networks.diffusers_build import build_diffusers
from undiffuse.networks.dit import DiT
from undiffuse.networks.mlp import MLP
from undiffuse.networks.options import (
    DiffusersDiTOptions,
    DiffusersUNetOptions,
    DiTOptions,
    MLPOptions,
    NetworkOptions,
    TransformerOptions,
    UNetOptions,
)
from undiffuse.networks.token_unet import TokenUNet
from undiffuse.networks.transformer import Transformer
from undiffuse.networks.unet import UNet
from undiffuse.spec import DataSpec

_SPATIAL_AXES = {"signal": 1, "image": 2, "video": 2, "volume": 3}
_KINDS: dict[str, tuple[str, ...]] = {
    "mlp": ("vector",),
    "unet": (*_SPATIAL_AXES, "tokens"),
    "dit": tuple(_SPATIAL_AXES),
    "transformer": ("tokens",),
    "diffusers-unet": ("image",),
    "diffusers-dit": ("image",),
}


def build_network(
    options: NetworkOptions, spec: DataSpec, *, states: int | None = None, seed: int = 0, variance: bool = False
) -> Backbone:
    """Return a freshly initialised network, on the CPU, for the data that `spec` describes.

    Its conditioners follow `spec.conditions`.

    Args:
        options: Which network, and its size; kept as `network.options`.
        spec: Kind and shape of the data.
        states: Tokens only: number of input tokens, K (default) or K + 1 with a mask.
        seed: Seed of the initial weights; the global generator is neither read nor changed.
        variance: Whether it has a second head for the variance of a step; not for tokens.

    Raises:
        ValueError: The network does not fit the kind of data, or its conditions.
    """
    if spec.kind not in _KINDS[options.kind]:
        fitting = [kind for kind, served in _KINDS.items() if spec.kind in served]
        raise ValueError(
            f"model={options.kind} is made for {' / '.join(_KINDS[options.kind])} data, but this is {spec.noun}; "
            f"choose model={' or '.join(fitting)}."
        )
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        network = _construct(options, spec, states, variance)
    network.options = options
    return network


def _construct(options: NetworkOptions, spec: DataSpec, states: int | None, variance: bool) -> Backbone:
    conditions = spec.conditions
    if isinstance(options, MLPOptions):
        return MLP(
            spec.channels,
            width=options.width,
            depth=options.depth,
            conditions=conditions,
            self_condition=options.self_condition,
            variance=variance,
        )
    if variance and spec.is_discrete:
        raise ValueError("the variance of a step can be learned for continuous data only, and these data are tokens.")
    if isinstance(options, UNetOptions):
        _check_temporal(options, spec)
        if options.token_input != "embedding" and not spec.is_discrete:
            raise ValueError(
                f"model.token_input={options.token_input} is about tokens, but this is {spec.noun}; leave it out."
            )
        if spec.is_discrete:
            grid = spec.grid or spec.shape
            return TokenUNet(grid, spec.categories, _states(spec, states), options, conditions=spec.conditions)
        return UNet(_SPATIAL_AXES[spec.kind], spec.channels, options, conditions=conditions, variance=variance)
    if isinstance(options, DiffusersUNetOptions | DiffusersDiTOptions):
        return build_diffusers(options, spec, variance)
    if isinstance(options, DiTOptions):
        return _dit(options, spec, variance)
    return _transformer(options, spec, states)


def _dit(options: DiTOptions, spec: DataSpec, variance: bool) -> DiT:
    _check_temporal(options, spec)
    temporal = spec.kind == "video" and options.temporal is not False
    dims = _SPATIAL_AXES[spec.kind]
    sizes = spec.shape[-dims:]
    network = DiT(
        dims, spec.channels, options, sizes=sizes, temporal=temporal, conditions=spec.conditions, variance=variance
    )
    for bucket in spec.sizes:
        network.check_sizes(bucket)
    return network


def _transformer(options: TransformerOptions, spec: DataSpec, states: int | None) -> Transformer:
    return Transformer(
        spec.categories,
        _states(spec, states),
        width=options.width,
        depth=options.depth,
        heads=options.heads,
        time_dependent=options.time_dependent,
        dropout=options.dropout,
        neighbours=options.neighbours,
        causal=options.causal,
        conv_mlp=options.conv_mlp,
        gated=options.gated,
        counts_masks=options.counts_masks,
        conditions=spec.conditions,
        grid=spec.grid,
        places=(spec.grid or spec.shape) if options.positions == "learned" else (),
    )


def _states(spec: DataSpec, states: int | None) -> int:
    """Return the number of input tokens, checked against the vocabulary."""
    kinds = spec.categories
    states = kinds if states is None else states
    if not kinds or states not in (kinds, kinds + 1):
        raise ValueError(
            f"states={states} but the vocabulary has {kinds} tokens; give a vocabulary, and states={kinds} or, "
            f"with a mask, {kinds + 1}."
        )
    return states


def _check_temporal(options: UNetOptions | DiTOptions, spec: DataSpec) -> None:
    if options.temporal and spec.kind != "video":
        raise ValueError(f"model.temporal is for video, but this is {spec.noun}; leave it off.")
