"""Sections about codebooks: how evenly code vectors are used, and what a new codebook brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from undiffuse.report.elements import Section
from undiffuse.report.plots import usage_curve

if TYPE_CHECKING:
    import numpy as np

    from undiffuse.metrics.codebook import CodebookHealth
    from undiffuse.training.refit import Refit

_COLUMNS = ("", "codes", "used", "perplexity", "squared error", "distance to the codes")
_MEANING = (
    "Used: share of the code vectors that occur. Perplexity: exp of the entropy of the tokens, the number of codes if "
    "all occur alike. Squared error: of reconstructions per value, in model units (pictures in [-1, 1])."
)


def health_section(health: CodebookHealth, picture: np.ndarray) -> Section:
    """Show the figures of a codebook, how often each code vector occurs, and reconstructions."""
    section = Section("Codebook").table(_COLUMNS, [_row("", health)], range(1, 6)).text(_MEANING, "note")
    section.figure(usage_curve({"codes": health.counts}), "How often each code vector occurs, most used first.")
    return section.picture(picture, "Items, and below them their reconstructions.")


def refit_section(refit: Refit, before: np.ndarray, after: np.ndarray) -> Section:
    """Show the figures of the old and of the new codebook, and reconstructions by both."""
    stages = [(name, getattr(refit, name)) for name in ("before", "rebuilt", "after")]
    rows = [_row(name, health) for name, health in stages if health is not None]
    section = Section("Codebook").table(_COLUMNS, rows, range(1, 6)).text(_MEANING, "note")
    counts = {name: health.counts for name, health in stages if health is not None and name != "rebuilt"}
    section.figure(usage_curve(counts), "How often each code vector occurs, most used first.")
    section.picture(before, "Items, and below them their reconstructions by the old codec.")
    return section.picture(after, "The same with the new codebook.")


def training_codebook(rows: list[dict[str, Any]]) -> Section | None:
    """Show the health of the codebook while the codec was trained, from the rows of its log; None without any."""
    known = [row for row in rows if "codebook" in row]
    if not known:
        return None
    table = [
        (
            f"step {row['step']:,}",
            str(row["codebook"]["codes"]),
            f"{row['codebook']['usage']:.1%}",
            f"{row['codebook']['perplexity']:.1f}",
            f"{row['codebook']['error']:.4g}",
            f"{row['codebook']['distance']:.3g}",
        )
        for row in known[-10:]
    ]
    return Section("Codebook").table(_COLUMNS, table, range(1, 6)).text(_MEANING, "note")


def _row(name: str, health: CodebookHealth) -> tuple[str, ...]:
    return (
        name,
        str(health.codes),
        f"{health.usage:.1%}",
        f"{health.perplexity:.1f}",
        f"{health.error:.4g}",
        f"{health.distance:.3g}",
    )
