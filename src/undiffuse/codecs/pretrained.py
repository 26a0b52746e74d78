"""Autoencoders of diffusers as codecs: AutoencoderKL, AutoencoderTiny."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.codecs.codec import Codec
from undiffuse.codecs.options import PretrainedCodecOptions
from undiffuse.errors import CheckpointError
from undiffuse.spec import DataSpec

_CLASSES = ("AutoencoderKL", "AutoencoderTiny")


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
        config: dict[str, Any] = dict(network.config)  # type: ignore[arg-type]
        if data.kind not in ("image", "video") or data.channels != config["in_channels"]:
            raise ValueError(
                f"{options.path} codes images of {config['in_channels']} channels; these are {data.kind} data of "
                f"{data.channels} (data.channels=rgb makes 3)."
            )
        super().__init__(data, options, channels=config["latent_channels"], factor=_factor(network))
        self.network = network.eval().requires_grad_(False)
        channels = config["latent_channels"]
        shift = torch.full((channels,), float(config.get("shift_factor") or 0.0))
        self.scale(shift, torch.full((channels,), 1.0 / float(config["scaling_factor"])))

    def code(self, x: Tensor) -> Tensor:
        """Return the mode of the posterior, or the latents where there is none."""
        encoded: Any = self.network.encode(x)  # type: ignore[operator]
        return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents

    def render(self, code: Tensor) -> Tensor:
        """Decode."""
        return self.network.decode(code).sample  # type: ignore[operator]


def load_pretrained(options: PretrainedCodecOptions, data: DataSpec) -> PretrainedCodec:
    """Load an autoencoder from a folder, from the `vae` subfolder of a pipeline, or from the hub.

    Raises:
        CheckpointError: It is not there, or none that can be used.
        ValueError: It does not fit the data.
    """
    diffusers = _diffusers()
    folder = Path(options.path).expanduser()
    place = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    try:
        config = diffusers.AutoencoderKL.load_config(str(place))
        network = _class(config.get("_class_name")).from_pretrained(str(place), use_safetensors=True)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"codec.path={options.path} is no autoencoder that can be loaded ({reason}); give the folder of a "
            f"{' or '.join(_CLASSES)} with its safetensors."
        ) from error
    return PretrainedCodec(data, options, network)


def fresh_network(config: dict[str, Any]) -> nn.Module:
    """Return an autoencoder of this configuration, with weights to be filled.

    Raises:
        CheckpointError: Its class is none of those that can be used.
    """
    return _class(config.get("_class_name")).from_config(config)


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
