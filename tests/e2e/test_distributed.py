"""The command in two processes on the CPU: the files of one, one voice, and no process left waiting."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.command import Answer, Command, finish, start
from undiffuse.training.checkpoints import checkpoints_in
from undiffuse.training.log import read_log


def in_two(*words: object, cwd: Path) -> Answer:
    return finish(start(*words, cwd=cwd, processes=2))


def errors(answer: Answer) -> list[str]:
    """Lines that the command said about errors; the launcher says more."""
    return [line for line in answer.err.splitlines() if line.startswith(("error: ", "interrupted: "))]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_processes_write_the_samples_of_one(undiffuse: Command, tmp_path: Path):
    words = ("sample", "digits", "-n", 20, "--batch-size", 6, "--steps", 2, "--guidance", 2, "--json", "--out")
    one, two = undiffuse(*words, tmp_path / "a"), in_two(*words, tmp_path / "b", cwd=tmp_path)
    assert (one.code, two.code) == (0, 0), two.err
    assert len(contents(tmp_path / "a")) == 21
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert json.loads(two.out) == json.loads(one.out.replace(str(tmp_path / "a"), str(tmp_path / "b")))


@pytest.mark.slow
def test_two_processes_evaluate_as_one(undiffuse: Command, tmp_path: Path):
    words = ("evaluate", "digits", "-n", 300, "--steps", 2, "--metrics", "agreement,frechet", "--json", "--out")
    one, two = undiffuse(*words, tmp_path / "a"), in_two(*words, tmp_path / "b", cwd=tmp_path)
    assert (one.code, two.code) == (0, 0), two.err
    assert (tmp_path / "b" / "metrics.json").read_bytes() == (tmp_path / "a" / "metrics.json").read_bytes()
    assert json.loads(two.out)["rows"] == json.loads(one.out)["rows"]


@pytest.mark.slow
def test_an_error_is_said_once(tmp_path: Path):
    answer = in_two("sample", "digits", "--label", 77, cwd=tmp_path)
    assert answer.code != 0
    assert len(errors(answer)) == 1, answer.err
    assert "label 77 does not exist" in errors(answer)[0]


@pytest.mark.slow
def test_ctrl_c_stops_all_after_a_checkpoint(tmp_path: Path):
    words = ("train", "moons", "model.width=16", "train.steps=1000000", "train.log_every=5", "--out", "run")
    process = start(*words, cwd=tmp_path, processes=2, start_new_session=True)
    wait_for_steps(tmp_path / "run", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and to its processes
    answer = finish(process)
    assert answer.code != 0
    assert answer.out.count("stopped by SIGINT") == 1
    assert len(errors(answer)) == 1 and "go on with: undiffuse train run" in errors(answer)[0], answer.err
    assert len(checkpoints_in(tmp_path / "run" / "checkpoints")) == 1


def wait_for_steps(folder: Path, process) -> None:
    deadline = time.monotonic() + 90
    while not read_log(folder / "log.jsonl"):
        assert process.poll() is None and time.monotonic() < deadline, "no step was made"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_process_that_dies_takes_the_others_along(tmp_path: Path):
    words = ("train", "moons", "model.width=16", "train.steps=1000000", "train.log_every=5", "--out", "run")
    process = start(*words, cwd=tmp_path, processes=2, start_new_session=True)
    wait_for_steps(tmp_path / "run", process)
    os.kill(worker_of(process.pid), signal.SIGKILL)
    answer = finish(process)
    assert answer.code != 0
    assert len(errors(answer)) <= 1, answer.err


def worker_of(launcher: int) -> int:
    """Return the process number of the last worker of a launcher."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return int(children[-1])
