from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from undiffuse.cli.failures import (
    FAILED,
    INTERRUPTED,
    WRONG_USAGE,
    Interrupted,
    goes_on,
    message,
    report_failure,
    usage_message,
)
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec

ROOT = Path(__file__).parents[2]


def caught(action) -> BaseException:
    """Return what an action raises, with its traceback."""
    with pytest.raises(BaseException) as info:
        action()
    return info.value


def test_our_errors_are_shown_as_they_are():
    assert message(DataError("photos is empty; add pictures.")) == "photos is empty; add pictures."


def test_a_value_error_raised_by_our_code_is_a_refusal():
    error = caught(lambda: DataSpec(kind="image", shape=(8, 8)))
    assert message(error) == str(error)
    assert "bug" not in message(error)


def test_a_value_error_of_python_or_of_another_library_is_a_bug():
    assert "this is a bug; run with --debug" in message(caught(lambda: float("x")))
    # Raised inside our module, but by the interpreter, not by a raise statement of ours.
    error = caught(lambda: DataSpec(kind="image", shape=None))  # type: ignore[arg-type]
    assert isinstance(error, TypeError)
    assert "this is a bug" in message(error)


def test_an_unexpected_error_names_its_kind():
    assert message(KeyError("left")).startswith("KeyError: 'left' (this is a bug")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 bytes")])
def test_running_out_of_memory_has_a_remedy(error: BaseException):
    assert message(error).startswith("out of memory; lower -n")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EFBIG, "make room"),
        (errno.EACCES, "permissions"),
        (errno.ENOTDIR, "in the way"),
        (errno.EIO, "check the path"),
    ],
)
def test_trouble_of_the_disk_names_the_place_and_a_remedy(number: int, remedy: str):
    said = message(OSError(number, "Trouble", "there/x.png"))
    assert "(there/x.png)" in said
    assert remedy in said


def test_a_failure_is_one_line_on_stderr(capsys: pytest.CaptureFixture[str]):
    assert report_failure(DataError("first\n   second")) == FAILED
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: first second\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("go on")])
def test_an_interruption_has_a_code_of_its_own(error: BaseException, capsys: pytest.CaptureFixture[str]):
    assert report_failure(error) == INTERRUPTED
    assert capsys.readouterr().err.startswith("interrupted: ")


def test_an_interruption_says_to_run_again_only_where_that_goes_on(capsys: pytest.CaptureFixture[str]):
    report_failure(KeyboardInterrupt())
    assert "same command" not in capsys.readouterr().err
    with pytest.raises(Interrupted, match="rows are in x; the same command goes on"), goes_on("rows are in x"):
        raise KeyboardInterrupt


def test_errors_of_ours_are_not_taken_for_wrong_usage():
    assert usage_message(DataError("x")) is None


def test_wrong_usage_has_a_code_of_its_own(capsys: pytest.CaptureFixture[str]):
    import typer

    assert report_failure(typer.BadParameter("no such thing")) == WRONG_USAGE
    assert "no such thing" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "undiffuse", "info", "nothing-here"]
    plain = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    debugged = subprocess.run([*command, "--debug"], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debugged.stderr
