"""What the command prints: lines and tables for people, or one JSON object for machines."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from undiffuse.events import Listener
from undiffuse.models.world import speaks
from undiffuse.words import plain_json

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 160  # columns of a table that no terminal limits


class Output:
    """Where a sub-command speaks.

    Args:
        as_json: Keep stdout for the JSON object that `finish` prints; people read stderr then.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = _console(as_json)
        self._warned: set[str] = set()
        warnings.showwarning = self._show_warning

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line for people."""
        self.console.print(text, style=style, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning for people."""
        self.say(text if text.startswith("warning") or " warning: " in text else f"warning: {text}", "yellow")

    def pairs(self, values: Mapping[str, Any]) -> None:
        """Print names and values side by side."""
        width = max(map(len, values), default=0)
        for name, value in values.items():
            self.say(f"{name:<{width}}  {value}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> None:
        """Print a table; the columns numbered in `numeric` are aligned on the right."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number in numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)

    def finish(self, line: str, result: Mapping[str, Any]) -> None:
        """End with a line for people, and under `--json` with the object for machines."""
        self.say(line, "bold")
        self.result(result)

    def result(self, result: Mapping[str, Any]) -> None:
        """Print the JSON object, where one was asked for."""
        if self.as_json and speaks():
            print(json.dumps(plain_json(result), allow_nan=False), flush=True)

    @contextmanager
    def progress(self) -> Iterator[Listener]:
        """Yield a listener that draws bars on a terminal and prints a line now and then elsewhere."""
        from undiffuse.cli.progress import Bars, Lines

        with Bars(self) if self.console.is_terminal else Lines(self) as listener:
            yield listener

    def _show_warning(self, message: Warning | str, *place: Any, **more: Any) -> None:
        """Say each warning once, from wherever it comes."""
        text = " ".join(str(message).split())
        if text not in self._warned:
            self._warned.add(text)
            self.warn(text)


def _console(as_json: bool) -> Console:
    from rich.console import Console

    if not speaks():  # one of several processes, of which the main one speaks
        return Console(file=open(os.devnull, "w"))  # it stays open as long as stdout does
    stream = sys.stderr if as_json else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
