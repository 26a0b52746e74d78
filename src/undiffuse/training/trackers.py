"""Figures and previews for TensorBoard and Weights & Biases, through accelerate; `log.jsonl` is written in any case.

A tracker gets every row of the log: "loss", "lr", "grad_norm", "bad_steps", "validation/loss" and so on, under the
step that the row belongs to. What a run wrote after its last checkpoint is hidden (TensorBoard) or kept as it was
(W&B, which takes no step twice) when it resumes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from undiffuse.errors import TrainingError
from undiffuse.files import write_whole

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

_NOT_FIGURES = frozenset({"step", "seconds", "images", "items"})
_NAMES = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}


def require_trackers(names: Sequence[str]) -> None:
    """Check that the libraries of trackers are there.

    Raises:
        TrainingError: One is missing.
    """
    for name in names:
        if find_spec(name) is None:
            raise TrainingError(
                f"train.trackers={name} needs {_NAMES[name]}, which is not installed; run pip install "
                f"'undiffuse[track]', or leave it out: log.jsonl has the same figures."
            )


class Trackers:
    """Writes rows and pictures to several trackers.

    Args:
        trackers: Trackers of accelerate, started.
    """

    def __init__(self, trackers: Sequence[GeneralTracker] = ()) -> None:
        self.trackers = list(trackers)

    def log(self, row: dict[str, Any]) -> None:
        """Write the figures of a row of the log; tables and what is not finite are left out."""
        figures = flat_figures(row)
        if figures:
            for tracker in self.trackers:
                tracker.log(figures, step=row["step"])

    def picture(self, path: Path, step: int) -> None:
        """Write a preview."""
        if not self.trackers:
            return
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))[None]
        for tracker in self.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"preview": pixels}, step=step, **layout)

    def finish(self) -> None:
        """Write what is left, and close."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers = []


def open_trackers(names: Sequence[str], folder: Path, step: int) -> Trackers:
    """Start trackers for a run.

    Args:
        names: "tensorboard", which writes into `folder`/tensorboard, and "wandb", project "undiffuse".
        folder: The run's folder.
        step: Steps done so far.

    Raises:
        TrainingError: A library is missing.
    """
    require_trackers(names)
    trackers = [_MAKERS[name](folder, step) for name in names]
    for tracker in trackers:
        tracker.start()
    return Trackers(trackers)


def flat_figures(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of a row of the log by path, without counters and tables."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, dict) and key != "levels":
            flat |= flat_figures(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key not in _NOT_FIGURES and np.isfinite(value):
            flat[prefix + key] = value
    return flat


def _tensorboard(folder: Path, step: int) -> GeneralTracker:
    from accelerate.tracking import TensorBoardTracker

    resumed = {"purge_step": step + 1} if step else {}
    return TensorBoardTracker("tensorboard", folder, **resumed)


def _wandb(folder: Path, step: int) -> GeneralTracker:
    from accelerate.tracking import WandBTracker

    return WandBTracker("undiffuse", name=folder.resolve().name, dir=str(folder), id=_wandb_id(folder), resume="allow")


def _wandb_id(folder: Path) -> str:
    """Return the name that W&B knows the run by, made once."""
    path = folder / "wandb.json"
    if not path.exists():
        text = json.dumps({"id": uuid.uuid4().hex}) + "\n"
        write_whole(path, lambda part: part.write_text(text))
    return str(json.loads(path.read_text())["id"])


_MAKERS = {"tensorboard": _tensorboard, "wandb": _wandb}
