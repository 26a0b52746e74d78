"""Autoencoders of diffusers as codecs: AutoencoderKL and AutoencoderTiny, whose latents are numbers, and VQModel."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.codecs.codec import Codec
from undiffuse.codecs.options import PretrainedCodecOptions
from undiffuse.codecs.quantised import TokenCodec
from undiffuse.errors import CheckpointError
from undiffuse.spec import DataSpec

_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
_PARTS = ("vae", "vqvae")  # of a pipeline


class PretrainedCodec(Codec):
    """An autoencoder of diffusers; an item's code is the mode of its posterior.

    Its latents are scaled as its own configuration says (`scaling_factor`, `shift_factor`), so that denoisers of
    others that were trained on them fit.

    Args:
        data: Images or video of the autoencoder's channels.
        options: Where it came from.
        network: The autoencoder; it is frozen.

    Raises:
        ValueError: The data do not fit it.
    """

    def __init__(self, data: DataSpec, options: PretrainedCodecOptions, network: nn.Module) -> None:
        config = _fitting_config(network, options, data)
        super().__init__(data, options, channels=config["latent_channels"], factor=_factor(network))
        self.network = network.eval().requires_grad_(False)
        channels = config["latent_channels"]
        shift = torch.full((channels,), float(config.get("shift_factor") or 0.0))
        self.scale(shift, torch.full((channels,), 1.0 / float(config["scaling_factor"])))

    def code(self, x: Tensor) -> Tensor:
        """Return the mode of the posterior, or the latents where there is none."""
        encoded: Any = self.network.encode(x.to(self._dtype))  # type: ignore[operator]
        return (encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents).to(x.dtype)

    def render(self, code: Tensor) -> Tensor:
        """Decode."""
        return self.network.decode(code.to(self._dtype)).sample.to(code.dtype)  # type: ignore[operator]

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype


class PretrainedVQ(TokenCodec):
    """A VQModel of diffusers; its codebook may be cut to some of its vectors, or replaced.

    Args:
        data: Images or video of the model's channels.
        options: Where it came from.
        network: The VQModel; it is frozen.
        codes: Vectors of the codebook; 0: those of the model, else the first of them, to be replaced.

    Raises:
        ValueError: The data do not fit it.
    """

    vectors: Tensor

    def __init__(self, data: DataSpec, options: PretrainedCodecOptions, network: nn.Module, codes: int = 0) -> None:
        config = _fitting_config(network, options, data)
        own: Tensor = network.quantize.embedding.weight.detach()  # type: ignore[union-attr, operator]
        size = codes or len(own)
        super().__init__(data, options, channels=config["latent_channels"], factor=_factor(network), codes=size)
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("vectors", own[:size].clone() if size <= len(own) else own.new_zeros(size, own.shape[1]))

    @property
    def codebook(self) -> Tensor:
        """Code vectors (K, d)."""
        return self.vectors

    def code(self, x: Tensor) -> Tensor:
        """Return the encodings before they are quantised."""
        return self.network.encode(x).latents  # type: ignore[operator]

    def render(self, code: Tensor) -> Tensor:
        """Decode code vectors."""
        return self.network.decode(code, force_not_quantize=True).sample  # type: ignore[operator]

    def decoding(self) -> list[nn.Module]:
        """Return the parts of the decoder."""
        return [self.network.post_quant_conv, self.network.decoder]  # type: ignore[list-item]

    def with_codebook(self, vectors: Tensor) -> PretrainedVQ:
        """Return a codec with the same weights and other code vectors (K, d); tokens then mean something else."""
        made = PretrainedVQ(self.data, self.options, copy.deepcopy(self.network), codes=len(vectors))
        made.vectors.copy_(vectors)
        return made


def load_pretrained(options: PretrainedCodecOptions, data: DataSpec) -> PretrainedCodec | PretrainedVQ:
    """Load an autoencoder from a folder, from the `vae` or `vqvae` subfolder of a pipeline, or from the hub.

    Raises:
        CheckpointError: It is not there, or none that can be used.
        ValueError: It does not fit the data.
    """
    diffusers = _diffusers()
    folder = Path(options.path).expanduser()
    place = next((folder / part for part in _PARTS if (folder / part / "config.json").is_file()), folder)
    try:
        config = diffusers.AutoencoderKL.load_config(str(place))
        network = _class(config.get("_class_name")).from_pretrained(str(place), use_safetensors=True)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"codec.path={options.path} is no autoencoder that can be loaded ({reason}); give the folder of a "
            f"{' or '.join(_CLASSES)} with its safetensors."
        ) from error
    if type(network).__name__ == "VQModel":
        return PretrainedVQ(data, options, network)
    if options.used_only:
        raise ValueError(f"codec.used_only is about codebooks, and {options.path} has none; leave it off.")
    return PretrainedCodec(data, options, network)


def fresh_network(config: dict[str, Any]) -> nn.Module:
    """Return an autoencoder of this configuration, with weights to be filled.

    Raises:
        CheckpointError: Its class is none of those that can be used.
    """
    return _class(config.get("_class_name")).from_config(config)


def _fitting_config(network: nn.Module, options: PretrainedCodecOptions, data: DataSpec) -> dict[str, Any]:
    config: dict[str, Any] = dict(network.config)  # type: ignore[arg-type]
    if data.kind not in ("image", "video") or data.channels != config["in_channels"]:
        raise ValueError(
            f"{options.path} codes images of {config['in_channels']} channels; these are {data.kind} data of "
            f"{data.channels} (data.channels=rgb makes 3)."
        )
    return config


def _factor(network: nn.Module) -> int:
    """Return by how much the autoencoder shrinks an axis, found without computing anything."""
    config: dict[str, Any] = dict(network.config)  # type: ignore[arg-type]
    if "block_out_channels" in config:
        return 2 ** (len(config["block_out_channels"]) - 1)
    return 2 ** (len(config["encoder_block_out_channels"]) - 1)


def _class(name: Any) -> Any:
    if name not in _CLASSES:
        raise CheckpointError(f"autoencoder class {name!r} is unknown; use {' or '.join(_CLASSES)}.")
    return getattr(_diffusers(), name)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise CheckpointError("pretrained codecs need diffusers: pip install 'undiffuse[pretrained]'.") from error
    return diffusers
