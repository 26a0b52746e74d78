"""What a command line answered, and how a refusal must look."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TINY = ("model.channels=8", "train.steps=3", "train.batch_size=8", "train.preview_every=0", "train.validate_items=16")
TINY_TEXT = ("model.width=16", "model.depth=1", "model.heads=2", "data.length=16", *TINY[1:])


class Answer(NamedTuple):
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str

    def refuses(self, *parts: str, code: int = 1) -> bool:
        """Whether the command failed with one line on stderr that contains all `parts`, and no traceback."""
        lines = self.err.splitlines()
        assert self.code == code, self
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        assert "Traceback" not in self.out + self.err
        assert "bug" not in self.err
        missing = [part for part in parts if part not in self.err]
        assert not missing, (missing, self.err)
        return True


Command = Callable[..., Answer]


LAUNCHER = ("torch.distributed.run", "--standalone", "--nproc-per-node")


def start(*words: object, cwd: Path, processes: int = 1, **options: object) -> subprocess.Popen[str]:
    """Start the command in a process of its own, or in several."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    launcher = () if processes == 1 else (*LAUNCHER, str(processes), "-m")
    command = [sys.executable, "-m", *launcher, "undiffuse", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, **pipes, **options)  # type: ignore[call-overload]


def finish(process: subprocess.Popen[str]) -> Answer:
    """Wait for a process and return what it said."""
    out, err = process.communicate(timeout=120)
    return Answer(process.returncode, out, err)
