"""The sections of a report that show a probe, and layers beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from undiffuse.report.elements import Section
from undiffuse.report.plots import accuracy_curves, heat_map

if TYPE_CHECKING:
    from undiffuse.analysis.similarity import Comparison
    from undiffuse.tasks.features.search import ProbeSearch
    from undiffuse.tasks.features.study import ProbeStudy

_SHOWN = 12


def probe_sections(study: ProbeStudy) -> list[Section]:
    """Return sections with the accuracy beside the baselines, the search, and the few-label curves."""
    from undiffuse.tasks.features.study import COLUMNS

    section = Section("Accuracy")
    made = study.settings
    section.text(
        f"Trained on {made['learned_from']} items, judged once by {made['judged_by']} others. The network is frozen; "
        "the baselines read the same block before training, and the items themselves. Errors are binomial.",
        "note",
    )
    section.table(COLUMNS, study.table(), (1, 3, 4))
    sections = [section]
    if study.search is not None:
        sections.append(search_section(study.search))
    curves = {
        row.name: ([part.count for part in row.few if part.count], [part.accuracy for part in row.few if part.count])
        for row in study.rows
        if row.few
    }
    if curves:
        few = Section("Few labels").text("Mean accuracy over choices of the labelled items.", "note")
        few.figure(accuracy_curves(curves, "labels of each class", log=True), "Accuracy by the number of labels.")
        sections.append(few)
    return sections


def search_section(search: ProbeSearch) -> Section:
    """Return a section with the candidates of a search, and accuracy by time for each layer."""
    made = search.settings
    section = Section("Which block, time and pooling")
    section.text(
        f"By {made['folds']} folds of {made['items']} items to learn from, head {made['head']}; what judges took no "
        f"part. The best of {len(search.rows)}:",
        "note",
    )
    section.table(search.columns, search.table(_SHOWN), (1, 2, 3, 4, 5))
    pool = search.best.pool
    curves = {}
    for layer in dict.fromkeys(row.layer for row in search.rows):
        rows = sorted((row for row in search.rows if row.layer == layer and row.pool == pool), key=lambda row: row.t)
        if rows:
            curves[layer] = ([row.t for row in rows], [row.accuracy for row in rows])
    if any(len(times) > 1 for times, _ in curves.values()):
        section.figure(accuracy_curves(curves, "t", log=False), f"Accuracy by time and layer, pool {pool}.")
    return section


def comparison_section(comparison: Comparison, title: str = "Layers") -> Section:
    """Return a section with the CKA between layers."""
    values = comparison.values.numpy()
    made = comparison.settings
    kind = "unbiased" if made.get("unbiased") else "biased"
    section = Section(title).text(
        f"Linear CKA, {kind}, of {made.get('items')} items: 1 is equal up to rotation.", "note"
    )
    low = min(0.0, float(np.floor(values.min() * 10) / 10))
    section.figure(heat_map(values, comparison.first, comparison.second, low=low), "Rows: the first model.")
    return section.table(comparison.columns, comparison.table(), range(1, len(comparison.columns)))
