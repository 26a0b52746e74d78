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
from dataclasses import replace
from pathlib import Path
from typing import Any

from undiffuse.config import dump_yaml, load_yaml, resolve
from undiffuse.distillation.options import FlowMapOptions
from undiffuse.errors import CheckpointError, ConfigError, TrainingError
from undiffuse.files import write_whole
from undiffuse.pretrained.reference import KIND, referred
from undiffuse.spec import DataSpec
from undiffuse.training.checkpoints import CHECKPOINTS, checkpoint_step, checkpoints_in, disk_errors
from undiffuse.training.recipe import Recipe, changed_keys

_LENGTHS = "lengths"  # in run.json: where train.steps was changed


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


def bind_recipe(folder: Path, recipe: Recipe) -> str | None:
    """Write `recipe.yaml`; where there is a run to go on with, check that its recipe is the same but for its length.

    A change of `train.steps` is noted in `run.json`, because the run then equals none that had this length from the
    start. Returns a line that says so, or None.

    Raises:
        ConfigError: The folder holds a run of another recipe, whose differing keys are named, one that has made more
            steps, or one whose loss follows its length.
    """
    path, reached = folder / "recipe.yaml", checkpoints_in(folder / CHECKPOINTS)
    changed_length = None
    if path.exists() and reached:
        old = load_yaml(path)
        steps = resolve(Recipe, old).train.steps
        if changes := changed_keys(old, replace(recipe, train=replace(recipe.train, steps=steps))):
            raise ConfigError(
                f"{folder} holds a run with another recipe ({'; '.join(changes)}). Give these the old values to go on "
                f"with it, or choose another out folder; there train.init={folder} begins with its weights, for other "
                f"settings."
            )
        _check_length(folder, steps, recipe)
        changed_length = _change_length(folder, steps, recipe.train.steps, checkpoint_step(reached[-1]))
    write_text(path, dump_yaml(recipe))
    return changed_length


def _check_length(folder: Path, old: int, recipe: Recipe) -> None:
    """Refuse another length where what is learned at a step depends on it: the plan would jump back or ahead."""
    objective = recipe.objective
    if recipe.train.steps != old and isinstance(objective, FlowMapOptions) and objective.follows_length:
        raise ConfigError(
            f"{folder} holds a run of {old} steps, and what objective={objective.kind} learns at each of them follows "
            f"that number, so train.steps={recipe.train.steps} cannot take its place. Give {old} to go on with it, or "
            f"choose another out folder; with undiffuse train, train.init={folder} begins there with its weights."
        )


def _change_length(folder: Path, old: int, new: int, done: int) -> str | None:
    if new == old:
        return None
    if new < done:
        raise ConfigError(
            f"{folder} holds a run that has made {done} steps already, but train.steps={new}; give {done} or more."
        )
    kept = _read_facts(folder)
    kept[_LENGTHS] = [*kept.get(_LENGTHS, []), {"at": done, "from": old, "to": new}]
    write_text(folder / "run.json", json.dumps(kept, indent=1) + "\n")
    return f"{new} steps instead of {old}: the learning rate follows the new course from step {done} on."


def check_same_tokens(folder: Path, spec: DataSpec) -> None:
    """Refuse to go on with a run whose tokens stood for something else.

    Raises:
        CheckpointError: The codec was rebuilt since, or the text has another vocabulary.
    """
    if not spec.is_discrete or not checkpoints_in(folder / CHECKPOINTS):
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        codec, known = config["codec"], config["spec"]
        same = codec["codebook"] == spec.codebook if codec else tuple(known["vocabulary"]) == spec.vocabulary
    except (OSError, ValueError, KeyError, TypeError):
        return  # no model was published yet
    if not same:
        changed = "numbers of another codebook (was the codec rebuilt since?)" if codec else "of another vocabulary"
        raise CheckpointError(
            f"{folder} holds a run on tokens {changed}; they changed their meaning. Put the old "
            f"{'codec' if codec else 'text and tokenizer'} back to go on with it, or choose another out folder."
        )


def check_same_pipeline(folder: Path) -> None:
    """Refuse to go on with a run that tunes a pipeline whose files have changed since.

    Raises:
        CheckpointError: They have.
    """
    if not checkpoints_in(folder / CHECKPOINTS):
        return
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # no model was published yet
    if isinstance(config, dict) and config.get("kind") == KIND:
        referred(config, folder)


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Write `run.json`; changes of the run's length stay in it."""
    kept = {key: value for key, value in _read_facts(folder).items() if key == _LENGTHS}
    write_text(folder / "run.json", json.dumps({**facts, **kept}, indent=1) + "\n")


def _read_facts(folder: Path) -> dict[str, Any]:
    """Return `run.json`; nothing where there is none, or none that can be read, for it only informs."""
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        TrainingError: The disk is full or not writable.
    """
    with disk_errors(path.name, path.parent):
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
