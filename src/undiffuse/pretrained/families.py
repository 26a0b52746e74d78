"""Which pipelines of diffusers can be loaded, and how each is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from undiffuse.networks import diffusers_network as plain
from undiffuse.networks.diffusers_network import Ask
from undiffuse.pretrained import network as ask
from undiffuse.pretrained import readers as read
from undiffuse.pretrained.readers import Labels, NoConditions, Prompts, Reader, Told

_DISTILLED = (3.5,)  # guidance that Flux is told, as its pipeline's default
DISTILLED = "distilled_guidance"


@dataclass(frozen=True, kw_only=True)
class Family:
    """A class of pipelines.

    Args:
        part: Name of the network in it.
        ask: How the network is called.
        reader: Makes what reads conditions, from the pipeline and the size (H, W) of its images; None for labels, where
            the network has them.
        latent: Whether it works on latents of its `vae`.
        per_step: Whether flow levels end at 1 / steps; see `FlowSpacing`.
        scale: Name of the pipeline's argument that is the scale of classifier-free guidance; empty for none.
        sides: Height and width of its latents, where no configuration says so.
        kind: Whether the network denoises, or jumps to clean data.
    """

    part: Literal["unet", "transformer"]
    ask: Ask
    reader: Callable[[Any, tuple[int, int]], Reader] | None = None
    latent: bool = True
    per_step: bool = False
    scale: str = "guidance_scale"
    sides: int = 0
    kind: Literal["denoiser", "consistency"] = "denoiser"


def labels_of(network: Any, null: int | None = None) -> Reader:
    """Return the reader of a network without text: labels where it has a table of them.

    Args:
        network: The network.
        null: Row of its table that stands for no label, where it was trained with one; a DiT's is known.
    """
    config = network.config
    if config.get("norm_type") in ("ada_norm_zero", "ada_norm"):  # DiT, whose table has one row more, of no label
        return Labels(config["num_embeds_ada_norm"])
    return Labels(null) if config.get("num_class_embeds") else NoConditions()


def classes_of(network: Any, names: Any = None, beside: dict[str, Any] | None = None) -> tuple[str, ...]:
    """Return the names of the labels, from a pipeline's `id2label` or from what lies beside it, where it has them."""
    if beside:
        return tuple(beside["spec"]["classes"])
    config = network.config
    count = config.get("num_class_embeds") or 0
    if config.get("norm_type") in ("ada_norm_zero", "ada_norm"):
        count = config["num_embeds_ada_norm"]
    known = {int(key): str(value) for key, value in (names or {}).items()}
    return tuple(known.get(i, str(i)) for i in range(count))


def _sd(pipe: Any, size: tuple[int, int]) -> Reader:
    return Prompts(pipe, read.encode_sd, _told_guidance(pipe))


def _sdxl(pipe: Any, size: tuple[int, int]) -> Reader:
    height, width = map(float, size)
    sizes = {"sizes": Told((height, width, 0.0, 0.0, height, width))}
    return Prompts(pipe, read.encode_sdxl, sizes | _told_guidance(pipe))


def _told_guidance(pipe: Any) -> dict[str, Told]:
    """Return the guidance that latent consistency models are told, by default that of the pipeline."""
    if pipe.unet.config.time_cond_proj_dim is None:
        return {}
    return {DISTILLED: Told((float(inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default),))}


def _pixart(pipe: Any, size: tuple[int, int]) -> Reader:
    told = {"sizes": Told((float(size[0]), float(size[1])))} if pipe.transformer.use_additional_conditions else {}
    return Prompts(pipe, read.encode_pixart, told)


def _sd3(pipe: Any, size: tuple[int, int]) -> Reader:
    return Prompts(pipe, read.encode_sd3, {})


def _flux(pipe: Any, size: tuple[int, int]) -> Reader:
    told = {DISTILLED: Told(_DISTILLED)} if pipe.transformer.config.guidance_embeds else {}
    return Prompts(pipe, read.encode_flux, told)


_UNET = Family(part="unet", ask=plain.ask_unet, latent=False, scale="")
_PIXART = Family(part="transformer", ask=ask.ask_pixart, reader=_pixart)
FAMILIES: dict[str, Family] = {
    "DDPMPipeline": _UNET,
    "DDIMPipeline": _UNET,
    "ConsistencyModelPipeline": Family(part="unet", ask=plain.ask_unet, latent=False, scale="", kind="consistency"),
    "DiTPipeline": Family(part="transformer", ask=plain.ask_dit),
    "StableDiffusionPipeline": Family(part="unet", ask=ask.ask_text_unet, reader=_sd),
    "LatentConsistencyModelPipeline": Family(part="unet", ask=ask.ask_text_unet, reader=_sd),
    "StableDiffusionXLPipeline": Family(part="unet", ask=ask.ask_sized_unet, reader=_sdxl),
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "StableDiffusion3Pipeline": Family(part="transformer", ask=ask.ask_sd3, reader=_sd3),
    "FluxPipeline": Family(
        part="transformer", ask=ask.ask_flux, reader=_flux, per_step=True, scale="true_cfg_scale", sides=128
    ),
}
BARE: dict[str, Ask] = {
    "UNet2DModel": plain.ask_unet,
    "DiTTransformer2DModel": plain.ask_dit,
    "Transformer2DModel": plain.ask_dit,
}
"""Networks that are loaded without a pipeline; those that read texts need the pipeline's encoders."""
