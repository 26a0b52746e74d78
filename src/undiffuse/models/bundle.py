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


def load(name: str | Path) -> Model:
    """Load a model: a built-in name, or a folder that `Model.save` or a training run wrote.

    Raises:
        CheckpointError: Nothing there, damaged, a pickle, of a newer schema, or tensors of another shape.
    """
    from undiffuse.models.model import Model

    if str(name) in BUILTIN and not (Path(name) / _CONFIG).is_file():  # a model folder of that name goes first
        with resources.as_file(resources.files("undiffuse") / "builtin" / str(name)) as folder:
            return load(folder)
    folder = Path(name)
    _check_folder(folder)
    config = _read_config(folder / _CONFIG)
    try:
        spec = DataSpec.from_json(config["spec"])
        codec = codec_from_json(config["codec"], spec) if config.get("codec") else None
        denoiser = denoiser_from_json(config, codec.latent if codec else spec)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / _CONFIG} does not describe a model ({error}); restore it or train again."
        ) from error
    _fill(denoiser, folder / _WEIGHTS)
    if codec is not None:
        _fill(codec, folder / _CODEC)
    return Model(denoiser.eval(), spec, config.get("defaults"), config.get("info"), codec)


def save_model(model: Model, folder: Path) -> Path:
    """Write the three files, each whole or not at all; the weights first.

    Raises:
        TypeError: The denoiser is wrapped or its network was built by hand.
        CheckpointError: The folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    config = {
        "format": "undiffuse",
        "schema": SCHEMA,
        "kind": "flow-map" if isinstance(model.module, FlowMap) else "denoiser",
        "spec": model.spec.to_json(),
        **denoiser_to_json(model.module),
        "defaults": model.defaults,
        "info": model.info,
        "codec": codec_to_json(model.codec) if model.codec else None,
    }
    parts: dict[str, torch.nn.Module] = {_WEIGHTS: model.module, **({_CODEC: model.codec} if model.codec else {})}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in part.state_dict().items()}
            write_whole(folder / name, partial(save_file, tensors, metadata={"format": "pt"}))
        text = json.dumps(config, indent=2) + "\n"
        write_whole(folder / _CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
        write_whole(folder / _CARD, lambda path: path.write_text(_card(model), encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"cannot write the model to {folder}: {reason}; make room or choose another folder."
        ) from error
    return folder


def save_defaults(folder: Path, changes: dict[str, Any]) -> None:
    """Change how the model in `folder` samples by default, and nothing else about it.

    Raises:
        CheckpointError: There is no model, or it cannot be written.
    """
    _check_folder(folder)
    config = _read_config(folder / _CONFIG)
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
        raise CheckpointError(f"{folder} is a diffusers pipeline; this version loads folders that undiffuse wrote.")
    if not (folder / _CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no {_CONFIG}; a training run writes it with its first checkpoint.")


def _read_config(path: Path) -> dict[str, Any]:
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
