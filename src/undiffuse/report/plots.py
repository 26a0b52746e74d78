"""The figures of reports, in one style that reads on light and on dark pages.

The object API of matplotlib with the Agg canvas: no window, no global state. Figures are transparent and
their ink is a middle grey, so one picture serves both colour schemes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from undiffuse.process.schedules import Schedule

BLUE, ORANGE, INK = "#2a93b5", "#dd7a2d", "#7d8790"
_PAGE_DPI = 100  # pixels per inch on the page


def loss_curve(
    steps: Sequence[float],
    losses: Sequence[float | None],
    *,
    smoothing: float = 0.03,
    measured: Mapping[str, tuple[Sequence[float], Sequence[float | None]]] | None = None,
) -> Figure:
    """Draw the training loss: every value faintly, and a bias-corrected moving average over `smoothing` of the run.

    Values that are missing or not finite leave gaps.

    Args:
        steps: Step of each loss.
        losses: Training losses.
        smoothing: Span of the moving average, as a share of the run.
        measured: Label -> steps and losses that were measured now and then; at most three.
    """
    figure, axes = _figure(7.2, 3.0)
    values = _floats(losses)
    axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
    axes.plot(steps, moving_average(values, max(1.0, smoothing * len(values))), color=BLUE, linewidth=1.8)
    for (label, (when, found)), style in zip((measured or {}).items(), ("o-", "s--", "^:"), strict=False):
        axes.plot(when, _floats(found), style, color=ORANGE, markersize=3.0, linewidth=1.3, label=label)
    if measured:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
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


def width_curve(widths: Sequence[float], losses: Sequence[float | None], misfits: Sequence[float]) -> Figure:
    """Draw the held-out loss against the width of the average; hollow where the profile is missed by over a tenth."""
    figure, axes = _figure(7.2, 2.8)
    axes.plot(widths, _floats(losses), color=ORANGE, linewidth=1.3)
    for width, loss, misfit in zip(widths, losses, misfits, strict=True):
        axes.plot([width], _floats([loss]), "o", color=ORANGE, markersize=5, mfc=ORANGE if misfit <= 0.1 else "none")
    return _labelled(figure, axes, "relative width of the average", "held-out loss")


def usage_curve(counts: Mapping[str, Sequence[int]]) -> Figure:
    """Draw how often each code vector occurs, most used first; those that do not occur have no point.

    Args:
        counts: Label -> occurrences of each code vector.
    """
    figure, axes = _figure(7.2, 2.8)
    for (label, found), colour in zip(counts.items(), (BLUE, ORANGE), strict=False):
        used = sorted((count for count in found if count), reverse=True)
        axes.plot(range(1, len(used) + 1), used, color=colour, linewidth=1.6, label=f"{label}, {len(found)} codes")
    axes.set_yscale("log")
    axes.set_xlim(0, max(len(found) for found in counts.values()) + 1)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return _labelled(figure, axes, "code vector, by use", "occurrences")


def loss_weights(schedule: Schedule, names: Sequence[str] | None = None, span: float = 10.0) -> Figure:
    """Draw what each loss weight, with uniform times, is on the error of the noise, by log-SNR.

    The loss is an integral over the log-SNR of weight x time density x |eps - expected eps|^2. On this footing the
    evidence bound is flat. Each curve has a mean of 1 over the log-SNRs shown. Weights within 3 % share a line.

    Args:
        schedule: The schedule; weights "velocity" and "elbo", and the density, depend on it.
        names: Keys of `LOG_WEIGHTS`; None: all of them.
        span: Log-SNRs from -span to span are shown, as far as the schedule has them.

    Source: Kingma and Gao 2023, "Understanding diffusion objectives as the ELBO", arXiv:2303.00848, section 3.
    """
    figure, axes = _figure(7.2, 4.0)
    colours = ("#2a93b5", "#dd7a2d", "#4f9d4f", "#b0518f", "#8a6d3b", "#5b6ad0")
    for number, (label, (log_snr, weight)) in enumerate(_merged(weight_curves(schedule, names, span)).items()):
        style = ("-", "--", ":")[number // len(colours) % 3]
        axes.plot(log_snr, weight, style, color=colours[number % len(colours)], linewidth=1.6, label=label)
    axes.set_yscale("log")
    axes.set_ylim(3e-3, 3e1)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return _labelled(
        figure, axes, "log-SNR, ln(alpha^2 / sigma^2)      noise ← → data", "weight on the error of the noise"
    )


def weight_curves(
    schedule: Schedule, names: Sequence[str] | None = None, span: float = 10.0
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return by name the log-SNRs and the values that `loss_weights` draws.

    Raises:
        ValueError: An unknown name.
    """
    import torch

    from undiffuse.training.weights import LOG_WEIGHTS, Levels, LossWeight

    ends = 2 * schedule.half_logsnr(torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64))
    low, high = max(-span, float(ends[0])), min(span, float(ends[1]))
    log_snr = torch.linspace(low, high, 402, dtype=torch.float64)[1:-1]
    levels = Levels(schedule, schedule.time(log_snr / 2))
    curves = {}
    for name in names or LOG_WEIGHTS:
        log_weight = LossWeight(name=name).log(levels) - levels.log_snr - levels.log_rate
        curves[name] = (log_snr.numpy(), torch.exp(log_weight - torch.logsumexp(log_weight, 0)).numpy() * len(log_snr))
    return curves


