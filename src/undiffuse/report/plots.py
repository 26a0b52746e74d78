"""The figures of reports, in one style that reads on light and on dark pages.

The object API of matplotlib with the Agg canvas: no window, no global state. Figures are transparent and
their ink is a middle grey, so one picture serves both colour schemes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, INK = "#2a93b5", "#dd7a2d", "#7d8790"
_PAGE_DPI = 100  # pixels per inch on the page


def loss_curve(steps: Sequence[float], losses: Sequence[float | None], *, smoothing: float = 0.03) -> Figure:
    """Draw the training loss: every value faintly, and a bias-corrected moving average over `smoothing` of the run.

    Values that are missing or not finite leave gaps.
    """
    figure, axes = _figure(7.2, 3.0)
    values = _floats(losses)
    axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(steps, moving_average(values, max(1.0, smoothing * len(values))), color=BLUE, linewidth=1.8)
    positive = values[np.isfinite(values)]
    if len(positive) and positive.min() > 0 and positive.max() > 20 * positive.min():
        axes.set_yscale("log")
    return _labelled(figure, axes, "step", "loss")


def moving_average(values: NDArray[np.float64], span: float) -> NDArray[np.float64]:
    """Return the exponential moving average with time constant `span`, started without bias; gaps are skipped over."""
    keep = np.exp(-1.0 / span)
    average, weight = 0.0, 0.0
    result = np.full(len(values), np.nan)
    for index, value in enumerate(values.tolist()):
        if np.isfinite(value):
            average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        result[index] = average / weight if weight else np.nan
    return result


def loss_by_logsnr(half_logsnr: Sequence[float], curves: Mapping[str, Sequence[float | None]]) -> Figure:
    """Draw the mean loss per bin of the half log-SNR, one line per label, the last strongest. Empty bins leave gaps.

    Args:
        half_logsnr: Middle of each bin.
        curves: Label -> mean loss per bin; None or NaN for an empty bin.
    """
    figure, axes = _figure(7.2, 2.8)
    strength = np.linspace(0.35, 1.0, len(curves)) if len(curves) > 1 else [1.0]
    for (label, losses), alpha in zip(curves.items(), strength, strict=True):
        axes.plot(
            half_logsnr, _floats(losses), "o-", color=BLUE, alpha=alpha, markersize=3.5, linewidth=1.4, label=label
        )
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return _labelled(figure, axes, "half log-SNR, ln(alpha / sigma)      noise ← → data", "mean loss")


def guidance_curve(series: Mapping[str, Sequence[float]]) -> Figure:
    """Draw label agreement (left axis) and Frechet ratio (right axis) against the guidance scale.

    Args:
        series: Columns scale, agreement, frechet_ratio, and their `_error` columns.
    """
    figure, left = _figure(7.2, 3.2)
    right = left.twinx()
    _curve(left, series, "agreement", BLUE, "o")
    _curve(right, series, "frechet_ratio", ORANGE, "s")
    right.axhline(1.0, color=ORANGE, linewidth=0.8, linestyle=":")
    for axes, colour, label in ((left, BLUE, "label agreement"), (right, ORANGE, "Frechet distance / floor")):
        axes.set_ylabel(label, color=colour)
        axes.tick_params(axis="y", colors=colour)
        axes.spines[["top", "left", "right"]].set_visible(False)
    left.set_ylim(min(0.9, 0.99 * min(series["agreement"])), 1.005)  # agreement lives near the top: give it room
    right.set_ylim(bottom=0.0)
    right.spines[["bottom"]].set_visible(False)
    right.grid(False)
    return _labelled(figure, left, "guidance scale", None)


def scatter(columns: Mapping[str, Sequence[float]]) -> Figure:
    """Draw two-dimensional samples beside data on equal axes. Columns: samples_x, samples_y, data_x, data_y."""
    figure, _ = _figure(7.2, _scatter_height(columns))
    figure.clear()
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, name, colour in zip(panels, ("data", "samples"), (INK, BLUE), strict=True):
        _clean(axes)
        axes.scatter(columns[f"{name}_x"], columns[f"{name}_y"], s=5, color=colour, alpha=0.45, linewidths=0)
        axes.set_title(name, fontsize=10, color=INK)
        axes.set_aspect("equal", adjustable="box")
    return figure


def _scatter_height(columns: Mapping[str, Sequence[float]]) -> float:
    """Return the inches that two panels with equal axes need: 3.3 wide each, and room for the titles."""
    spans = [np.ptp(np.concatenate([columns[f"samples_{axis}"], columns[f"data_{axis}"]])) for axis in "xy"]
    return float(np.clip(3.3 * spans[1] / max(spans[0], 1e-12), 1.2, 5.0) + 0.6)


def nearest_histogram(to_train: Sequence[float], to_held_out: Sequence[float]) -> Figure:
    """Draw the distributions of the distances to the nearest training and the nearest held-out item.

    They coincide unless the model copies: then the first lies to the left.
    """
    figure, axes = _figure(7.2, 2.8)
    edges = np.histogram_bin_edges(np.concatenate([_floats(to_train), _floats(to_held_out)]), bins=40)
    for values, colour, label in (
        (to_train, BLUE, "nearest training item"),
        (to_held_out, ORANGE, "nearest held-out item"),
    ):
        axes.hist(_floats(values), bins=edges.tolist(), histtype="step", color=colour, linewidth=1.6, label=label)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return _labelled(figure, axes, "distance of a sample, in data units", "samples")


def _curve(axes: Axes, series: Mapping[str, Sequence[float]], name: str, colour: str, marker: str) -> None:
    """Draw one column with a band of its errors."""
    values = _floats(series[name])
    errors = _floats(series.get(f"{name}_error", np.zeros(len(values)).tolist()))
    axes.plot(series["scale"], values, color=colour, marker=marker, markersize=4.5, linewidth=1.5)
    axes.fill_between(series["scale"], values - errors, values + errors, color=colour, alpha=0.15, linewidth=0)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a transparent figure of inches and its clean axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_PAGE_DPI, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _clean(axes)
    return figure, axes


def _clean(axes: Axes) -> None:
    """The style of every figure: grey ink, no box, a faint grid behind."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    axes.grid(True, color=INK, alpha=0.18, linewidth=0.7)
    axes.set_axisbelow(True)


def _labelled(figure: Figure, axes: Axes, x: str, y: str | None) -> Figure:
    axes.set_xlabel(x, color=INK, fontsize=9)
    if y is not None:
        axes.set_ylabel(y, color=INK, fontsize=9)
    return figure


def _floats(values: Sequence[float | None] | Sequence[float]) -> NDArray[np.float64]:
    """Return float64 values; None (a non-finite number in JSON) becomes NaN."""
    return np.asarray(values, dtype=np.float64)
