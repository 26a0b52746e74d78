"""Files of models of diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from undiffuse.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: It is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); copy the model again.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no JSON object; copy the model again.")
    return found


BESIDE = "undiffuse.json"
"""Beside a folder of diffusers: what its files do not say, the `DataSpec` of states and data and the label for none."""


def read_beside(folder: Path) -> dict[str, Any]:
    """Return what lies in `BESIDE`, in the folder or, for a part of a pipeline, above it; {} where nothing does.

    Raises:
        CheckpointError: It cannot be read.
    """
    place = next((path / BESIDE for path in (folder, folder.parent) if (path / BESIDE).is_file()), None)
    return {} if place is None else read_json(place)
