"""Data parallelism: two processes on the CPU train what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.test_resume import ROOT
from undiffuse.training.lock import locked
from undiffuse.training.log import read_log
from undiffuse.training.run import train

OPTIONS = {"steps": 6, "batch_size": 16, "log_every": 1, "warmup": 1, "accumulate": 2, "device": "cpu"}
# Stratification is per process, so that only plain times are the same whatever the number of processes.
OVERRIDES = ["model.width=16", "model.depth=1", "data.limit=100", "objective.stratified=false"]
SCRIPT = f"""
import sys
from undiffuse.training.run import train
train("moons", out=sys.argv[1], overrides={OVERRIDES!r}, **{OPTIONS!r})
"""


def launch(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    words = [*command, str(script), str(folder)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)


def test_two_processes_train_what_one_does(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = launch(tmp_path / "script.py", tmp_path / "two")
    assert done.returncode == 0, done.stderr[-2000:]
    one = train("moons", out=tmp_path / "one", overrides=OVERRIDES, **OPTIONS)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
    two = [row["loss"] for row in read_log(tmp_path / "two" / "log.jsonl") if "loss" in row]
    assert two == pytest.approx(list(one.losses), rel=1e-4)  # float32 sums in another order, through six AdamW steps


FAILING = f"""
import os, sys
from pathlib import Path
from undiffuse.errors import TrainingError
from undiffuse.training.run import train
try:
    train("moons", out=sys.argv[1], overrides={OVERRIDES!r}, **{OPTIONS!r})
except TrainingError as error:
    Path(sys.argv[1], os.environ["RANK"] + ".txt").write_text(str(error))
"""


def test_what_stops_one_process_stops_all(tmp_path):
    (tmp_path / "script.py").write_text(FAILING)
    with locked(tmp_path):
        done = launch(tmp_path / "script.py", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "another run" in (tmp_path / "0.txt").read_text()
    assert "another process of this run failed" in (tmp_path / "1.txt").read_text()