def _merged(curves: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> dict[str, Any]:
    """Return curves by the names of all that coincide."""
    merged: list[tuple[list[str], tuple[NDArray[np.float64], NDArray[np.float64]]]] = []
    for name, curve in curves.items():
        same = next((names for names, other in merged if np.allclose(other[1], curve[1], rtol=0.03)), None)
        if same is None:
            merged.append(([name], curve))
        else:
            same.append(name)
    return {", ".join(names): curve for names, curve in merged}


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


def log_p_histogram(log_p: Sequence[float]) -> Figure:
    """Draw the distribution of log p over items, with a mark at the mean."""
    figure, axes = _figure(7.2, 2.6)
    values = _floats(log_p)
    axes.hist(values, bins=min(40, max(5, len(values) // 3)), color=BLUE, alpha=0.85)
    axes.axvline(float(values.mean()), color=ORANGE, linewidth=1.6, label="mean")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return _labelled(figure, axes, "log p of an item, nats      unlikely ← → likely", "items")


def ratio_bars(names: Sequence[str], ratios: Sequence[float], asked: Sequence[float | None]) -> Figure:
    """Draw ratios as bars with a dotted line at 1, and a tick at what was asked of each; logarithmic where they span.

    Args:
        names: What was measured.
        ratios: The figures.
        asked: What each should reach; None where nothing was asked.
    """
    figure, axes = _figure(7.2, 0.8 + 0.34 * len(names))
    places = np.arange(len(names))[::-1]
    axes.barh(places, ratios, height=0.55, color=BLUE, alpha=0.85)
    axes.axvline(1.0, color=INK, linewidth=1.2, linestyle=":")
    for place, goal in zip(places, asked, strict=True):
        if goal is not None:
            axes.plot([goal, goal], [place - 0.36, place + 0.36], color=ORANGE, linewidth=2.2)
    axes.set_yticks(places, [name if len(name) <= 46 else f"{name[:45]}…" for name in names])
    positive = [value for value in (*ratios, *(goal for goal in asked if goal)) if value > 0]
    if positive and max(positive) > 20 * min(positive):
        axes.set_xscale("log")
    return _labelled(figure, axes, "ratio", None)


class Curve(NamedTuple):
    """A line of `error_by_evaluations`: its label, where it was measured, what was found, and whether it is dashed."""

    label: str
    evaluations: Sequence[float]
    errors: Sequence[float]
    dashed: bool = False


def error_by_evaluations(curves: Sequence[Curve], floor: float | None = None) -> Figure:
    """Draw errors against network evaluations, both on logarithmic axes.

    Args:
        curves: In the order of the legend.
        floor: An error below which nothing can be told; drawn where it is near the smallest one.
    """
    figure, axes = _figure(7.2, 4.0)
    colours = ("#2a93b5", "#dd7a2d", "#4f9d4f", "#b0518f", "#8a6d3b", "#5b6ad0", "#c44e52", "#64748b")
    for number, curve in enumerate(curves):
        style = "os^Dv<>p"[number % 8] + ("--" if curve.dashed else "-")
        axes.plot(curve.evaluations, curve.errors, style, color=colours[number % 8], label=curve.label, markersize=4.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    marks = sorted({value for curve in curves for value in curve.evaluations})
    axes.set_xticks(marks, [f"{value:g}" for value in marks])
    axes.xaxis.minorticks_off()
    least = min((error for curve in curves for error in curve.errors if error > 0), default=0.0)
    if floor and floor > 0.2 * least:
        axes.axhline(floor, color=INK, linewidth=1.2, linestyle=":")
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return _labelled(figure, axes, "network evaluations per sample", "error")


def labelled_points(points: Mapping[str, tuple[float, float]], x: str, y: str, at: float | None = None) -> Figure:
    """Draw named points, x on a logarithmic axis; the names stand towards the middle.

    Args:
        points: Name -> (x, y), x above 0.
        x, y: What the axes are.
        at: Where a vertical line stands; None for none.
    """
    figure, axes = _figure(7.2, 4.4)
    if at is not None:
        axes.axvline(at, color=INK, linewidth=1.0, linestyle=":")
    colours = ("#2a93b5", "#dd7a2d", "#4f9d4f", "#b0518f", "#8a6d3b", "#5b6ad0")
    ends = [float(np.log(across)) for across, _ in points.values()]
    middle = (min(ends) + max(ends)) / 2
    for number, (label, (across, up)) in enumerate(sorted(points.items(), key=lambda item: item[1][1])):
        style: dict[str, Any] = {"color": colours[number % len(colours)]}
        axes.plot([across], [up], "o", markersize=5, **style)
        side, offset = ("right", -6) if np.log(across) > middle else ("left", 6)
        style |= {"xytext": (offset, 0), "textcoords": "offset points", "fontsize": 8, "ha": side, "va": "center"}
        axes.annotate(label, (across, up), **style)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.08)
    low, high = axes.get_xlim()
    marks = [value for value in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if low <= value <= high]
    axes.set_xticks(marks, [f"{value:g}" for value in marks])
    axes.xaxis.minorticks_off()
    return _labelled(figure, axes, x, y)


def lines(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str) -> Figure:
    """Draw named curves, each of its places and values, with the names beside them.

    Args:
        curves: Name -> places and values.
        x: What the places are.
        y: What the values are.
    """
    figure, axes = _figure(7.2, 3.4)
    colours = ("#2a93b5", "#dd7a2d", "#4f9d4f", "#b0518f", "#8a6d3b", "#5b6ad0")
    for number, (name, (places, values)) in enumerate(curves.items()):
        style = ("-", "--", ":")[number // len(colours) % 3]
        axes.plot(places, _floats(values), style, color=colours[number % len(colours)], linewidth=1.6, label=name)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return _labelled(figure, axes, x, y)


def heat_map(values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], *, low: float = 0.0) -> Figure:
    """Draw a table of numbers from `low` to 1 as coloured cells with the numbers in them.

    Args:
        values: (rows, columns).
        rows, columns: Their names.
        low: What the palest colour means.
    """
    height = 0.8 + 0.32 * len(rows)
    figure, axes = _figure(min(9.0, 2.0 + 0.62 * len(columns)), height)
    axes.imshow(values, cmap="Blues", vmin=low, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(False)
    for (row, column), value in np.ndenumerate(values):
        dark = value > low + 0.6 * (1 - low)
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="w" if dark else "#30363c")
    return figure


def accuracy_curves(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, *, log: bool) -> Figure:
    """Draw accuracies, one line for each label.

    Args:
        curves: Label -> what stands on the horizontal axis, and accuracies in [0, 1].
        x: What the horizontal axis is.
        log: Whether it is logarithmic.
    """
    figure, axes = _figure(7.2, 3.2)
    colours = ("#2a93b5", "#dd7a2d", "#4f9d4f", "#b0518f", "#8a6d3b", "#5b6ad0", INK)
    for number, (label, (across, up)) in enumerate(curves.items()):
        style = ("o-", "s--")[number // len(colours) % 2]
        axes.plot(across, up, style, color=colours[number % len(colours)], markersize=3.5, linewidth=1.4, label=label)
    if log:
        marks = sorted({value for across, _ in curves.values() for value in across})
        axes.set_xscale("log")
        axes.set_xticks(marks, [f"{value:g}" for value in marks])
        axes.xaxis.minorticks_off()
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    return _labelled(figure, axes, x, "accuracy")


def labelled_pictures(rows: Mapping[str, NDArray[np.uint8]]) -> Figure:
    """Draw pictures (H, W, C) under each other, each with its name on the left."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shapes = [picture.shape[:2] for picture in rows.values()]
    width = 5.6
    heights = [width * height / across for height, across in shapes]
    figure = Figure(figsize=(width + 1.6, sum(heights)), dpi=_PAGE_DPI, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, picture) in zip(panels, rows.items(), strict=True):
        axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_ylabel(name, rotation=0, ha="right", va="center", color=INK, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return figure


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
