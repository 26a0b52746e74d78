"""Ctrl-C: a checkpoint, a word on how to go on, and the same command goes on."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.e2e.command import TINY, finish, start

LONG = ("train", "digits", *TINY, "train.steps=100000", "train.log_every=5", "--out", "run")


def wait_for_steps(folder: Path, process: subprocess.Popen[str]) -> None:
    """Return once the log has a line."""
    log = folder / "log.jsonl"
    for _ in range(1200):
        if log.exists() and log.stat().st_size:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("training wrote no log in two minutes")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_an_interrupted_training_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals):
    process = start(*LONG, cwd=tmp_path)
    wait_for_steps(tmp_path / "run", process)
    process.send_signal(number)
    answer = finish(process)
    assert answer.code == 130, answer
    assert "Traceback" not in answer.out + answer.err
    (line,) = answer.err.splitlines()
    assert line.startswith("interrupted: ")
    assert "go on with: undiffuse train run" in line
    assert f"stopped by {number.name}" in answer.out
    assert (tmp_path / "run" / "model.safetensors").is_file()
    _resumes(tmp_path, LONG if number == signal.SIGINT else ("train", "run"))


def _resumes(folder: Path, words: tuple[str, ...]) -> None:
    """Check that a command goes on from the checkpoint."""
    before = (folder / "run" / "log.jsonl").stat().st_size
    process = start(*words, cwd=folder)
    while (folder / "run" / "log.jsonl").stat().st_size <= before + 200:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    answer = finish(process)
    assert answer.code == 130
    assert "resuming at step" in answer.out


def test_an_interruption_before_the_first_step_is_one_line(tmp_path: Path):
    process = start("train", "digits", *TINY, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "Looking at the data ...\n"
    process.send_signal(signal.SIGINT)
    answer = finish(process)
    assert answer.code == 130, answer
    assert answer.err.startswith("interrupted: ")
    assert "Traceback" not in answer.out + answer.err
