"""Operators and measurements on disk: one safetensors file with the tensors, and the settings as JSON in its head."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse.errors import DataError
from undiffuse.files import write_whole
from undiffuse.operators.base import Operator
from undiffuse.operators.noise import NoiseModel, NoNoise
from undiffuse.operators.parse import noise_from_json

_KEY = "undiffuse"
_COMPLEX = ":complex"  # safetensors has no complex128; the name of a tensor of pairs ends in this
_OPERATOR = "operator/"


@dataclass(frozen=True)
class Measurement:
    """What was measured, exactly, and how: all that a restoration needs.

    Args:
        y: (B, *operator.out_shape), in model units.
        operator: What measured it.
        noise: The noise of y, in model units.
        about: Anything else as plain JSON: names of the files, seed, the texts that were given, the data's range.
    """

    y: Tensor
    operator: Operator
    noise: NoiseModel = field(default_factory=NoNoise)
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | PathLike[str]) -> None:
        """Write it to a .safetensors file, whole or not at all."""
        tensors = {"y": self.y, **{_OPERATOR + name: value for name, value in self.operator.tensors().items()}}
        head = {"operator": self.operator.to_json(), "noise": self.noise.to_json(), "about": self.about}
        _write(Path(path), tensors, head)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Measurement:
        """Read what `save` wrote.

        Raises:
            DataError: The file is missing, damaged, or holds no measurement.
        """
        tensors, head = _read(Path(path))
        if "y" not in tensors or "operator" not in head:
            raise DataError(f"{path} holds no measurement; `undiffuse degrade` writes them.")
        own = {name[len(_OPERATOR) :]: value for name, value in tensors.items() if name.startswith(_OPERATOR)}
        noise = noise_from_json(head["noise"])
        return cls(tensors["y"], Operator.from_json(head["operator"], own), noise, head["about"])


def save_operator(path: str | PathLike[str], operator: Operator) -> None:
    """Write an operator to a .safetensors file.

    Raises:
        ValueError: The operator has no saved form (an adapter of another library's).
    """
    _write(Path(path), operator.tensors(), {"operator": operator.to_json()})


def load_operator(path: str | PathLike[str]) -> Operator:
    """Read an operator that `save_operator` wrote, or that of a measurement.

    Raises:
        DataError: The file is missing, damaged, or holds no operator.
    """
    tensors, head = _read(Path(path))
    if "operator" not in head:
        raise DataError(f"{path} holds no operator.")
    own = {name.removeprefix(_OPERATOR): value for name, value in tensors.items() if name != "y"}
    return Operator.from_json(head["operator"], own)


def _write(path: Path, tensors: dict[str, Tensor], head: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    flat = {
        name + _COMPLEX if value.is_complex() else name: (
            torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        )
        .detach()
        .cpu()
        .contiguous()
        for name, value in tensors.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {_KEY: json.dumps(head, sort_keys=True)}
    write_whole(path, lambda file: save_file(flat, str(file), metadata=metadata))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    if not path.is_file():
        raise DataError(f"there is no file {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            head = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except Exception as error:  # safetensors raises its own error type, and JSON another
        raise DataError(f"{path} cannot be read as a safetensors file: {error}") from error
    return {
        name.removesuffix(_COMPLEX): torch.view_as_complex(value) if name.endswith(_COMPLEX) else value
        for name, value in tensors.items()
    }, head
