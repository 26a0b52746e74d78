"""How fast a recipe trains on this machine, for runs that have a time budget instead of a number of steps."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from undiffuse.training.log import read_log
from undiffuse.training.run import train

_PROBE_STEPS = 24


def steps_within(source: str, recipe: str, seconds: float, overrides: Sequence[str] = ()) -> int:
    """Return how many steps of `recipe` fit into the time, from the speed of a few; at least 1.

    Args:
        source: Data, as for `train`.
        recipe: Recipe, as for `train`.
        seconds: Time budget.
        overrides: Changes to the recipe, "group.key=value".
    """
    part = _PROBE_STEPS // 3  # the first third warms up
    probe = (f"train.steps={_PROBE_STEPS}", f"train.log_every={part}", "train.preview_every=0")
    with tempfile.TemporaryDirectory() as folder:
        train(source, recipe, out=folder, overrides=(*overrides, *probe))
        rows = [row for row in read_log(Path(folder) / "log.jsonl") if "loss" in row]
    taken = max(rows[-1]["seconds"] - rows[0]["seconds"], 1e-9)
    return max(1, int(seconds * (rows[-1]["step"] - rows[0]["step"]) / taken))
