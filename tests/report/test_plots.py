from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from undiffuse.process import make_schedule
from undiffuse.report import plots
from undiffuse.report.plots import ORANGE, loss_curve, loss_weights, weight_curves, width_curve
from undiffuse.training.weights import LOG_WEIGHTS


def _pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def _guidance() -> dict[str, list[float]]:
    columns = {"scale": [1.0, 2.0], "agreement": [0.9, 1.0], "frechet_ratio": [1.0, 2.0]}
    return columns | {"agreement_error": [0.01, 0.0], "frechet_ratio_error": [0.1, 0.1]}


FIGURES = {
    "loss": lambda: plots.loss_curve([1, 2, 3], [3.0, None, 1.0]),
    "one loss": lambda: plots.loss_curve([1], [2.0]),
    "no finite loss": lambda: plots.loss_curve([1, 2], [None, math.nan]),
    "levels": lambda: plots.loss_by_logsnr([-1.0, 0.0, 1.0], {"step 1": [1.0, None, 2.0], "step 2": [0.5, 0.6, None]}),
    "guidance": lambda: plots.guidance_curve(_guidance()),
    "scatter": lambda: plots.scatter({name: [0.0, 1.0] for name in ("samples_x", "samples_y", "data_x", "data_y")}),
    "nearest": lambda: plots.nearest_histogram([0.1, 0.2, 0.2], [0.2, 0.3, 0.4]),
    "one point": lambda: plots.labelled_points({"a": (1.0, 2.0)}, "x", "y", at=1.0),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_on_a_transparent_ground(name):
    pixels = _pixels(FIGURES[name]())
    assert pixels[0, 0, 3] == 0 and (pixels[..., 3] > 128).sum() > 200


def test_names_of_points_stand_towards_the_middle():
    points = {"low": (0.2, 1.0), "middle": (0.9, 3.0), "high": (2.0, 2.0)}
    (axes,) = plots.labelled_points(points, "spread", "PSNR").axes
    sides = {text.get_text(): text.get_ha() for text in axes.texts}
    assert sides == {"low": "left", "middle": "right", "high": "right"}
    assert [line.get_xdata()[0] for line in axes.lines] == [0.2, 2.0, 0.9]  # by height


def test_figures_do_not_touch_pyplot_and_its_global_state():
    FIGURES["loss"]()
    assert "matplotlib.pyplot" not in sys.modules


def test_figures_read_on_light_and_on_dark_pages():
    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for ink in (plots.INK, plots.BLUE, plots.ORANGE):
        assert 1.05 / (luminance(ink) + 0.05) > 2.8  # contrast on white; WCAG asks 3 of graphics
        assert (luminance(ink) + 0.05) / (luminance("#14181c") + 0.05) > 3


def test_the_moving_average_of_a_constant_is_the_constant_from_the_start():
    np.testing.assert_allclose(plots.moving_average(np.full(10, 2.5), 4.0), 2.5)


def test_the_moving_average_skips_gaps_and_has_the_weights_of_its_time_constant():
    keep = math.exp(-0.5)
    found = plots.moving_average(np.array([math.nan, 1.0, math.nan, 4.0]), 2.0)
    assert math.isnan(found[0])
    np.testing.assert_allclose(found[1:], [1.0, 1.0, (keep * 1.0 + 4.0) / (keep + 1.0)])


def test_losses_over_decades_are_drawn_on_a_logarithmic_axis():
    assert plots.loss_curve([1, 2], [1.0, 1e-3]).axes[0].get_yscale() == "log"
    assert plots.loss_curve([1, 2], [1.0, 0.5]).axes[0].get_yscale() == "linear"
    assert plots.loss_curve([1, 2], [100.0, -1.0]).axes[0].get_yscale() == "linear"


def test_the_evidence_bound_is_flat_and_every_weight_has_mean_one():
    for name in ("cosine", "rf", "vp"):
        curves = weight_curves(make_schedule(name))
        assert set(curves) == set(LOG_WEIGHTS)
        np.testing.assert_allclose(curves["elbo"][1], 1.0, rtol=1e-6)
        for _, weight in curves.values():
            assert weight.mean() == pytest.approx(1.0)


def test_weights_are_those_of_the_literature_on_the_error_of_the_noise():
    """On the circle with t uniform (trig), d log-SNR = -2 pi / sin(pi t) dt, so the density is sech(log-SNR / 2)."""
    x, noise = weight_curves(make_schedule("trig"))["noise"]
    density = 1 / np.cosh(x / 2)
    np.testing.assert_allclose(noise, density / density.mean(), rtol=1e-6)
    v = weight_curves(make_schedule("trig"))["v"][1]
    np.testing.assert_allclose(v, np.exp(-x / 2) / np.exp(-x / 2).mean(), rtol=1e-6)  # Kingma and Gao 2023, table 1


def test_weights_that_coincide_share_a_line():
    (axes,) = loss_weights(make_schedule("cosine")).axes
    labels = [line.get_label() for line in axes.lines]
    assert "p2, sigmoid" in labels and len(labels) < len(LOG_WEIGHTS)
    assert sorted(", ".join(labels).split(", ")) == sorted(LOG_WEIGHTS)


def test_the_loss_is_drawn_with_what_was_measured_on_the_way():
    figure = loss_curve([1, 2, 3], [3.0, 2.0, 1.0], measured={"held-out items": ([1, 3], [2.5, None])})
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["held-out items"]
    assert len(axes.lines) == 3
    assert len(loss_curve([1, 2], [2.0, 1.0]).axes[0].lines) == 2


def test_widths_that_the_snapshots_miss_are_hollow():
    (axes,) = width_curve([0.01, 0.05], [0.5, 0.4], [0.3, 0.0]).axes
    assert [line.get_markerfacecolor() for line in axes.lines[1:]] == ["none", ORANGE]
