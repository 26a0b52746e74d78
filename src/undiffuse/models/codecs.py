"""A codec on disk without a denoiser: a folder with codec.safetensors, config.json and README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undiffuse.codecs.build import codec_from_json, codec_to_json
from undiffuse.codecs.options import PretrainedCodecOptions
from undiffuse.codecs.pretrained import load_pretrained
from undiffuse.errors import CheckpointError
from undiffuse.models.bundle import fill_codec
from undiffuse.models.folder import CODEC, CONFIG, WEIGHTS, read_config, write_folder
from undiffuse.spec import DataSpec

if TYPE_CHECKING:
    from undiffuse.codecs.codec import Codec


def save_codec(codec: Codec, folder: str | Path, info: dict[str, Any] | None = None) -> Path:
    """Write a codec into `folder`, each file whole or not at all, and return the folder.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    folder = Path(folder)
    facts = {"spec": codec.data.to_json(), "codec": codec_to_json(codec), "info": info or {}}
    write_folder(folder, "codec", facts, {CODEC: codec.state_dict()}, _card(codec))
    return folder


def is_codec_folder(folder: str | Path) -> bool:
    """Whether a folder holds a codec of ours: alone, or beside the model that works on its latents."""
    return all((Path(folder).expanduser() / name).is_file() for name in (CODEC, CONFIG))


def is_ours(folder: str | Path) -> bool:
    """Whether a folder is one of ours, with a codec or without, and not one of another library."""
    try:
        config = json.loads((Path(folder).expanduser() / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == "undiffuse"


def is_codec_alone(folder: str | Path) -> bool:
    """Whether a folder holds a codec of ours, and no model that works on its latents."""
    return is_codec_folder(folder) and not (Path(folder) / WEIGHTS).is_file()


def load_codec(folder: str | Path) -> Codec:
    """Load a codec: a folder that `save_codec` wrote, or that of a model which has one.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"there is no codec {str(folder)!r}; give the folder of a codec, or of a model with one.")
    config = read_config(folder / CONFIG)
    if not config.get("codec"):
        raise CheckpointError(f"the model in {folder} works on the data themselves, without a codec; give another.")
    try:
        codec = codec_from_json(config["codec"], DataSpec.from_json(config["spec"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} does not describe a codec ({error}); train it again.") from error
    fill_codec(codec, folder)
    return codec


def open_codec(options: PretrainedCodecOptions, data: DataSpec) -> Codec:
    """Return the trained codec that `options` name, for data like `data`: one of ours, or one of diffusers.

    Raises:
        CheckpointError: It cannot be loaded.
        ValueError: It does not fit the data.
    """
    if not is_ours(options.path):
        return load_pretrained(options, data)
    codec, place = load_codec(options.path), Path(options.path).expanduser()
    ours, theirs = (data.kind, data.shape), (codec.data.kind, codec.data.shape)
    if ours != theirs:
        raise ValueError(
            f"the codec in {place} codes {theirs[0]} data of shape {theirs[1]}, these are {ours[0]} data of shape "
            f"{ours[1]}; set data.size and data.channels as in its training."
        )
    config = read_config(place / CONFIG)
    again = codec_from_json(config["codec"], data)  # with the labels and conditions of these data
    again.load_state_dict(codec.state_dict())
    if options.used_only:
        raise ValueError("codec.used_only is for codecs of others; rebuild ours: undiffuse codec refit CODEC DATA.")
    return again


def _card(codec: Codec) -> list[str]:
    data, latent = codec.data, codec.latent
    return [
        "# A codec",
        "",
        f"- data: {data.kind} of shape {data.shape}",
        f"- latents: {latent.kind} of shape {latent.grid or latent.shape}"
        + (f", {latent.categories} code vectors" if latent.categories else ""),
        "",
        "Made with undiffuse. Train a denoiser on its latents with `undiffuse train DATA codec.kind=pretrained "
        "codec.path=FOLDER`.",
        "",
    ]
