"""The files of a model or a codec: written each whole or not at all, and read with care. Never pickle, never code.

`config.json` carries a schema number. Older schemas are migrated when read, newer ones refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from undiffuse.errors import CheckpointError
from undiffuse.files import write_whole

WEIGHTS, CODEC, CONFIG, CARD = "model.safetensors", "codec.safetensors", "config.json", "README.md"
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


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


def write_folder(
    folder: Path, kind: str, facts: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]], card: list[str]
) -> None:
    """Write a folder, its files each whole or not at all; the weights first.

    Args:
        folder: Made where it is missing.
        kind: What it holds: "denoiser", "flow-map" or "codec".
        facts: What else `config.json` says, plain JSON.
        parts: Name of a file -> the tensors it holds.
        card: Lines of the README.md.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    from safetensors import SafetensorError

    config = {"format": "undiffuse", "schema": SCHEMA, "kind": kind, **facts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            save_tensors(part, folder / name)
        write_config(folder, config)
        write_whole(folder / CARD, lambda path: path.write_text("\n".join(card), encoding="utf-8"))
    except (OSError, SafetensorError) as error:
        what, reason = "codec" if kind == "codec" else "model", getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"cannot write the {what} to {folder}: {reason}; make room or choose another folder."
        ) from error


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write a folder's `config.json`, whole or not at all."""
    text = json.dumps(config, indent=2) + "\n"
    write_whole(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def weights_of(folder: Path) -> Path:
    """Return the file with the weights of a model's folder, which for a tuned pipeline is named as diffusers does."""
    try:
        tuned = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("tuned")
    except (OSError, ValueError, AttributeError):
        tuned = None
    return folder / (tuned[0] if tuned else WEIGHTS)


def save_tensors(named: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in named.items()}
    write_whole(path, partial(save_file, tensors, metadata={"format": "pt"}))


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


def fill(module: nn.Module, path: Path) -> None:
    """Copy the tensors of a file into a module after checking every name and shape."""
    tensors, wanted = read_tensors(path), module.state_dict()
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        which = f"lacks {missing[0]!r}" if missing else f"has the unknown {extra[0]!r}"
        raise CheckpointError(
            f"{path} {which} ({len(missing)} missing, {len(extra)} unknown tensors); it belongs to "
            f"another network than {CONFIG} describes. Put the two files of one model together."
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{path}: {name!r} has shape {tuple(tensor.shape)}, the network of {CONFIG} needs "
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
