from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from undiffuse.cli import progress
from undiffuse.cli.output import Output, plain
from undiffuse.events import Advanced, Finished, Message, Started


@pytest.fixture
def output() -> Output:
    """An output that writes into memory, as to a file."""
    made = Output()
    made.console = Console(file=io.StringIO(), width=100, highlight=False)
    return made


def written(output: Output) -> str:
    """Return what an output has written."""
    return output.console.file.getvalue()  # type: ignore[attr-defined]


def test_a_log_file_gets_a_line_now_and_then(output: Output, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Lines(output) as listener:
        listener(Started("train", 100, "step", done=20))
        for step in range(21, 61):
            now[0] += 0.5
            listener(Advanced("train", step, {"loss": 1 / step} if step % 10 == 0 else {}))
        listener(Finished("train"))
    lines = written(output).splitlines()
    assert lines == [
        "train 40 of 100, 2 steps/s, 30 s left, loss 0.025",
        "train 60 of 100, 2 steps/s, 20 s left, loss 0.01667",
    ]


def test_a_terminal_gets_a_bar_with_rate_and_figures(output: Output):
    output.console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with progress.Bars(output) as listener:
        listener(Started("train", 10))
        listener(Message("train", "the plan"))
        for step in range(1, 11):
            listener(Advanced("train", step, {"loss": 0.25}))
        listener(Finished("train"))
    shown = written(output)
    for part in ("the plan", "10/10", "loss 0.25", "steps/s"):
        assert part in shown


def test_an_event_of_an_unknown_task_is_no_trouble(output: Output):
    for listener in (progress.Lines(output), progress.Bars(output)):
        listener(Advanced("else", 1))
        listener(Finished("else"))


def test_text_from_outside_is_not_taken_for_markup(output: Output):
    made = Output()
    made.console.file = io.StringIO()
    made.say("[red]a folder[/red] :smile:")
    assert made.console.file.getvalue() == "[red]a folder[/red] :smile:\n"


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (89.6, "90 s"), (120, "2.0 min"), (7200, "2.0 h")])
def test_durations_read_well(seconds: float, text: str):
    assert progress.duration(seconds) == text


def test_results_are_json_that_every_parser_takes():
    from pathlib import Path

    found = plain({"path": Path("a/b"), "bad": float("nan"), "huge": float("inf"), "list": (1, True, None, "x")})
    assert found == {"path": "a/b", "bad": None, "huge": None, "list": [1, True, None, "x"]}
    json.dumps(found, allow_nan=False)
