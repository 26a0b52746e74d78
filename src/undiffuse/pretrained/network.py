"""A network of diffusers, called as its pipeline calls it, with named blocks for hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.networks.embedded import Embedded

Ask = Callable[[Any, Tensor, Tensor, Embedded], Tensor]
"""(network, x, timesteps (B,), conditions) -> output (B, C or 2C, H, W)."""


class DiffusersNetwork(nn.Module):
    """Calls a network of diffusers with what our conditions hold.

    Args:
        network: The network; it is frozen.
        ask: How it is called.
        channels: Channels of the states. A network that puts out twice as many predicts its variance, too.

    Attributes:
        learns_variance: Whether it does.
        patch: How many elements of the state a token spans on an axis, 1 for a U-Net; Flux counts packed latents.
        options: None: nothing here was built from options of ours.
    """

    options: Any = None

    def __init__(self, network: nn.Module, ask: Ask, channels: int) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.ask, self.channels = ask, channels
        self.learns_variance = getattr(network.config, "out_channels", channels) == 2 * channels
        packed = type(network).__name__ == "FluxTransformer2DModel"
        self.patch = 2 if packed else int(getattr(network.config, "patch_size", None) or 1)
        self.blocks = named_blocks(network)

    def forward(self, x: Tensor, timestep: Tensor, cond: Embedded | None = None) -> dict[str, Tensor]:
        """Return "out" (B, C, H, W), and "variance" in [0, 1] where it is learned.

        Args:
            x: (B, C, H, W), in the network's dtype.
            timestep: (B,), float32, as diffusers counts them.
            cond: Embedded conditions.
        """
        raw = self.ask(self.network, x, timestep, cond or Embedded()).to(x.device)
        if not self.learns_variance:
            return {"out": raw}
        out, rest = raw.split(self.channels, dim=1)
        return {"out": out, "variance": (rest + 1) / 2}

    def compile_network(self) -> None:
        """Compile the network in place, as diffusers does; hooks then see only what runs uncompiled."""
        self.network.compile()


_SIDE_BY_SIDE = (
    "JointTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
)  # return (text, picture)


def named_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a network in order of execution: down0..., mid, up0... of a U-Net, with their resnets and
    transformer blocks as "down0.resnet0", "mid.attention0"; block0..., single0... of a transformer.

    A block that returns several tensors is read and edited at the one of the picture.
    """
    found: dict[str, nn.Module] = {}
    for kind, short in (("down_blocks", "down"), ("mid_block", "mid"), ("up_blocks", "up")):
        part = getattr(network, kind, None)
        parts = {short: part} if kind == "mid_block" else {f"{short}{i}": one for i, one in enumerate(part or [])}
        for name, block in parts.items():
            if block is not None:
                found |= _inside(name, block)
                found[name] = block
    for kind, short in (("transformer_blocks", "block"), ("single_transformer_blocks", "single")):
        for i, block in enumerate(getattr(network, kind, None) or []):
            found[f"{short}{i}"] = block
    for block in found.values():
        block.main_output = 1 if type(block).__name__ in _SIDE_BY_SIDE else 0  # type: ignore[assignment]
    return found


def _inside(name: str, block: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for kind, short in (("resnets", "resnet"), ("attentions", "attention")):
        for i, layer in enumerate(getattr(block, kind, None) or []):
            if layer is not None:
                found[f"{name}.{short}{i}"] = layer
    return found


# -- how each family is called ------------------------------------------------------------------------------


def ask_unet(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """UNet2DModel: labels where it has them."""
    labels = None if cond.vector is None else cond.vector[:, 0]
    return network(x, timestep, class_labels=labels, return_dict=False)[0]


def ask_dit(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """DiTTransformer2DModel, or Transformer2DModel with labels."""
    assert cond.vector is not None
    return network(x, timestep=timestep, class_labels=cond.vector[:, 0], return_dict=False)[0]


def ask_text_unet(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """UNet2DConditionModel of Stable Diffusion 1 and 2."""
    return network(x, timestep, encoder_hidden_states=_like(cond.tokens, x), return_dict=False)[0]


def ask_sized_unet(network: Any, x: Tensor, timestep: Tensor, cond: Embedded) -> Tensor:
    """UNet2DConditionModel of Stable Diffusion XL; the last six numbers of the vector are sizes."""
    vector = _like(cond.vector, x)
    told = {"text_embeds": vector[:, :-6], "time_ids": vector[:, -6:]}
    read = _like(cond.tokens, x)
    return network(x, timestep, encoder_hidden_states=read, added_cond_kwargs=told, return_dict=False)[0]


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


def _like(part: Tensor | None, x: Tensor) -> Tensor:
    assert part is not None
    return part.to(x.device, x.dtype)
