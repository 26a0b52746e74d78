"""From options to a codec, and a codec as plain JSON and tensors, for the bundle on disk."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.codecs.autoencoder import Autoencoder
from undiffuse.codecs.codec import Codec
from undiffuse.codecs.options import (
    AutoencoderOptions,
    CodecOptions,
    NoCodecOptions,
    PCAOptions,
    PretrainedCodecOptions,
    VQOptions,
)
from undiffuse.codecs.pca import PatchPCA, fit_pca
from undiffuse.codecs.pretrained import PretrainedCodec, PretrainedVQ, fresh_network, load_pretrained
from undiffuse.codecs.quantised import TokenCodec
from undiffuse.codecs.vq import VQCodec
from undiffuse.errors import CheckpointError
from undiffuse.spec import DataSpec


def build_codec(options: CodecOptions, data: DataSpec, x: Tensor | None = None, *, seed: int = 0) -> Codec | None:
    """Return the codec that `options` describe; None where there is none.

    PCA is fitted to `x`. An autoencoder, vector-quantised or not, is fresh, its weights follow from `seed`, and still
    wants training and `calibrate`.

    Args:
        options: Which codec.
        data: What one item is.
        x: Items (M, *data.shape) in model units, to fit PCA to.
        seed: Seed of fresh weights; the global generator is neither read nor changed.

    Raises:
        CheckpointError: A pretrained codec cannot be loaded.
        ValueError: The codec does not fit the data.
    """
    if isinstance(options, NoCodecOptions):
        return None
    if isinstance(options, PretrainedCodecOptions):
        return load_pretrained(options, data)
    if isinstance(options, AutoencoderOptions | VQOptions):
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            return VQCodec(data, options) if isinstance(options, VQOptions) else Autoencoder(data, options)
    if x is None:
        raise ValueError("a PCA codec is fitted to data; give x.")
    return fit_pca(options, data, x)


def codec_to_json(codec: Codec) -> dict[str, Any]:
    """Return everything about a codec but its tensors, as plain JSON types."""
    fields: dict[str, Any] = {
        "options": asdict(codec.options),
        "channels": codec.latent.channels,
        "mean": list(codec.latent.mean),
        "std": list(codec.latent.std),
    }
    if isinstance(codec, TokenCodec):
        fields |= {"codes": codec.latent.categories, "codebook": codec.saved_seal()}
    if isinstance(codec, PretrainedCodec | PretrainedVQ):
        config: Any = codec.network.config
        fields["config"] = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
        fields["config"]["_class_name"] = type(codec.network).__name__
    return fields


def codec_from_json(fields: dict[str, Any], data: DataSpec) -> Codec:
    """Rebuild a codec from `codec_to_json`; its tensors are still to be filled.

    Raises:
        CheckpointError: The kind is unknown to this version.
        KeyError, TypeError, ValueError: Damaged fields.
    """
    options = dict(fields["options"])
    kind = options.get("kind")
    if kind == "pca":
        codec: Codec = PatchPCA(data, PCAOptions(**options), channels=fields["channels"])
    elif kind == "autoencoder":
        codec = Autoencoder(data, AutoencoderOptions(**options))
    elif kind == "vq":
        codec = VQCodec(data, VQOptions(**options))
    elif kind == "pretrained":
        network, chosen = fresh_network(fields["config"]), PretrainedCodecOptions(**options)
        codes = fields.get("codes", 0)
        codec = PretrainedVQ(data, chosen, network, codes) if codes else PretrainedCodec(data, chosen, network)
    else:
        raise CheckpointError(f"codec {kind!r} is unknown to this version; update undiffuse.")
    if isinstance(codec, TokenCodec):
        codec.latent = replace(codec.latent, codebook=fields.get("codebook", ""))
        return codec.eval().requires_grad_(False)
    codec.scale(*(torch.tensor(fields[name], dtype=torch.float64) for name in ("mean", "std")))
    return codec.eval().requires_grad_(False)
