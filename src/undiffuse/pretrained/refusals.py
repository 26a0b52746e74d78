"""What is refused before anything is loaded: pickles, code that is not the libraries' own, unknown classes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from undiffuse.errors import CheckpointError
from undiffuse.words import did_you_mean

_LIBRARIES = {"diffusers", "transformers", "stable_diffusion"}  # the last is diffusers' own old name of a part
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def check_known(folder: Path, what: str, name: Any, known: Iterable[str]) -> None:
    """Refuse a class that is not known.

    Raises:
        CheckpointError: It is not; the message lists those that are.
    """
    known = list(known)
    if name not in known:
        raise CheckpointError(
            f"{folder} is a diffusers {what} of class {name}; this version loads {', '.join(known)}."
            f"{did_you_mean(str(name), known)}"
        )


def check_code(folder: Path, index: dict[str, Any]) -> None:
    """Refuse a pipeline that brings code of its own.

    Raises:
        CheckpointError: It does.
    """
    for part, where in index.items():
        if not isinstance(where, list) or not where or not isinstance(where[0], str):
            continue
        library = where[0]
        if library not in _LIBRARIES:
            raise CheckpointError(
                f"{folder}: {part} is code of its own ({library!r}), which is never run here; only parts of diffusers "
                f"and transformers are loaded."
            )


def check_pickles(folder: Path, parts: Iterable[str]) -> None:
    """Refuse parts whose weights are pickles.

    Raises:
        CheckpointError: A part has no safetensors but pickles; the message says how to convert them.
    """
    for part in parts:
        place = folder / part if part else folder
        pickles = [path.name for path in sorted(place.glob("*")) if path.suffix in _PICKLES]
        if pickles and not any(place.glob("*.safetensors")):
            whole = "DiffusionPipeline" if part else "AutoModel"
            raise CheckpointError(
                f"{place} holds {pickles[0]}, a pickle, and no safetensors; pickles can run code and are refused. "
                f'Convert it where you trust it: python -c "import diffusers; diffusers.{whole}.from_pretrained('
                f"'{folder}', use_safetensors=False).save_pretrained('{folder.name}-safe')\""
            )
