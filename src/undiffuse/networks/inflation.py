"""From an image network to a video network that computes, at first, exactly the image network frame by frame.

All tensors of the image network have their place in the video network under the same name; what the video network has
beside them, its temporal attention, starts as the identity.

Source: Ho et al. 2022, "Video Diffusion Models", section 3, arXiv:2204.03458; Singer et al. 2022, "Make-A-Video",
    section 3.2 (starting from image weights), arXiv:2209.14792.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.networks.backbone import Backbone
from undiffuse.networks.build import build_network
from undiffuse.networks.options import DiTOptions, UNetOptions
from undiffuse.spec import DataSpec

_TEMPORAL = "temporal."  # where both networks keep what an image network lacks
_FREE = {"temporal", "dropout", "route", "route_first", "route_last"}  # they say nothing of an image network's output


def inflate(image_network: Backbone, spec: DataSpec, *, seed: int = 0) -> Backbone:
    """Return a video network whose output on every frame is, at first, that of the image network.

    Args:
        image_network: A U-Net or DiT made by `build_network`; it is not changed.
        spec: The video: its frames have the channels of the image network, and its conditions are the same.
        seed: Seed of the weights of the temporal attention.

    Raises:
        ValueError: The data are no video, or the networks do not match.
    """
    options = image_network.options
    if spec.kind != "video":
        raise ValueError(f"inflate makes video networks, but the spec is of {spec.noun}; give that of a video.")
    if not isinstance(options, UNetOptions | DiTOptions):
        raise ValueError(
            f"{type(image_network).__name__} cannot be inflated; expected a unet or dit made by build_network."
        )
    video = build_network(replace(options, temporal=True), spec, seed=seed, variance=image_network.learns_variance)
    weight = next(image_network.parameters())
    video.to(device=weight.device, dtype=weight.dtype)
    fill_inflated(video, options, image_network.state_dict())
    return video


@torch.no_grad()
def fill_inflated(video: Backbone, options: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy an image network's tensors into a fresh video network.

    Args:
        video: Changed in place.
        options: Options of the image network.
        tensors: Its state.

    Raises:
        ValueError: The networks do not match; the message names the first difference.
    """
    _check_options(video.options, options)
    own = video.state_dict()
    spatial = {name for name in own if not name.startswith(_TEMPORAL)}
    for name in sorted(spatial | tensors.keys()):
        here, there = _shape(own, name), _shape(tensors, name)
        if here != there or name not in spatial:
            raise ValueError(
                f"{name!r} is {there} in the image network and {here} in the video network; give both the same "
                f"model.* options, channels and conditions."
            )
    video.load_state_dict(dict(tensors), strict=False)


def has_temporal(network: Backbone) -> bool:
    """Whether frames meet in a network."""
    return any(name.startswith(_TEMPORAL) for name, _ in network.named_parameters())


def _check_options(video: Any, image: Any) -> None:
    """Compare what shapes do not show too, such as the number of heads."""
    if type(video) is not type(image):
        raise ValueError(f"the image network is a {_kind(image)}, the video network a {_kind(video)}; use one kind.")
    ours, theirs = asdict(video), asdict(image)
    for name in sorted(ours.keys() - _FREE):
        if ours[name] != theirs[name]:
            raise ValueError(
                f"model.{name} is {theirs[name]} in the image network and {ours[name]} in the video network; make it "
                f"{theirs[name]}."
            )


def _kind(options: Any) -> str:
    return str(getattr(options, "kind", "network built by hand"))


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return f"of shape {tuple(tensors[name].shape)}" if name in tensors else "missing"
