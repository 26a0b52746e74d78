"""Fixtures of the end-to-end tests: the command in an empty folder, and two runs of three steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.command import TINY, TINY_TEXT, Answer, Command
from undiffuse.cli.main import run


@pytest.fixture
def undiffuse(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command line in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Answer:
        capsys.readouterr()
        code = run([str(word) for word in words])
        return Answer(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on the digits; tests must not write into it."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    assert run(["train", "digits", *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps on the built-in prose; tests must not write into it."""
    folder = tmp_path_factory.mktemp("runs") / "text"
    assert run(["train", "prose", *TINY_TEXT, "--out", str(folder)]) == 0
    return folder
