"""Listeners that show progress: bars on a terminal, a line every few seconds in a log file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from undiffuse.events import Advanced, Event, Finished, Message, Started
from undiffuse.words import human_duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from undiffuse.cli.output import Output

_SECONDS_BETWEEN_LINES = 10.0
_WIDE = 110  # columns of a terminal that has room for more than one figure


class Bars:
    """One bar per task, with rate, time left and the newest figures; for terminals."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.bars: dict[str, TaskID] = {}
        self.progress = _bars(output)
        self.most_figures = 3 if output.console.width >= _WIDE else 1

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Started):
            self.bars[event.task] = self.progress.add_task(
                event.task, total=event.total, completed=event.done, rate="", figures="", unit=event.unit
            )
        elif isinstance(event, Advanced) and event.task in self.bars:
            self._advance(self.bars[event.task], event)
        elif isinstance(event, Message):
            _say(self.output, event)
        elif isinstance(event, Finished) and event.task in self.bars:
            self.progress.stop_task(self.bars.pop(event.task))

    def _advance(self, bar: TaskID, event: Advanced) -> None:
        self.progress.update(bar, completed=event.done)
        task = next(task for task in self.progress.tasks if task.id == bar)
        shown = {"rate": f"{task.speed:.3g} {task.fields['unit']}s/s"} if task.speed else {}
        if event.info:
            shown["figures"] = figures(event.info, self.most_figures)
        self.progress.update(bar, **shown)  # type: ignore[arg-type]


class Lines:
    """A line per task every ten seconds; for files and pipes."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.begun: dict[str, Started] = {}
        self.since: dict[str, float] = {}
        self.info: dict[str, float] = {}
        self.last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Started):
            self.begun[event.task], self.since[event.task] = event, time.monotonic()
        elif isinstance(event, Advanced):
            self.info = event.info or self.info
            self._line(event)
        elif isinstance(event, Message):
            _say(self.output, event)

    def _line(self, event: Advanced) -> None:
        now = time.monotonic()
        begun = self.begun.get(event.task)
        if begun is None or now - self.last < _SECONDS_BETWEEN_LINES:
            return
        self.last = now
        rate = (event.done - begun.done) / max(now - self.since[event.task], 1e-9)
        left = human_duration((begun.total - event.done) / rate) if rate > 0 else "?"
        line = f"{event.task} {event.done} of {begun.total}, {rate:.3g} {begun.unit}s/s, {left} left"
        self.output.say(f"{line}, {figures(self.info)}" if self.info else line)


def figures(info: dict[str, float], most: int = 3) -> str:
    """Return the first `most` figures as "loss 0.123, lr 0.001"."""
    return ", ".join(f"{name} {value:.4g}" for name, value in list(info.items())[:most])


def _say(output: Output, event: Message) -> None:
    (output.warn if event.level == "warning" else output.say)(event.text)


def _bars(output: Output) -> Progress:
    """Return the bar, narrow enough for 80 columns."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left {task.fields[figures]}"),
        console=output.console,
    )
