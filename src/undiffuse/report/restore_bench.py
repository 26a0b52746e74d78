"""The page of a restoration benchmark: its table, a picture of PSNR against spread, and what could not be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from undiffuse.report.html import Report
from undiffuse.report.plots import labelled_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from undiffuse.tasks.restore.bench_results import BenchRow, RestoreBench

_HOW_TO_READ = (
    "PSNR, one: of a single sample; PSNR, mean: of the mean of all samples of an image, the estimate with the least "
    "squared error. Spread: variance of the samples over the squared error of their mean, corrected for their number; "
    "1 is calibrated, below 1 the samples claim to know more than they do, and the PSNR of one sample rises for it. "
    "Residual / noise: near 1 where the method takes the noise for noise, near 0 where it fits it."
)
_TOP1 = (
    "Top-1: share of single samples in which a classifier sees the right class, beside that of the true pictures, the "
    "best to expect; with intervals of 95 % (Wilson), which count pictures and not their samples. Where the data name "
    "no classes, right is what the classifier sees in the true picture."
)
_EXACT = (
    "The exact posterior of this prior is known. Spread / exact is the variance of the samples over its variance; the "
    "energy distance is to its samples (0 is perfect); to exact mean is the squared distance of the samples' mean to "
    "its mean, summed over an item."
)


def restore_bench_page(bench: RestoreBench, title: str, examples: Mapping[str, Any] | None = None) -> Report:
    """Return the page.

    Args:
        bench: The rows.
        title: Heading.
        examples: Caption -> strip of pictures, uint8.
    """
    page = Report(title, "Restoration measured on items whose truth is known.")
    section = page.section("All rows").text(_HOW_TO_READ, "note")
    numeric = [i for i, name in enumerate(bench.shown) if name in bench.numeric]
    section.table(bench.columns, bench.table(), numeric)
    if any(row.top1 is not None for row in bench.done):
        section.text(_TOP1, "note")
    if any(row.energy is not None for row in bench.done):
        section.text(_EXACT, "note")
    for caption, strip in (examples or {}).items():
        section.picture(strip, caption)
    for operator in dict.fromkeys(row.operator for row in bench.done):
        figure = spread_figure([row for row in bench.done if row.operator == operator])
        if figure is not None:
            page.section(operator).figure(figure, "Up is nearer to the truth in one sample; on the line is honest.")
    if bench.failed:
        page.section("Not done").table(("method", "operators", "why"), bench.failures())
    warned = {(row.method, text): None for row in bench.done for text in row.warnings}
    if warned:
        page.section("What the methods said").table(("method", "warning"), list(warned))
    page.section("Settings").pairs(bench.settings)
    return page


def spread_figure(rows: Sequence[BenchRow]) -> Figure | None:
    """Draw PSNR of one sample against the spread of all; None where no row has one."""
    points = {}
    for row in rows:
        spread = row.exact_spread if row.exact_spread is not None else row.spread
        if spread is not None and row.psnr is not None and spread > 0:
            points[f"{row.method} {row.steps}" if row.steps else row.method] = (spread, row.psnr)
    exact = any(row.exact_spread is not None for row in rows)
    over = "variance of the samples / exact" if exact else "variance of the samples / squared error of their mean"
    return labelled_points(points, over, "PSNR of one sample, dB", at=1.0) if points else None
