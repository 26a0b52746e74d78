"""The report of a model tuned for few steps: figures and pictures from before and after."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from undiffuse.report.elements import Section
from undiffuse.report.html import Report
from undiffuse.training.publish import picture

if TYPE_CHECKING:
    from undiffuse.distillation.acceleration import Accelerated

COLUMNS = ("model", "sampler", "calls", "independent", "held out", "tuned on", "energy", "spread", "copies")
NUMERIC = (2, 3, 4, 5, 6, 7, 8)
_HOW_TO_READ = (
    "“Independent” is the Frechet distance to all real items in features that the tuning never saw, “held out” the "
    "same to items that no training saw, “tuned on” that in the features of the tuning, “energy” the energy distance "
    "of the values themselves; lower is better. “Spread” is the variety of samples as a share of that of real items. "
    "“Copies” is the share of samples nearer to training items than to as many held-out ones: 0.5 is none, and what "
    "counts is that it does not grow. Calls are evaluations of the network per sample, those for guidance included. "
    "The best sampler found is that of all deterministic solvers on three grids by the “independent” figure itself, "
    "which favours it."
)


def acceleration_rows(result: Accelerated) -> list[tuple[str, ...]]:
    """Return the comparison as cells under `COLUMNS`."""
    rows = []
    for row in result.rows:
        f = row.figures
        values = (f.independent, f.held_out, f.tuned_on, f.energy, f.spread, f.copies)
        rows.append((row.name, row.sampler, str(row.calls), *(_cell(value) for value in values)))
    return rows


def acceleration_section(result: Accelerated, title: str = "Before and after") -> Section:
    """Return a section with the comparison of a tuning, and its pictures from the same noise."""
    section = Section(title)
    section.table(COLUMNS, acceleration_rows(result), NUMERIC).text(_HOW_TO_READ, "note")
    for what, note in result.notes.items():
        section.text(f"Features {what}: {note}.", "note")
    spec = result.model.spec
    if spec.kind != "vector":
        for name, samples in result.samples.items():
            section.picture(picture(samples, spec), f"{name}. All pictures are from the same noise.")
    return section


def acceleration_report(result: Accelerated, command: str = "") -> Path:
    """Write acceleration.html into the folder of a tuning and return its path.

    Args:
        result: What `accelerate` returned.
        command: How to do it again.
    """
    sampler = result.recipe.sample
    title = f"{result.recipe.train.init} in {sampler.steps} steps"
    report = Report(title, f"Tuned for {sampler.solver}, grid {sampler.grid}; {result.run.step} optimizer steps.")
    report.sections.append(acceleration_section(result))
    course = report.section("Course")
    course.table(
        ("step", "distance in the features that choose"),
        [(row["step"], _cell(row["distance"])) for row in result.monitor],
        (0, 1),
    ).text("The model kept is the one with the least distance; a rise after a fall is over-tuning.", "note")
    if command:
        course.code(command)
    return report.write(result.folder / "acceleration.html")


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
