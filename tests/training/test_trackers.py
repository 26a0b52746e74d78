"""What trackers get, read back from what they wrote."""

from __future__ import annotations

import sys
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.training.tiny import tiny_trainer
from undiffuse.errors import TrainingError
from undiffuse.images import write_image
from undiffuse.training import trackers
from undiffuse.training.log import read_log
from undiffuse.training.run import train
from undiffuse.training.trackers import flat_figures, open_trackers, require_trackers

needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed")


def events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return found


def curve(folder: Path, name: str) -> dict[int, float]:
    return {event.step: event.value for event in events(folder).Scalars(name)}


@needs_tensorboard
def test_tensorboard_has_the_figures_of_the_log_also_after_a_resumption(tmp_path):
    trainer = tiny_trainer(tmp_path, "watched", 40, trackers=("tensorboard",))
    trainer.resume()
    while trainer.state.step < 26:  # three log lines and two losses; the checkpoint is of step 20
        trainer.step()
        trainer._after_step(trainer.clock())
    trainer.log.trackers.finish()
    tiny_trainer(tmp_path, "watched", 40, trackers=("tensorboard",)).run()
    rows = read_log(tmp_path / "log.jsonl")
    for name in ("loss", "lr", "grad_norm"):
        assert curve(tmp_path, name) == pytest.approx({row["step"]: row[name] for row in rows if name in row})
    for name in ("loss", "train_loss"):
        expected = {row["step"]: row["validation"][name] for row in rows if "validation" in row}
        assert curve(tmp_path, f"validation/{name}") == pytest.approx(expected)
        assert list(expected) == [9, 18, 27, 36, 40]
    for event in events(tmp_path).Scalars("loss"):  # each step once: what was after the checkpoint is hidden
        assert sum(other.step == event.step for other in events(tmp_path).Scalars("loss")) == 1


@needs_tensorboard
def test_tensorboard_has_the_previews(tmp_path):
    from PIL import Image

    small = ["model.channels=8", "model.multipliers=1,", "model.blocks=1", "sample.steps=2", "data.limit=100"]
    short = {"steps": 2, "batch_size": 8, "preview_every": 1, "previews": 4, "trackers": ("tensorboard",)}
    train("digits", out=tmp_path, overrides=small, **short)
    shown = events(tmp_path).Images("preview")
    with Image.open(tmp_path / "samples" / "step-00000002.png") as picture:
        assert [(one.step, one.width, one.height) for one in shown] == [(step, *picture.size) for step in (1, 2)]


def test_a_missing_library_is_said_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"train\.trackers=wandb needs Weights .* pip install 'undiffuse\[track\]'"):
        train("no-such-data", out=tmp_path / "run", trackers=["wandb"])
    assert not (tmp_path / "run").exists()
    require_trackers(())


class Recorded:
    """Stands in for a W&B run, and for the library."""

    def __init__(self) -> None:
        self.started, self.rows, self.finished = [], [], 0
        library = types.ModuleType("wandb")
        library.init = self.init
        library.Image = lambda pixels: ("image", pixels.shape)
        self.library = library

    def init(self, **settings):
        self.started.append(settings)
        return self

    def log(self, values, step=None):
        self.rows.append((step, values))

    def finish(self):
        self.finished += 1


def test_wandb_is_called_as_it_asks_for_and_goes_on_with_its_run(tmp_path, monkeypatch):
    """The calls, against a stand-in; the library itself needs an account or its offline mode."""
    recorded = Recorded()
    monkeypatch.setitem(sys.modules, "wandb", recorded.library)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    write_image(tmp_path / "preview.png", np.zeros((6, 8), np.uint8))
    for step in (0, 20):
        opened = open_trackers(["wandb"], tmp_path, step)
        opened.log({"step": step + 1, "loss": 0.5, "lr": None, "validation": {"loss": 0.25, "levels": {"loss": [1.0]}}})
        opened.picture(tmp_path / "preview.png", step + 1)
        opened.finish()
    first, second = recorded.started
    assert first == second and first["resume"] == "allow" and len(first["id"]) == 32
    assert (first["project"], first["name"], first["dir"]) == ("undiffuse", tmp_path.name, str(tmp_path))
    figures, picture = recorded.rows[:2]
    assert figures == (1, {"loss": 0.5, "validation/loss": 0.25})
    assert picture == (1, {"preview": [("image", (6, 8, 3))]})
    assert recorded.finished == 2


def test_figures_are_flat_and_finite():
    row = {"step": 3, "images": 9, "loss": 1.0, "grad_norm": float("nan"), "seconds": 2.0, "levels": {"count": [1]}}
    assert flat_figures(row) == {"loss": 1.0}
