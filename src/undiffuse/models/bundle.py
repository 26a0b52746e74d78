"""A model on disk: a folder with model.safetensors, config.json and README.md. Never pickle, never code.

Where the model has a codec, `codec.safetensors` lies beside them.

`config.json` carries a schema number. Older schemas are migrated when read, newer ones refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.codecs.build import codec_from_json, codec_to_json
from undiffuse.codecs.codec import Codec
from undiffuse.codecs.quantised import TokenCodec
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.errors import CheckpointError
from undiffuse.files import write_whole
from undiffuse.models.description import denoiser_from_json, denoiser_to_json
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from undiffuse.models.model import Model


def _name_condition_kinds(config: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 held the width of vector conditions only."""
    spec = config.get("spec")
    if not isinstance(spec, dict):
        return config  # damaged; `load` says so
    cond = {name: {"kind": "vector", "width": width} for name, width in (spec.get("cond") or {}).items()}
    return {**config, "spec": {**spec, "cond": cond}}


SCHEMA = 2
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _name_condition_kinds}
"""Schema number -> function that turns a config of that schema into one of the next."""

BUILTIN = ("digits",)
"""Models shipped with the package, in its `builtin` folder."""

_WEIGHTS, _CODEC, _CONFIG, _CARD = "model.safetensors", "codec.safetensors", "config.json", "README.md"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def load(name: str | Path, *, check: bool = False, **options: Any) -> Model:
    """Load a model: a built-in name, a folder that `Model.save` or a training run wrote, or a pipeline of diffusers.

    Args:
        name: The name, the folder, or owner/name of a pipeline on the hub of Hugging Face (hf:// may stand before it).
        check: Ask the network about noised data, and refuse it where its answers are those of another prediction type
            than its configuration says; see `undiffuse.models.checks`.
        options: Of pipelines and networks of diffusers: see `undiffuse.pretrained.PretrainedOptions`.

    Raises:
        CheckpointError: Nothing there, damaged, a pickle, of a newer schema, or tensors of another shape; or the check
            found another prediction type.
        ValueError: Options for a model that takes none.
    """
    model = _load(name, options)
    if check:
        from undiffuse.models.checks import check_model

        check_model(model)
    return model


def _load(name: str | Path, options: dict[str, Any]) -> Model:
    from undiffuse.models.model import Model
    from undiffuse.pretrained.loading import fetch, hub_id, is_diffusers_folder, load_diffusers
    from undiffuse.pretrained.options import PretrainedOptions

    if str(name) in BUILTIN and not (Path(name) / _CONFIG).is_file():  # a model folder of that name goes first
        with resources.as_file(resources.files("undiffuse") / "builtin" / str(name)) as folder:
            return _load(folder, options)
    folder = Path(name)
    if not folder.exists() and (on_hub := hub_id(str(name))) is not None:
        folder = fetch(on_hub)
    if is_diffusers_folder(folder):
        return load_diffusers(folder, PretrainedOptions(**options))
    if options:
        raise ValueError(f"{next(iter(options))} is an option of pretrained pipelines; {name} is none. Leave it out.")
    _check_folder(folder)
    config = read_config(folder / _CONFIG)
    if config.get("kind") == "pretrained":
        return _load_reference(config)
    if config.get("kind") == "codec":
        raise CheckpointError(
            f"{folder} is a codec without a denoiser; train one on its latents: undiffuse train DATA recipe=vq-image "
            f"codec.kind=pretrained codec.path={folder}."
        )
    try:
        spec = DataSpec.from_json(config["spec"])
        codec = codec_from_json(config["codec"], spec) if config.get("codec") else None
        _check_codes(config, codec)
        denoiser = denoiser_from_json(config, codec.latent if codec else spec)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / _CONFIG} does not describe a model ({error}); restore it or train again."
        ) from error
    _fill(denoiser, folder / _WEIGHTS)
    if codec is not None:
        fill_codec(codec, folder)
    return Model(denoiser.eval(), spec, config.get("defaults"), config.get("info"), codec)


def _load_reference(config: dict[str, Any]) -> Model:
    """Load the pipeline that a saved model refers to, with the defaults that were saved."""
    from undiffuse.pretrained.reference import referred

    source, options = referred(config)
    model = _load(source, options)
    model.defaults, model.info = dict(config["defaults"]), dict(config["info"])
    return model


