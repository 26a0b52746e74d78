"""The section of a report that shows an evaluation: figures, curves, pictures, texts."""

from __future__ import annotations

from typing import Any

from undiffuse.metrics.results import Evaluation
from undiffuse.report.elements import Section
from undiffuse.report.plots import guidance_curve, nearest_histogram, scatter

_NUMERIC = (1, 2, 3, 4)
_HOW_TO_READ = (
    "“Real data” is the same figure for real items: two sets of them of the same size, or the judge's own accuracy. "
    "A figure ending in x is a multiple of that floor: 1x is as close as real data is to itself."
)


def evaluation_section(evaluation: Evaluation | dict[str, Any], title: str = "Evaluation") -> Section:
    """Return a section with everything an evaluation found.

    Args:
        evaluation: The result of `evaluate`, or its `to_json` (which has no pictures).
        title: Heading of the section.
    """
    if isinstance(evaluation, dict):
        evaluation = Evaluation.from_json(evaluation)
    section = Section(title)
    made = {"samples": evaluation.n, "seed": evaluation.seed} | evaluation.settings
    section.text("Measured with " + ", ".join(f"{key} {value}" for key, value in made.items()) + ".", "note")
    if evaluation.rows:
        section.table(Evaluation.columns, evaluation.table(), _NUMERIC).text(_HOW_TO_READ, "note")
    for line in evaluation.warnings:
        section.text(line, "note")
    _add_figures(section, evaluation)
    for caption, pixels in evaluation.pictures.items():
        section.picture(pixels, caption)
    if evaluation.texts:
        section.texts(evaluation.texts)
    return section


def _add_figures(section: Section, evaluation: Evaluation) -> None:
    series = evaluation.series
    if "guidance" in series:
        section.figure(guidance_curve(series["guidance"]), "What guidance buys and costs; scale 1 is unguided.")
    if "scatter" in series:
        section.figure(scatter(series["scatter"]), "Real data and samples on the same axes.")
    if "nearest" in series:
        caption = (
            "Distances from samples to the nearest training and held-out items; they coincide unless the model copies."
        )
        section.figure(nearest_histogram(**series["nearest"]), caption)
