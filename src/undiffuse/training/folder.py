"""A run's folder: made once, tied to one recipe.

recipe.yaml        the resolved recipe
run.json           versions, threads, device, number of items
log.jsonl          figures
samples/           previews
checkpoints/       to resume from
model.safetensors, config.json, README.md: the averaged model, loadable at any time
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from undiffuse.config import dump_yaml, load_yaml
from undiffuse.errors import ConfigError, TrainingError
from undiffuse.files import write_whole
from undiffuse.training.checkpoints import CHECKPOINTS, checkpoints_in, disk_errors
from undiffuse.training.recipe import Recipe, changed_keys


def make_folder(path: Path) -> Path:
    """Make a run's folder, parents included.

    Raises:
        TrainingError: It cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"cannot make the out folder {path}: {error.strerror}; choose another with out=..."
        ) from error
    if not os.access(path, os.W_OK):
        raise TrainingError(f"the out folder {path} is not writable; choose another with out=...")
    return path


def bind_recipe(folder: Path, recipe: Recipe) -> None:
    """Write `recipe.yaml`; where there is a run to go on with, check that its recipe is the same.

    Raises:
        ConfigError: The folder holds a run of another recipe; the differing keys are named.
    """
    path = folder / "recipe.yaml"
    if path.exists() and checkpoints_in(folder / CHECKPOINTS):
        changes = changed_keys(load_yaml(path), recipe)
        if changes:
            raise ConfigError(
                f"{folder} holds a run with another recipe ({'; '.join(changes)}). Give these the old values to go on "
                f"with it, or choose another out folder; there train.init={folder} begins with its weights, for more "
                f"steps or other settings."
            )
    write_text(path, dump_yaml(recipe))


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `run.json`."""
    write_text(folder / "run.json", json.dumps(facts, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        TrainingError: The disk is full or not writable.
    """
    with disk_errors(path.name, path.parent):
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
