"""How the pipelines of diffusers with prompts call their networks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from undiffuse.networks.embedded import Embedded


def ask_text_unet(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """UNet2DConditionModel of Stable Diffusion 1 and 2; the vector is the guidance it was distilled for, if any."""
    read, told = _like(cond.tokens, x), _told_guidance(network, cond)
    return network(x, timestep, timestep_cond=told, encoder_hidden_states=read, return_dict=False)[0]


def ask_sized_unet(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """UNet2DConditionModel of Stable Diffusion XL; the last six numbers of the vector are sizes, before the guidance
    that the network was distilled for, if any."""
    vector, guidance = _like(cond.vector, x), _told_guidance(network, cond)
    vector = vector if guidance is None else vector[:, :-1]
    return network(
        x,
        timestep,
        timestep_cond=guidance,
        encoder_hidden_states=_like(cond.tokens, x),
        added_cond_kwargs={"text_embeds": vector[:, :-6], "time_ids": vector[:, -6:]},
        return_dict=False,
    )[0]


def ask_pixart(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """PixArtTransformer2DModel; the vector holds height and width where they are told."""
    told: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if cond.vector is not None:
        size = _like(cond.vector, x)
        told = {"resolution": size, "aspect_ratio": (size[:, :1] / size[:, 1:])}
    return network(
        x,
        encoder_hidden_states=_like(cond.tokens, x),
        encoder_attention_mask=cond.mask,
        timestep=timestep,
        added_cond_kwargs=told,
        return_dict=False,
    )[0]


def ask_sd3(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """SD3Transformer2DModel."""
    read, pooled = _like(cond.tokens, x), _like(cond.vector, x)
    return network(
        hidden_states=x, timestep=timestep, encoder_hidden_states=read, pooled_projections=pooled, return_dict=False
    )[0]


def ask_flux(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """FluxTransformer2DModel, whose tokens are patches of 2 x 2; the vector's last number is the guidance it was
    distilled for, where it knows it."""
    from diffusers import FluxPipeline

    tools: Any = FluxPipeline  # its packing is static
    batch, channels, height, width = x.shape
    read, pooled = _like(cond.tokens, x), _like(cond.vector, x)
    guidance = None
    if network.config.guidance_embeds:
        pooled, guidance = pooled[:, :-1], pooled[:, -1].float()
    raw = network(
        hidden_states=tools._pack_latents(x, batch, channels, height, width),
        timestep=timestep.to(x.dtype) / 1000,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=read,
        txt_ids=torch.zeros(read.shape[1], 3, device=x.device, dtype=x.dtype),
        img_ids=tools._prepare_latent_image_ids(batch, height // 2, width // 2, x.device, x.dtype),
        return_dict=False,
    )[0]
    return tools._unpack_latents(raw, height, width, 1)


def _told_guidance(network: Any, cond: Embedded) -> Tensor | None:
    """Return the embedding of the guidance that a network was distilled for, the last number of the vector (LCM)."""
    width = network.config.time_cond_proj_dim
    if width is None:
        return None
    assert cond.vector is not None
    rates = torch.exp(torch.arange(width // 2, device=cond.vector.device) * (-math.log(10000.0) / (width // 2 - 1)))
    angles = 1000 * (cond.vector[:, -1:].float() - 1) * rates
    told = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(told, (0, width % 2)).to(network.dtype)


def _like(part: Tensor | None, x: Tensor) -> Tensor:
    assert part is not None
    return part.to(x.device, x.dtype)
