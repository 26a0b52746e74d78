from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from undiffuse.cli import progress
from undiffuse.cli.output import Output
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
    assert "else" not in written(output)


def test_text_from_outside_is_not_taken_for_markup(output: Output):
    made = Output()
    made.console.file = io.StringIO()
    made.say("[red]a folder[/red] :smile:")
    assert made.console.file.getvalue() == "[red]a folder[/red] :smile:\n"


def test_results_are_json_that_every_parser_takes(capsys: pytest.CaptureFixture[str]):
    Output(as_json=True).result(
        {"path": Path("a/b"), "bad": float("nan"), "huge": float("inf"), "list": (1, True, "x")}
    )
    assert json.loads(capsys.readouterr().out) == {"path": "a/b", "bad": None, "huge": None, "list": [1, True, "x"]}
