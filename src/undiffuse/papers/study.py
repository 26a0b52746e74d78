"""What a reproduction found: parts with a table, figures beside what was asked, and a picture; and its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from undiffuse.events import Advanced, Finished, Listener, Message, Started
from undiffuse.report.bench import COLUMNS, row
from undiffuse.report.html import Report
from undiffuse.report.measures import Measure
from undiffuse.words import plain_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from undiffuse.papers.catalogue import Paper


Keep = Callable[["Study"], None]
"""Hears of a study after each part, to write what there is."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One table or picture of a reproduction.

    Args:
        title: Heading.
        text: What was done, and how to read the result.
        columns: Heads of the table; none for no table.
        rows: Its cells.
        numeric: Columns aligned on the right.
        measures: Figures beside those asked for.
        figure: A picture.
        caption: What it shows.
    """

    title: str
    text: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    numeric: Sequence[int] = ()
    measures: Sequence[Measure] = ()
    figure: Figure | None = None
    caption: str = ""


@dataclass(frozen=True)
class Study:
    """A whole reproduction.

    Args:
        parts: In reading order.
        settings: What the figures depend on: seed, quick, machine.
    """

    parts: tuple[Part, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measures(self) -> list[Measure]:
        """The figures of all parts."""
        return [measure for part in self.parts for measure in part.measures]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the pictures as plain JSON."""
        parts = [
            {"title": part.title, "columns": list(part.columns), "rows": [list(cells) for cells in part.rows]}
            for part in self.parts
        ]
        figures = [{**vars(measure), "met": measure.met} for measure in self.measures]
        return plain_json({"parts": parts, "measures": figures, "settings": dict(self.settings)})

    def report(self, name: str, paper: Paper) -> Report:
        """Return the page."""
        page = Report(paper.title, f"{paper.source}. Reproduced at small scale with: undiffuse papers {name}")
        page.section("The claim").text(paper.claim).text(self.tally())
        for part in self.parts:
            section = page.section(part.title).text(part.text)
            if part.columns:
                section.table(part.columns, part.rows, part.numeric)
            if part.figure is not None:
                section.figure(part.figure, part.caption)
            if part.measures:
                section.table(COLUMNS, [row(measure) for measure in part.measures], (1, 2))
        page.section("Settings").pairs(self.settings)
        return page

    def tally(self) -> str:
        """Return one line: how many of the figures that something is asked of reach it."""
        asked = [measure.met for measure in self.measures if measure.met is not None]
        if not asked:
            return "Nothing is asked of these figures."
        return f"{sum(asked)} of {len(asked)} figures that something is asked of reach it."


def run_parts(
    name: str,
    parts: Sequence[tuple[str, Callable[[], Part]]],
    settings: Mapping[str, Any],
    listener: Listener,
    keep: Keep,
) -> Study:
    """Compute parts one after the other, tell the listener, and hand over what there is after each."""
    study = Study((), settings)
    listener(Started(name, len(parts), "part"))
    for number, (title, part) in enumerate(parts, 1):
        listener(Message(name, title))
        study = Study((*study.parts, part()), settings)
        keep(study)
        listener(Advanced(name, number))
    listener(Finished(name))
    return study


def drop(study: Study) -> None:
    """Keep nothing on the way."""


def short(value: float | None) -> str:
    """Return a figure in two digits, as tables of errors have it."""
    return "" if value is None else f"{value:.1e}" if value and not 0.01 <= abs(value) < 1000 else f"{value:.2g}"
