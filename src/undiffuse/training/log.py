"""`log.jsonl`: one JSON object a line, appended in whole lines, cut back to the checkpoint on resumption.

Rows have a "step" and one of these: "loss" with the figures of the steps since the last such row, "levels" with the
loss by noise level since the last checkpoint, "validation" with what `training.validation` measured, "codebook" with
the health of a codec's codebook.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from undiffuse.files import write_whole
from undiffuse.training.checkpoints import disk_errors
from undiffuse.training.trackers import Trackers
from undiffuse.words import plain_json


class RunLog:
    """Appends rows to a JSONL file; every row has the "step" it belongs to.

    Args:
        path: The file.
        step: Steps done so far; rows of later steps, written after the checkpoint, are removed.
        trackers: Get every row too.
    """

    def __init__(self, path: Path, step: int, trackers: Trackers | None = None) -> None:
        self.path, self.trackers = path, trackers or Trackers()
        kept = [row for row in read_log(path) if row["step"] <= step]
        with disk_errors("log", path.parent):
            write_whole(path, lambda part: part.write_text(_lines(kept)))

    def append(self, *rows: dict[str, Any]) -> None:
        """Write rows and flush them.

        Raises:
            TrainingError: The disk is full or not writable.
        """
        with disk_errors("log", self.path.parent), self.path.open("a") as file:
            file.write(_lines(rows))
        for row in rows:
            self.trackers.log(row)

    def picture(self, path: Path | None, step: int) -> None:
        """Show a preview to the trackers; None and texts are not shown."""
        if path is not None and path.suffix == ".png":
            self.trackers.picture(path, step)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log, or none where there is no file; a half-written last line is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(plain_json(row)) + "\n" for row in rows)