def save_model(model: Model, folder: Path) -> Path:
    """Write the three files, each whole or not at all; the weights first.

    Of a pipeline of diffusers only a reference is written, by path and hash.

    Raises:
        TypeError: The denoiser is wrapped or its network was built by hand.
        CheckpointError: The folder cannot be written.
    """
    from safetensors import SafetensorError

    from undiffuse.pretrained.reference import reference_to_json

    refers = "pipeline" in model.info and "source" in model.info
    config = {
        "format": "undiffuse",
        "schema": SCHEMA,
        "kind": "flow-map" if isinstance(model.module, FlowMap) else "denoiser",
        "spec": model.spec.to_json(),
        **(reference_to_json(model.info) if refers else denoiser_to_json(model.module)),
        "defaults": model.defaults,
        "info": model.info,
        "codec": codec_to_json(model.codec) if model.codec and not refers else None,
    }
    parts: dict[str, torch.nn.Module] = {_WEIGHTS: model.module, **({_CODEC: model.codec} if model.codec else {})}
    parts = {} if refers else parts
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            save_tensors(part, folder / name)
        text = json.dumps(config, indent=2) + "\n"
        write_whole(folder / _CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
        write_whole(folder / _CARD, lambda path: path.write_text(_card(model), encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"cannot write the model to {folder}: {reason}; make room or choose another folder."
        ) from error
    return folder


def save_tensors(module: torch.nn.Module, path: Path) -> None:
    """Write the tensors of a module as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in module.state_dict().items()}
    write_whole(path, partial(save_file, tensors, metadata={"format": "pt"}))


def fill_codec(codec: Codec, folder: Path) -> None:
    """Fill a codec from the file in `folder`.

    Raises:
        CheckpointError: It is missing or damaged, of another codec, or has another codebook than the config says.
    """
    _fill(codec, folder / _CODEC)
    if isinstance(codec, TokenCodec):
        codec.check_seal()


def save_defaults(folder: Path, changes: dict[str, Any]) -> None:
    """Change how the model in `folder` samples by default, and nothing else about it.

    Raises:
        CheckpointError: There is no model, or it cannot be written.
    """
    _check_folder(folder)
    config = read_config(folder / _CONFIG)
    changed = {"schema": SCHEMA, "defaults": (config.get("defaults") or {}) | changes}
    text = json.dumps(config | changed, indent=2) + "\n"
    try:
        write_whole(folder / _CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot write {folder / _CONFIG}: {error.strerror or error}.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: It is missing, a pickle, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(_missing_weights(path))
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        if _is_pickle(path):
            raise CheckpointError(
                f"{path} is a pickle, whatever its name; pickles can run code and are refused. Convert it where you "
                "trust it: safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')."
            ) from error
        raise CheckpointError(
            f"{path} is damaged or truncated ({error}); copy it again or go back to a checkpoint."
        ) from error


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise CheckpointError(
            f"there is no model {str(folder)!r}; give a run's folder or a built-in model ({', '.join(BUILTIN)})."
            f"{did_you_mean(str(folder), BUILTIN)}"
        )
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give the folder that holds {_WEIGHTS} and {_CONFIG}.")
    if (folder / "model_index.json").is_file():
        raise CheckpointError(f"{folder} is a diffusers pipeline, which is loaded as it is; nothing in it is changed.")
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no {_CONFIG}; a training run writes it with its first checkpoint.")


def read_config(path: Path) -> dict[str, Any]:
    """Read a folder's `config.json`, migrated to the present schema.

    Raises:
        CheckpointError: It is missing, damaged, none of ours, or of a newer schema.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); restore it or train again.") from error
    if not isinstance(config, dict) or config.get("format") != "undiffuse":
        raise CheckpointError(f'{path} is not a model of undiffuse; expected "format": "undiffuse" in it.')
    schema = config.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise CheckpointError(f"{path} has schema {schema!r}, which is none; restore the file or train again.")
    if schema > SCHEMA:
        raise CheckpointError(f"{path} has schema {schema}, this version reads up to {SCHEMA}; update undiffuse.")
    for older in range(schema, SCHEMA):
        config = MIGRATIONS[older](config)
    return config


def _check_codes(config: dict[str, Any], codec: Codec | None) -> None:
    """Refuse a codec with another number of code vectors than the denoiser's tokens have."""
    classes = config["process"].get("classes")
    if isinstance(codec, TokenCodec) and codec.latent.categories != classes:
        raise CheckpointError(
            f"the codec has {codec.latent.categories} code vectors, the denoiser was trained on tokens of {classes}; "
            f"put its own codec back, or train a denoiser on the new one."
        )


def _fill(module: torch.nn.Module, path: Path) -> None:
    """Copy the tensors of a file into a module after checking every name and shape."""
    tensors, wanted = read_tensors(path), module.state_dict()
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        which = f"lacks {missing[0]!r}" if missing else f"has the unknown {extra[0]!r}"
        raise CheckpointError(
            f"{path} {which} ({len(missing)} missing, {len(extra)} unknown tensors); it belongs to "
            f"another network than {_CONFIG} describes. Put the two files of one model together."
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{path}: {name!r} has shape {tuple(tensor.shape)}, the network of {_CONFIG} needs "
                f"{tuple(wanted[name].shape)}. Put the two files of one model together."
            )
    module.load_state_dict(tensors)


def _missing_weights(path: Path) -> str:
    pickles = [p.name for p in path.parent.glob("*") if p.suffix in _PICKLES] if path.parent.is_dir() else []
    if pickles:
        return (
            f"{path.parent} holds {pickles[0]}, a pickle, but no {path.name}; pickles are refused, convert it to "
            f"safetensors."
        )
    return f"{path} is missing; a training run writes it with its first checkpoint."


def _is_pickle(path: Path) -> bool:
    """Whether a file starts like a pickle (protocol 2 or later) or like the zip that torch.save writes."""
    with path.open("rb") as file:
        return file.read(2) in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")


def _card(model: Model) -> str:
    spec = model.spec
    lines = [
        "# A diffusion model",
        "",
        f"- data: {spec.kind} of shape {spec.shape}" + (f", {len(spec.classes)} classes" if spec.classes else ""),
        f"- network: {model.parameters / 1e6:.2f} million parameters",
        *(f"- {key}: {value}" for key, value in model.info.items() if isinstance(value, (str, int, float))),
        "",
        "Made with undiffuse. Load it with `undiffuse.load(folder)` or `undiffuse sample FOLDER`.",
        "",
    ]
    return "\n".join(lines)
