"""Checkpoints: one folder per step, written whole or not at all.

A checkpoint is written into a folder with a name of its own, flushed to disk, and renamed to `step-NNNNNNNN`;
what a killed process leaves half-written keeps its temporary name and is removed by the next run. Tensors are
safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse.errors import CheckpointError, TrainingError

SCHEMA = 1
CHECKPOINTS = "checkpoints"  # their place in a run's folder
_PREFIX, _TEMPORARY = "step-", ".writing-"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and plain JSON values; `facts["step"]` is the number of steps done."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint below `folder` and remove all but the newest `keep`.

    Raises:
        TrainingError: It cannot be written; earlier checkpoints are untouched.
    """
    step = checkpoint.facts["step"]
    final = folder / f"{_PREFIX}{step:08d}"
    temporary = folder / f"{_TEMPORARY}{step:08d}"
    with disk_errors(f"checkpoint of step {step}", folder):
        try:
            _discard(temporary)
            temporary.mkdir(parents=True)
            _write(temporary, checkpoint)
            _discard(final)
            temporary.rename(final)
            _sync(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in checkpoints_in(folder)[:-keep]:
        _discard(old)
    return final


def newest_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """Return the newest checkpoint below `folder`, or None; clear away what was half-written.

    Raises:
        CheckpointError: The newest one is damaged or of a newer schema.
    """
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        _discard(leftover)
    found = checkpoints_in(folder)
    return read_checkpoint(found[-1], device) if found else None


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoint folders below `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def checkpoint_step(path: Path) -> int:
    """Return the step that a checkpoint folder is of."""
    return int(path.name.removeprefix(_PREFIX))


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read one checkpoint folder.

    Raises:
        CheckpointError: It is damaged or of a newer schema.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        facts = json.loads((path / "state.json").read_text())
        schema = facts["schema"]
        if schema > SCHEMA:
            raise CheckpointError(
                f"{path} has checkpoint schema {schema}, newer than {SCHEMA}; update undiffuse to resume it."
            )
        return Checkpoint(load_file(path / "state.safetensors", device=str(device)), facts)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); delete this folder to resume from the checkpoint before it."
        ) from error


@contextmanager
def disk_errors(what: str, folder: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into one line.

    Raises:
        TrainingError: Writing failed.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TrainingError(
            f"cannot write the {what} to {folder}: {reason}. What was written before is intact; make room, then run "
            f"the same command to go on."
        ) from error


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, folder / "state.safetensors")
    (folder / "state.json").write_text(json.dumps({"schema": SCHEMA, **checkpoint.facts}, indent=1))
    for path in (folder / "state.safetensors", folder / "state.json", folder):
        _sync(path)


def _discard(folder: Path) -> None:
    """Remove a checkpoint; renamed first, so that a kill in the middle leaves no half of one behind."""
    if not folder.exists():
        return
    doomed = folder.with_name(f"{_TEMPORARY}old-{folder.name.lstrip('.')}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
