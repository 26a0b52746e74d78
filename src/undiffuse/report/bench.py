"""The page of `undiffuse bench`: figures beside those asked for, ratios as bars, and where they were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undiffuse.report.elements import Section
from undiffuse.report.html import Report
from undiffuse.report.measures import Measure, Results
from undiffuse.report.plots import ratio_bars
from undiffuse.words import human_duration

COLUMNS = ("measure", "value", "asked", "verdict", "how")
_NUMERIC = (1, 2)
_TAIL = 30  # lines of a failed script that are shown


@dataclass(frozen=True)
class Outcome:
    """How one script went.

    Args:
        name: Name of the script.
        seconds: How long it took.
        results: What it found; None where it failed.
        problem: What it said when it failed.
    """

    name: str
    seconds: float
    results: Results | None = None
    problem: str = ""


def bench_report(outcomes: Sequence[Outcome], facts: Mapping[str, Any], left: Sequence[str] = ()) -> Report:
    """Return the page.

    Args:
        outcomes: The scripts that were run, in order.
        facts: Machine and versions, name -> value.
        left: Scripts that were asked for and have not been run.
    """
    page = Report("Benchmarks", tally(outcomes))
    page.section("Where").pairs(facts)
    if left:
        page.sections[0].text(f"Not run yet, or stopped before: {', '.join(left)}.", "warning")
    page.sections += [bench_section(outcome) for outcome in outcomes]
    return page


def bench_section(outcome: Outcome) -> Section:
    """Return the section of one script: its figures, or why there are none."""
    results = outcome.results
    if results is None:
        section = Section(outcome.name).text(
            f"{outcome.name} failed after {human_duration(outcome.seconds)}.", "warning"
        )
        return section.code("\n".join(outcome.problem.splitlines()[-_TAIL:]) or "it said nothing")
    section = Section(results.title).text(results.summary)
    section.table(COLUMNS, [row(measure) for measure in results.measures], _NUMERIC)
    bars = [measure for measure in results.measures if is_bar(measure)]
    if bars:
        section.figure(
            ratio_bars(
                [bar.name for bar in bars], [float(bar.value or 0.0) for bar in bars], [bar.asked for bar in bars]
            ),
            "Ratios. The dotted line is 1; a tick marks what was asked.",
        )
    made = {"script": outcome.name, "took": human_duration(outcome.seconds)} | dict(results.settings)
    return section.text("; ".join(f"{key} {_plain(value)}" for key, value in made.items()) + ".", "note")


def is_bar(measure: Measure) -> bool:
    """Whether a measure is a ratio that can be drawn."""
    return measure.unit == "ratio" and measure.value is not None and math.isfinite(measure.value)


def row(measure: Measure) -> tuple[str, ...]:
    """Return the cells of a measure under `COLUMNS`."""
    sign = "≤" if measure.better == "lower" else "≥"
    asked = "" if measure.asked is None else f"{sign} {figure(measure.asked)}"
    return (measure.name, _value(measure), asked, verdict(measure), measure.note)


def verdict(measure: Measure) -> str:
    """Return "met", "short" or "", and by how much it is short."""
    if measure.met is None:
        return ""
    if measure.met:
        return "met"
    if not is_bar(measure) or not measure.asked or not measure.value:
        return "short"
    factor = measure.value / measure.asked if measure.better == "lower" else measure.asked / measure.value
    return f"short by {100 * (factor - 1):.1f} %" if factor < 10 else "short"


def tally(outcomes: Sequence[Outcome]) -> str:
    """Return one line: how many figures reach what was asked, and how many scripts failed."""
    verdicts = [measure.met for outcome in outcomes if outcome.results for measure in outcome.results.measures]
    asked = [met for met in verdicts if met is not None]
    failed = sum(outcome.results is None for outcome in outcomes)
    line = f"{sum(asked)} of {len(asked)} figures that something was asked of are met, from {len(outcomes)} script(s)"
    return f"{line}; {failed} script(s) failed." if failed else f"{line}."


def figure(value: float) -> str:
    """Return a number with three figures, whole numbers from 1000 on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _value(measure: Measure) -> str:
    if measure.value is None:
        return "none"
    error = f" ± {figure(measure.error)}" if measure.error is not None else ""
    unit = "" if measure.unit == "ratio" else f" {measure.unit}"
    return f"{figure(measure.value)}{error}{unit}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
