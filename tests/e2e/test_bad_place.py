"""No room, no right, no memory, or somebody there already."""

from __future__ import annotations

import fcntl
import resource
from pathlib import Path

import pytest

from tests.e2e.command import TINY, Command, finish, start


def test_a_parent_that_is_a_file_is_refused(undiffuse: Command, digits_run: Path, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    assert undiffuse("train", "digits", *TINY, "--out", "file/run").refuses("file/run", "choose another")
    assert undiffuse("sample", digits_run, "-n", 1, "--steps", 1, "--out", "file/x").refuses("file/x", "choose another")
    assert undiffuse("sample", digits_run, "-n", 1, "--steps", 1, "--out", "file").refuses("file", "choose another")
    words = ("-n", 4, "--steps", 1, "--metrics", "agreement")
    assert undiffuse("evaluate", digits_run, *words, "--out", "file/x").refuses("file/x", "choose another")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_stops_training_with_a_remedy_and_no_half_model(tmp_path: Path):
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = start("train", "digits", *TINY, "--out", "run", cwd=tmp_path, preexec_fn=small_files_only)
    assert finish(process).refuses("cannot write", "run", "make room")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_full_disk_stops_sampling_with_a_remedy(undiffuse: Command, digits_run: Path, tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        answer = undiffuse("sample", digits_run, "-n", 2, "--steps", 1, "--out", "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert answer.refuses("make room", "--out")
    assert not [path for path in (tmp_path / "x").iterdir() if not path.name.endswith(".png")]


def test_two_runs_into_one_folder_are_told_apart(undiffuse: Command, tmp_path: Path):
    assert undiffuse("train", "digits", *TINY, "--out", "run").code == 0
    other = undiffuse("train", "digits", *TINY, "train.lr=0.5", "--out", "run")
    assert other.refuses("train.lr: 0.004 -> 0.5", "choose another out folder")
    with (tmp_path / "run" / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert undiffuse("train", "digits", *TINY, "--out", "run").refuses("another run", "choose another")


def test_a_network_that_does_not_fit_the_memory_is_refused_before_it_is_built(undiffuse: Command):
    huge = undiffuse("train", "digits", "model.channels=100000", "train.steps=1", "--out", "run")
    assert huge.refuses("training needs about", "are free", "model.channels")


def test_a_refused_plan_does_not_claim_the_folder(undiffuse: Command):
    undiffuse("train", "digits", "model.channels=100000", "train.steps=1", "--out", "run")
    assert undiffuse("train", "digits", *TINY, "--out", "run").code == 0


def test_a_folder_without_a_run_has_no_report(undiffuse: Command, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert undiffuse("report", "empty").refuses("empty", "undiffuse train")
    assert undiffuse("report", "missing").refuses("missing")


def test_a_read_only_place_is_refused(undiffuse: Command, digits_run: Path, tmp_path: Path):
    if __import__("os").geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    assert undiffuse("sample", digits_run, "-n", 1, "--steps", 1, "--out", "locked/x").refuses("locked", "permissions")
