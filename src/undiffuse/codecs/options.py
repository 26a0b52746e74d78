"""Options of codecs, for recipes. Torch-free: `--help` reads this file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from undiffuse.limits import at_least_one, not_negative, positive
from undiffuse.words import option

WIDEST = 4
"""Channels of an autoencoder's coarser sizes over those of the first, at most."""


@dataclass(frozen=True, kw_only=True)
class NoCodecOptions:
    """The denoiser works on the data themselves."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class PCAOptions:
    """Principal components of patches: linear, fitted at once, exact where all of them are kept."""

    kind: Literal["pca"] = "pca"
    patch: int = option(4, "side of a patch; every spatial axis shrinks by it")
    channels: int = option(0, "components kept; 0: as many as `share` needs")
    share: float = option(0.99, "share of the variance that is kept where `channels` is 0, in (0, 1]")
    fit_items: int = option(4096, "items that it is fitted to")

    def __post_init__(self) -> None:
        if self.patch < 1 or self.channels < 0 or self.fit_items < 2:
            raise ValueError(f"patch={self.patch}, channels={self.channels}, fit_items={self.fit_items} are too small.")
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} is outside of (0, 1].")


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions:
    """Convolutional autoencoder with a Gaussian code, trained on the data before the denoiser."""

    kind: Literal["autoencoder"] = "autoencoder"
    channels: int = option(4, "channels of the latents")
    halvings: int = option(2, "how often each spatial axis is halved")
    width: int = option(32, "channels at full size; doubled by the first halvings, up to 4 times")
    blocks: int = option(1, "residual blocks per size, on each side")
    attention: int = option(0, "heads of self-attention behind each block at the coarsest size, as VQ-GAN has; 0: none")
    kl: float = option(1e-3, "weight of the divergence of the code from a standard normal, per value of the data")
    steps: int = option(2000, "optimizer steps of its training")
    batch_size: int = option(64, "items per step")
    lr: float = option(2e-3, "peak learning rate")

    def __post_init__(self) -> None:
        at_least_one(self, "channels", "width", "blocks", "steps", "batch_size")
        not_negative(self, "halvings", "kl", "attention")
        _check_heads(self)
        positive(self, "lr")


@dataclass(frozen=True, kw_only=True)
class VQOptions:
    """Vector-quantised autoencoder: every vector of its code is one of a learned codebook, so latents are tokens."""

    kind: Literal["vq"] = "vq"
    codes: int = option(256, "vectors in the codebook K")
    channels: int = option(16, "numbers of a vector")
    halvings: int = option(2, "how often each spatial axis is halved")
    width: int = option(32, "channels at full size; doubled by the first halvings, up to 4 times")
    blocks: int = option(1, "residual blocks per size, on each side")
    attention: int = option(0, "heads of self-attention behind each block at the coarsest size, as VQ-GAN has; 0: none")
    codebook: Literal["ema", "gradient"] = option(
        "ema", "how the codebook follows the encodings: moving averages, or the gradient of |sg(z) - e|^2"
    )
    decay: float = option(0.99, "of the moving averages of the codebook, per step")
    restart: int = option(100, "steps without use after which a vector is replaced by an encoding; 0: never")
    commitment: float = option(0.25, "weight beta of |z - sg(e)|^2, which keeps encodings near their vectors")
    absolute: float = option(0.0, "weight of |x - x_rec| beside the squared error, per value of the data")
    perceptual: float = option(0.0, "weight of the distance in features of a frozen network; 0: none")
    features: str = option("lpips", "whose features: lpips (needs that library), or a classifier's folder")
    adversarial: float = option(0.0, "weight of the generator's loss against a patch discriminator; 0: none")
    adversarial_start: int = option(1000, "steps before the discriminator is listened to")
    steps: int = option(2000, "optimizer steps of its training")
    batch_size: int = option(64, "items per step")
    lr: float = option(2e-3, "peak learning rate")

    def __post_init__(self) -> None:
        at_least_one(self, "channels", "width", "blocks", "steps", "batch_size")
        if self.codes < 2:
            raise ValueError(f"codes={self.codes}; a codebook has at least 2 vectors.")
        not_negative(
            self, "halvings", "restart", "commitment", "absolute", "perceptual", "adversarial", "adversarial_start"
        )
        not_negative(self, "attention")
        _check_heads(self)
        positive(self, "lr")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay={self.decay} must be in (0, 1).")


@dataclass(frozen=True, kw_only=True)
class PretrainedCodecOptions:
    """A trained codec: a folder of ours (`undiffuse train-codec`), or an autoencoder or VQModel of diffusers."""

    kind: Literal["pretrained"] = "pretrained"
    path: str = option("", "its folder, or the hub's owner/name; a pipeline's `vae` or `vqvae` subfolder is found")
    used_only: bool = option(False, "VQModel: drop the vectors of the codebook that the data do not use")

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("codec.path is missing; give the folder of a trained codec.")


def _check_heads(options: AutoencoderOptions | VQOptions) -> None:
    coarsest = options.width * min(2**options.halvings, WIDEST)
    if options.attention and coarsest % options.attention:
        raise ValueError(
            f"the {coarsest} channels of the coarsest size do not split into attention={options.attention} heads; "
            f"change one of them."
        )


CodecOptions = NoCodecOptions | PCAOptions | AutoencoderOptions | VQOptions | PretrainedCodecOptions
