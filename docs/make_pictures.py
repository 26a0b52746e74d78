"""Make every picture of the documentation, and print the figures that its pages quote, as JSON.

    python docs/make_pictures.py [NAME ...] [--model FOLDER] [--out docs/pictures]

Needs nothing but the package: the built-in digits model, exact denoisers, and two short trainings.
All pictures but "choice" take about four minutes on one core, and that one five.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import undiffuse as ud
from undiffuse.analysis import choose_solver
from undiffuse.data import open_data, split
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.guidance import Autoguidance, ClassifierFreeGuidance, ClassifierGuidance, Thresholding
from undiffuse.guidance.categorical import Sharpen, Truncate
from undiffuse.guidance.temperature import Temperature
from undiffuse.images import image_grid
from undiffuse.metrics.energy import energy_distance
from undiffuse.papers.masked_diffusion import binary_joint, entropy, first_step
from undiffuse.papers.opening_laws import corrected_law, first_hitting_law
from undiffuse.papers.published_strides import PublishedStrides, strided_law
from undiffuse.papers.restoring import digits_bench
from undiffuse.papers.token_chains import conditional, small_joint, token_chain, total_variation
from undiffuse.papers.token_groups import grouped_law
from undiffuse.papers.vq_codebook import base_codec
from undiffuse.process.draw import FLOAT32_GUMBEL_BOUND
from undiffuse.process.grids import known, uniform_grid
from undiffuse.report.plots import error_by_evaluations, loss_weights, weight_curves
from undiffuse.report.restore_bench import spread_figure
from undiffuse.report.solvers import solver_curves
from undiffuse.sampling.constraints import Constraint, Replacement

INK, GREY, FAINT = "#1f2328", "#8c959f", "#d8dee4"
COLOURS = {"blue": "#3056d3", "red": "#d1453b", "green": "#1a7f5a", "amber": "#b7791f", "violet": "#8250df"}
_PIXEL, _PAD = 4, 4  # side of an enlarged pixel of a digit; paper between digits
_TILE = 8 * _PIXEL + _PAD
_LARGEST = 60_000  # bytes of a picture


class Drawn(NamedTuple):
    """A figure, and the numbers in it."""

    figure: Figure
    numbers: dict[str, Any]


# -- the digits model -------------------------------------------------------------------------------


def draw_readings(model: ud.Model) -> Drawn:
    """Noised digits, and their posterior means where the network's answers are read as each prediction type."""
    denoiser, kinds = model.denoiser, ("v", "noise", "data", "velocity")
    x = model.encode(model.sample(12, seed=0))
    noise = ud.KeyedNoise(1, range(12)).normal("probe", 0, tuple(x.shape[1:]))
    t = float(denoiser.process.schedule.time(-torch.log(torch.tensor(1.2, dtype=torch.float64))))
    noisy = denoiser.process.corrupt(x, t, noise)
    with torch.no_grad():
        raw = denoiser(noisy, t).raw
    means = [denoiser.process.mean_from(kind, raw, noisy, t) for kind in kinds]
    panels = [ink_on_paper(part, 3, (-1.0, 1.0)) for part in (noisy, *means)]
    titles = ["noisy", *(f"read as\n{kind}" for kind in kinds)]
    errors = {kind: round(float(((mean - x) ** 2).mean()), 3) for kind, mean in zip(kinds, means, strict=True)}
    return Drawn(picture_panels(panels, titles, ()), {"sigma/alpha": 1.2, "squared error": errors})


def draw_digits(model: ud.Model) -> Drawn:
    """One row per class, twelve samples each, without and with guidance, from the same noise."""
    columns, scales = 12, (1.0, 2.0)
    panels = [class_rows(model, columns, scale) for scale in scales]
    figure = picture_panels(panels, ["without guidance (scale 1)", "with guidance (scale 2)"], model.spec.classes)
    return Drawn(figure, {"solver": "dpm++2m", "steps": 25})


def draw_guidance(model: ud.Model) -> Drawn:
    """The same noise at three scales; the headings say what an independent judge makes of 1000 samples of each."""
    scales = (1.0, 2.0, 4.0)
    panels = [class_rows(model, 7, scale) for scale in scales]
    found = ud.evaluate(model, "digits", guidance=scales, metrics=["agreement", "frechet"])
    table = {scale: {row.name: row for row in found.rows if row.scale == scale} for scale in scales}
    agreement = [table[scale]["label agreement"].value for scale in scales]
    distance = [table[scale]["Frechet distance / floor"].value for scale in scales]
    titles = [
        f"scale {scale:g}\nright label {100 * share:.1f} %\nFréchet distance {far:.2f} × real"
        for scale, share, far in zip(scales, agreement, distance, strict=True)
    ]
    figure = picture_panels(panels, titles, model.spec.classes)
    return Drawn(figure, {"scales": scales, "agreement": agreement, "frechet over real v real": distance})


def draw_trajectory(model: ud.Model) -> Drawn:
    """The states of four samples on their way, and what the denoiser expects of each."""
    labels, steps = [3, 5, 8, 2], 40
    means: list[Tensor] = []
    result = model.sample_result(
        4,
        seed=4,
        cond={"label": labels},
        guidance=2.0,
        solver="ddim",
        steps=steps,
        grid="t",
        trajectory=True,
        callback=lambda shot: means.append(shot.post.mean),
    )
    assert result.trajectory is not None
    shown = [*range(0, steps, 4), steps]
    states = result.trajectory[shown]
    expected = torch.stack([means[min(k, steps - 1)] for k in shown])
    panels = [
        ink_on_paper(rows.transpose(0, 1).flatten(0, 1), len(shown), (-1.0, 1.0), 6) for rows in (states, expected)
    ]
    figure = stacked_panels(
        panels,
        ["the state $x_t$", "what the denoiser expects of the digit, given $x_t$"],
        [f"{1 - k / steps:.1f}" for k in shown],
    )
    return Drawn(figure, {"steps": steps})


def draw_choice(model: ud.Model) -> Drawn:
    """The curves of `undiffuse solvers --on digits`, which this runs (minutes)."""
    found = choose_solver(model, name="digits")
    figure = error_by_evaluations(solver_curves(found), found.reference_error)
    figure.set_facecolor("white")
    return Drawn(figure, found.to_json()["recommended"])


def draw_tuned(model: ud.Model) -> Drawn:
    """Samples of two steps before and after tuning the model for them, from the same noise."""
    columns, sampler = 7, {"solver": "ddim", "steps": 2, "grid": "t"}
    options: dict[str, Any] = {"batch_size": 64, "lr": 2e-4, "objective.checkpoint": False, "train.validate_every": 0}
    with tempfile.TemporaryDirectory() as folder:
        fast = ud.accelerate(model, "digits", steps=2, iters=80, out=folder, samples=0, **options)
        panels = [class_rows(of, columns, 1.0, **sampler) for of in (model, fast.model)]
    figure = picture_panels(panels, ["two steps, before", "two steps, after tuning"], model.spec.classes)
    return Drawn(figure, {**sampler, "iters": 80})


def class_rows(model: ud.Model, columns: int, scale: float, **sampler: Any) -> np.ndarray:
    """A grid with one row per class, uint8 (H, W, 1)."""
    labels = [label for label in range(len(model.spec.classes)) for _ in range(columns)]
    images = model.sample(len(labels), seed=0, cond={"label": labels}, guidance=scale, **sampler)
    return ink_on_paper(images, columns, model.spec.range or (-1.0, 1.0))


def ink_on_paper(images: Tensor, columns: int, bounds: tuple[float, float], pixel: int = _PIXEL) -> np.ndarray:
    """Lay images (N, 1, 8, 8) out in rows, dark on white, uint8 (H, W, 1): strokes touch the edges of these images."""
    return 255 - image_grid(images, columns, pad=_PAD, scale=pixel, bounds=bounds, background=0)


def picture_panels(panels: list[np.ndarray], titles: list[str], rows: tuple[str, ...]) -> Figure:
    """Pictures side by side under their titles, with a label per row; every pixel of theirs is one of the figure's."""
    height, width = panels[0].shape[:2]
    left, top, gap = 34, 18 + 16 * (1 + max(title.count("\n") for title in titles)), 22
    figure = pixel_figure(left + len(panels) * (width + gap), top + height + 6)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        x = left + number * (width + gap)
        paste(figure, panel, x, 6)
        write(figure, title, x + width / 2, height + 12, va="bottom", ha="center")
    for row, name in enumerate(rows):
        write(figure, name, left - 12, 6 + height - (row + 0.5) * _TILE, va="center", ha="right")
    return figure


def stacked_panels(panels: list[np.ndarray], titles: list[str], columns: list[str]) -> Figure:
    """Pictures under each other, with a time per column above the first, where there are any."""
    height, width = panels[0].shape[:2]
    block, left = height + 34, 40
    figure = pixel_figure(width + left + 10, len(panels) * block + 26)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        bottom = (len(panels) - 1 - number) * block + 6
        paste(figure, panel, left, bottom)
        write(figure, title, left + 2, bottom + height + 6, va="bottom", ha="left")
    above = len(panels) * block + 4
    if columns:
        write(figure, "t =", left - 6, above, va="bottom", ha="right")
    for column, name in enumerate(columns):
        write(figure, name, left + (column + 0.5) * width / len(columns), above, va="bottom", ha="center")
    return figure


def draw_likelihoods(model: ud.Model) -> Drawn:
    """Log-likelihoods of digits that were held out, of samples, of turned digits and of noise; and of a bare bar."""
    count = 64
    held_out = split(open_data("digits"))[1]
    digits = model.spec.from_model(held_out.batch(torch.arange(count))["x"]).round()
    uniform = ud.KeyedNoise(0, range(count)).uniform("data", 0, (1, 8, 8))
    bar = torch.zeros(1, 1, 8, 8).index_fill(3, torch.tensor([3, 4]), 12.0)
    groups = {
        "held-out digits": digits,
        "samples": model.sample(count, seed=0).round(),
        "digits turned by 90°": digits.rot90(1, (2, 3)),
        "noise": (uniform * 17).floor(),
        "a bar": bar,
    }
    how: dict[str, Any] = {"divergence": "hutchinson", "probes": 2, "rtol": 1e-3, "atol": 1e-3}
    log_p = {name: ud.log_likelihood(model, items, **how).log_p for name, items in groups.items()}
    figure, (axes,) = plot_figure(1, width=6.4, height=2.3)
    colours = [COLOURS[name] for name in ("blue", "green", "amber", "red")]
    edges = np.linspace(min(float(v.min()) for v in log_p.values()), max(float(v.max()) for v in log_p.values()), 90)
    for (name, values), colour in zip(log_p.items(), colours, strict=False):
        axes.hist(values.numpy(), bins=edges.tolist(), color=colour, alpha=0.6, label=name)
    axes.axvline(float(log_p["a bar"]), color=INK, linewidth=1.2, linestyle="--", label="a bar")
    axes.set_xlabel("log p of an item, nats")
    axes.set_ylabel("items")
    axes.legend(frameon=False, fontsize=8)
    return Drawn(figure, {name: [float(v.mean()), float(v.std()) if len(v) > 1 else 0.0] for name, v in log_p.items()})


# -- exact denoisers --------------------------------------------------------------------------------


def draw_solvers() -> Drawn:
    """Error of each solver on an exact mixture against its network evaluations."""
    process = ud.GaussianProcess(ud.make_schedule("vp"))
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]])
    mixture = ud.MixtureDenoiser(torch.tensor([0.3, 0.4, 0.3]), means, torch.tensor([0.3, 0.5, 0.4]), process)

    def end(solver: str, steps: int) -> tuple[Tensor, int]:
        rule = ud.make_solver(solver, **({"lower_final": False} if solver == "dpm++2m" else {}))
        noise = ud.KeyedNoise(0, range(64))
        grid = logsnr_grid(process, steps, last=0.01)
        result = ud.sample(mixture, noise=noise, shape=(2,), solver=rule, grid=grid, dtype=torch.float64)
        return result.x, result.nfe

    reference = end("heun", 4000)[0]
    lines: dict[str, list[tuple[int, float]]] = {}
    for solver in ("ddim", "euler", "edm-heun", "heun", "dpm++2m"):
        for steps in (4, 8, 16, 32, 64, 128, 256):
            x, nfe = end(solver, steps)
            error = float((x - reference).square().sum(1).mean().sqrt())
            lines.setdefault(solver, []).append((nfe, error))
    return Drawn(plot_solvers(lines), {name: dict(points) for name, points in lines.items()})


def draw_wrappers() -> Drawn:
    """Samples of a mixture of two classes, all known exactly, from the same noise under each wrapper."""
    process = ud.GaussianProcess(ud.make_schedule("vp"))
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]])
    weights, stds, labels = torch.tensor([0.3, 0.4, 0.3]), torch.tensor([0.3, 0.5, 0.4]), torch.tensor([0, 1, 1])
    exact = ud.MixtureDenoiser(weights, means, stds, process, labels=labels)
    weak = ud.MixtureDenoiser(weights, means, 1.8 * stds, process, labels=labels)
    right = {"label": torch.ones(600, dtype=torch.int64)}

    def nearness(x: Tensor, t: Tensor) -> Tensor:  # log p(y | x_t) of the second class
        both = exact.log_prob(x, t), exact.log_prob(x, t, exact.embed({"label": right["label"][: len(x)]}, len(x)))
        return both[1] - both[0]

    away = {"label": torch.zeros(1, dtype=torch.int64)}
    guided = ClassifierFreeGuidance(exact, 3.0)
    panels: dict[str, tuple[ud.denoisers.Denoiser, dict[str, Tensor] | None]] = {
        "class 1, unguided": (exact, right),
        "classifier-free, 3": (guided, right),
        "away from class 0, 1.3": (ClassifierFreeGuidance(exact, 1.3, negative=away), right),
        "autoguidance, 2": (Autoguidance(exact, weak, 2.0), right),
        "classifier, 3": (ClassifierGuidance(exact, nearness, None, 3.0), None),
        "classifier-free, clipped": (Thresholding(guided, "static", bound=1.2), right),
    }
    figure, axes = plot_figure(len(panels), width=8.6, height=1.75)
    noise, grid = ud.KeyedNoise(0, range(600)), ud.make_grid(process.schedule, 40)
    numbers, frame = {}, torch.tensor([[-1.2, -2.4], [2.6, 1.4]])
    for place, (title, (denoiser, cond)) in zip(axes, panels.items(), strict=True):
        result = ud.sample(denoiser, noise=noise, shape=(2,), solver=ud.make_solver("dpm++2m"), grid=grid, cond=cond)
        scatter(place, result.x, COLOURS["blue"], title, frame)
        place.title.set_fontsize(7.5)
        numbers[title] = {"evaluations": result.nfe, "std": [round(value, 2) for value in result.x.std(0).tolist()]}
    return Drawn(figure, numbers)


def logsnr_grid(process: ud.GaussianProcess, steps: int, last: float) -> Tensor:
    """Times uniform in half log-SNR from 1 to `last`."""
    low, high = process.schedule.half_logsnr(torch.tensor([1.0, last], dtype=torch.float64)).tolist()
    times = process.schedule.time(torch.linspace(low, high, steps + 1, dtype=torch.float64))
    times[0] = 1.0
    return times


def plot_solvers(lines: dict[str, list[tuple[int, float]]]) -> Figure:
    """Log-log lines."""
    figure, axes = plot_figure(1, width=6.6, height=4.0)
    for colour, (solver, points) in zip(COLOURS.values(), lines.items(), strict=True):
        calls, errors = zip(*points, strict=True)
        axes[0].loglog(calls, errors, "o-", color=colour, markersize=3.5, linewidth=1.4, label=solver)
    axes[0].legend(frameon=False, loc="lower left", labelcolor="linecolor")
    ticks = [4, 8, 16, 32, 64, 128, 256, 512]
    axes[0].set_xticks(ticks, [str(tick) for tick in ticks])
    axes[0].minorticks_off()
    axes[0].set_xlabel("network evaluations per sample")
    axes[0].set_ylabel("distance to the exact end point (rms)")
    axes[0].grid(color=FAINT, linewidth=0.6)
    return figure


class Silence:
    """A noise source of zeros: a run that is affine in its noise then gives its mean."""

    def normal(self, stream: str, step: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros (1, *shape)."""
        return torch.zeros(1, *shape, dtype=dtype)

    def uniform(self, stream: str, step: int, shape: tuple[int, ...]) -> Tensor:
        """Zeros (1, *shape)."""
        return torch.zeros(1, *shape, dtype=torch.float64)


def draw_frames() -> Drawn:
    """Mean of the frames that follow a known one, in a Gaussian video, for three ways of telling it to the model."""
    frames, first = 8, 2.0
    index = torch.arange(frames, dtype=torch.float64)
    process = ud.GaussianProcess(ud.make_schedule("trig"))
    video = ud.GaussianDenoiser(torch.zeros(frames), 0.9 ** (index[:, None] - index).abs(), process)
    values, mask = torch.zeros(1, frames, dtype=torch.float64), torch.zeros(1, frames, dtype=torch.bool)
    values[0, 0], mask[0, 0] = first, True

    def mean(solver: str, grid: Tensor, constraints: list[Constraint]) -> list[float]:
        rule = ud.make_solver(solver)
        options: dict[str, Any] = {"start": values, "dtype": torch.float64, "constraints": constraints}
        x = ud.sample(video, noise=Silence(), shape=(frames,), solver=rule, grid=grid, **options).x
        return [float(f"{value:.3f}") for value in x[0]]

    lines = {
        "exact law": [round(first * 0.9**k, 3) for k in range(frames)],
        "time per frame, 50 steps": mean("ddim", known(uniform_grid(50), frames, [0]), []),
        "replacement, ancestral, 250 steps": mean(
            "ddpm", uniform_grid(250), [Replacement(process, values, mask, "fresh")]
        ),
        "replacement, DDIM, 250 steps": mean("ddim", uniform_grid(250), [Replacement(process, values, mask)]),
    }
    return Drawn(plot_frames(lines), lines)


def plot_frames(lines: dict[str, list[float]]) -> Figure:
    """Means by frame."""
    figure, axes = plot_figure(1, width=6.6, height=3.2)
    styles = [(FAINT, "-", 7), (COLOURS["blue"], "o-", 1.4), (COLOURS["amber"], "s-", 1.4), (COLOURS["red"], "^-", 1.4)]
    for (name, values), (colour, mark, width) in zip(lines.items(), styles, strict=True):
        axes[0].plot(values, mark, color=colour, linewidth=width, markersize=4, label=name)
    axes[0].set_xlabel("frame (frame 0 is given)")
    axes[0].set_ylabel("mean over clips")
    axes[0].set_ylim(0, 2.1)
    axes[0].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02), labelcolor=INK)
    return figure


def draw_weights() -> Drawn:
    """Every loss weight on one footing, for the schedule that recipes use."""
    schedule = ud.make_schedule("cosine")
    figure = loss_weights(schedule)
    figure.set_facecolor("white")
    at_half = {name: round(float(np.interp(0.0, *curve)), 3) for name, curve in weight_curves(schedule).items()}
    return Drawn(figure, {"weight at log-SNR 0": at_half})


# -- short trainings --------------------------------------------------------------------------------


def draw_mixture() -> Drawn:
    """Real points beside those of a model trained on them by the vector recipe."""
    figure, axes = plot_figure(4, width=8.6, height=2.5)
    numbers: dict[str, Any] = {}
    for place, source in enumerate(("moons", "mixture3")):
        with tempfile.TemporaryDirectory() as folder:
            run = ud.train(source, "vector", out=folder, preview_every=0, checkpoint_every=100_000)
            found = ud.evaluate(run.model, source, n=2000, metrics=["energy"])["energy distance / floor"]
            learned = run.model.sample(2000, seed=0)
        numbers[source] = {"steps": run.step, "energy distance over real v real": round(found.value, 2)}
        points = ud.data.open_data(source)
        real = points.spec.from_model(points.batch(torch.arange(2000))["x"])
        titles = (f"{source}: real", f"learned ({found.value:.2f} × real v real)")
        pairs = ((real, GREY), (learned, COLOURS["blue"]))
        for offset, (title, (drawn, colour)) in enumerate(zip(titles, pairs, strict=True)):
            scatter(axes[2 * place + offset], drawn, colour, title, real)
    return Drawn(figure, numbers)


def draw_distilled() -> Drawn:
    """Points of a model with one DDIM step and with 25, and of its student with one jump; from short trainings."""
    short: dict[str, Any] = {"preview_every": 0, "checkpoint_every": 100_000, "steps": 1500}
    with tempfile.TemporaryDirectory() as folder:
        teacher = ud.train("mixture3", "vector", out=f"{folder}/teacher", **short).model
        given: dict[str, Any] = {"method": "progressive", "data": "mixture3", "out": f"{folder}/student", "lr": 1e-3}
        student = ud.distill(f"{folder}/teacher", **given, **short)
        drawn = {
            "1 step, before": teacher.sample(2000, steps=1, solver="ddim", grid="t"),
            "1 step, distilled": student.sample(2000),
            "25 steps, before": teacher.sample(2000, steps=25, solver="ddim", grid="t"),
        }
    points = ud.data.open_data("mixture3")
    real = points.spec.from_model(points.batch(torch.arange(4000))["x"])
    figure, axes = plot_figure(3, width=6.6, height=2.5)
    numbers: dict[str, Any] = {"steps": short["steps"]}
    for place, (title, samples) in enumerate(drawn.items()):
        scatter(axes[place], samples, COLOURS["red" if "distilled" in title else "blue"], title, real[:2000])
        numbers[f"energy distance, {title}"] = round(energy_distance(samples.numpy(), real[2000:].numpy()), 5)
    return Drawn(figure, numbers)


def draw_token_laws() -> Drawn:
    """Exact errors of token chains by calls, and what truncation, purity and temperature cost in variety."""
    table = small_joint()
    figure, (errors, trades) = plot_figure(2, width=7.2, height=2.9)
    counts, numbers = (2, 4, 6, 8, 11, 16, 26, 51), {}
    kinds = {"absorbing": "masks", "mask-replace": "masks, 0.1 replaced", "uniform": "replaced only"}
    for (kind, label), colour in zip(kinds.items(), ("blue", "green", "amber"), strict=True):
        denoiser = JointDenoiser(table, ud.CategoricalProcess(kind, 3))
        values = [total_variation(token_chain(denoiser, 3, n).law(), table) for n in counts]
        errors.loglog(counts, values, "o-", color=COLOURS[colour], markersize=3, linewidth=1.3, label=label)
        numbers[label] = values
        if kind == "mask-replace":
            solvers = [PublishedStrides(skip=skip) for skip in (9, 3, 1)]
            released = [total_variation(strided_law(denoiser, solver), table) for solver in solvers]
    dashed = {"color": COLOURS["red"], "markersize": 4, "linewidth": 1.3, "label": "released code"}
    errors.loglog((11, 26, 51), released, "s--", **dashed)
    errors.set_xticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
    errors.minorticks_off()
    errors.set_xlabel("calls")
    errors.set_ylabel("total variation")
    errors.legend(frameon=False, fontsize=7, labelcolor="linecolor")
    base = JointDenoiser(table, ud.CategoricalProcess("absorbing", 3))
    rules = {
        "truncation": [Truncate(base, rate) for rate in (1.0, 0.95, 0.9, 0.86, 0.8, 0.7, 0.5)],
        "purity": [Sharpen(base, strength) for strength in (0.0, 0.5, 1.0, 2.0, 4.0)],
        "temperature": [Temperature(base, value) for value in (1.0, 0.8, 0.6, 0.4, 0.3)],
    }
    for (label, wrapped), colour in zip(rules.items(), ("blue", "green", "amber"), strict=True):
        laws = [grouped_law(denoiser, (1, 1, 1), "purity") for denoiser in wrapped]
        points = [(-float(torch.xlogy(p, p).sum()), float((p * table.log()).sum())) for p in laws]
        trades.plot(*zip(*points, strict=True), "o-", color=COLOURS[colour], markersize=3, linewidth=1.3, label=label)
        numbers[label] = points
    trades.set_xlabel("entropy of the samples, nats: variety")
    trades.set_ylabel("their mean true log p: precision")
    trades.legend(frameon=False, fontsize=7, labelcolor="linecolor")
    return Drawn(figure, {**numbers, "released code": released})


def draw_openings() -> Drawn:
    """Exact errors of six tokens by calls and order, and what float32 draws make of a vocabulary."""
    denoiser = JointDenoiser(binary_joint(), ud.CategoricalProcess("absorbing", 2))
    figure, (errors, entropies) = plot_figure(2, width=7.2, height=2.9)
    calls, numbers = range(1, 6), {}
    for order, colour in ((1, "blue"), (2, "green")):
        found = [total_variation(first_hitting_law(denoiser, n, order=order), denoiser.table) for n in calls]
        errors.semilogy(calls, found, "o-", color=COLOURS[colour], markersize=3, linewidth=1.3, label=f"order {order}")
        numbers[f"order {order}"] = found
    law = first_hitting_law(denoiser, 3)
    mended = [total_variation(law, denoiser.table)]
    for _ in range(3):
        law = corrected_law(law, denoiser)
        mended.append(total_variation(law, denoiser.table))
    dashed = {"color": COLOURS["red"], "markersize": 3, "linewidth": 1.3, "label": "3 calls, then corrections"}
    errors.semilogy(range(3, 7), mended, "s--", **dashed)
    errors.set_xlabel("calls for six tokens; six are exact")
    errors.set_ylabel("total variation")
    errors.legend(frameon=False, fontsize=7, labelcolor="linecolor")
    counts = [10**power for power in range(1, 7)]
    for classes, colour in ((1000, "blue"), (50_257, "amber")):
        p = torch.arange(1, classes + 1, dtype=torch.float64).reciprocal()
        p /= p.sum()
        found = [entropy(first_step(p, n, FLOAT32_GUMBEL_BOUND)[0]) for n in counts]
        entropies.semilogx(counts, found, "o-", color=COLOURS[colour], markersize=3, linewidth=1.3)
        entropies.axhline(entropy(p), color=COLOURS[colour], linewidth=0.8, linestyle=":")
        below = {"xytext": (0, -10), "textcoords": "offset points", "fontsize": 7, "ha": "right"}
        entropies.annotate(f"{classes} tokens", (counts[-1], entropy(p)), **below)
        numbers[f"{classes} tokens"] = found
    entropies.set_xlabel("steps of ancestral sampling")
    entropies.set_ylabel("entropy of a drawn token, nats")
    return Drawn(figure, {**numbers, "corrections": mended})


def draw_completion() -> Drawn:
    """Distance of completions to the exact conditional, by passes of replacement, and with given tokens."""
    table, passes = small_joint(), (1, 2, 4, 8, 16, 32)
    patterns: list[dict[int, int]] = [{0: 0}, {1: 1}, {2: 2}, {0: 0, 1: 1}, {0: 2, 2: 0}, {1: 0, 2: 2}]
    figure, (axes,) = plot_figure(1, width=5.6, height=2.9)
    kinds = {"uniform": "replaced only", "absorbing": "masks", "mask-replace": "masks, 0.1 replaced"}
    numbers: dict[str, Any] = {}
    for (kind, label), colour in zip(kinds.items(), ("amber", "blue", "green"), strict=True):
        denoiser = JointDenoiser(table, ud.CategoricalProcess(kind, 3))
        truths = [conditional(table, pattern) for pattern in patterns]
        chains = [token_chain(denoiser, 3, 64, pattern) for pattern in patterns]
        given = [token_chain(denoiser, 3, 64, pattern, "clamp").law() for pattern in patterns]

        def distance(laws: list[Tensor], truths: list[Tensor] = truths) -> float:
            return sum(map(total_variation, laws, truths)) / len(truths)

        values = [distance([chain.law(count) for chain in chains]) for count in passes]
        style = {"color": COLOURS[colour], "linewidth": 2.8 if kind == "absorbing" else 1.3}  # two lines nearly meet
        axes.loglog(passes, values, "o-", markersize=3, label=label, **style)
        axes.axhline(distance(given), linestyle="--", **style)
        numbers[label] = {"replacement": values, "given": distance(given)}
    axes.set_xticks(passes, list(map(str, passes)))
    axes.minorticks_off()
    axes.set_xlabel("times that each step is taken")
    axes.set_ylabel("total variation")
    axes.legend(frameon=False, fontsize=7, labelcolor="linecolor")
    return Drawn(figure, numbers)


def draw_codebook() -> Drawn:
    """Held-out digits, and their reconstructions by a codec as it is and with a codebook that was rebuilt (minutes)."""
    training, held_out = split(open_data("digits"))
    old = base_codec(training)
    made = ud.refit_codebook(old, training, held_out=held_out, steps=0)
    x = held_out.batch(torch.arange(12))["x"]
    panels, titles = [ink_on_paper(x, len(x), (-1.0, 1.0))], ["digits that were held out"]
    for title, codec, health in (("as trained", old, made.before), ("rebuilt", made.codec, made.rebuilt)):
        with torch.no_grad():
            panels.append(ink_on_paper(codec.decode(codec.encode(x)), len(x), (-1.0, 1.0)))
        titles.append(f"{title}: {health.usage:.0%} of {health.codes} codes used, squared error {health.error:.4f}")
    return Drawn(
        stacked_panels(panels, titles, []), {"before": made.before.to_json(), "rebuilt": made.rebuilt.to_json()}
    )


def draw_operators() -> Drawn:
    """One photograph of scikit-learn under every operator that gives a picture."""
    from sklearn.datasets import load_sample_image

    from undiffuse.operators import OPERATORS, parse_operator
    from undiffuse.operators.view import pictures_of

    side, wide, tall, columns = 64, 108, 88, 6
    photo = torch.from_numpy(load_sample_image("flower.jpg").copy()[60:380, 190:510]).permute(2, 0, 1)[None] / 127.5 - 1
    x = torch.nn.functional.interpolate(photo, size=(side, side), mode="area")
    asked = {"blur:motion": "blur:motion,15", "mri": "mri:radial", "ct": "ct:60", "lowlight": "lowlight:0.1"}
    left_out = ("mask", "blur:kernel", "scale", "average-frames", "cs:hadamard", "cs:dct", "cs:gaussian")
    tiles = {"the photograph": x[0]}
    for name in (name for name in OPERATORS if name not in left_out):
        item = x.mean(1, keepdim=True) if name in ("mri", "ct", "phase-retrieval") else x
        made = parse_operator(asked.get(name, name), tuple(item.shape[1:]))
        tiles[name] = pictures_of(made, made(item)[0])[-1]
    rows = -(-len(tiles) // columns)
    figure = pixel_figure(columns * wide, rows * tall)
    for number, (name, picture) in enumerate(tiles.items()):
        across, up = number % columns * wide + 4, (rows - 1 - number // columns) * tall
        scale = max(1, side // picture.shape[-1])
        pixels = image_grid(picture[None].float(), pad=0, scale=scale, bounds=(-1.0, 1.0))
        colours = np.broadcast_to(pixels if pixels.ndim == 3 else pixels[..., None], (*pixels.shape[:2], 3))
        off = max(0, (len(colours) - side) // 2)
        figure.figimage(colours[off : off + side, off : off + side], across, up + 16, origin="upper")
        write(figure, name, across, up + 3)
    return Drawn(figure, {"operators": len(tiles) - 1})


_METHODS = {"mmps": 50, "pigdm": 50, "ddrm": 50, "diffpir": 50, "dps": 50, "repaint": 30, "red-diff-quality": 200}
"""Restorers of the pictures, and their steps."""


def draw_spread() -> Drawn:
    """PSNR of one sample against the spread, digits with half of the pixels missing and their exact prior."""
    bench = digits_bench(quick=False, seed=0)
    trial = bench.trial("inpaint50", 0.05)
    rows = [bench.exact(trial), *(bench.row(trial, name, name, steps) for name, steps in _METHODS.items())]
    figure = spread_figure(rows)
    assert figure is not None
    figure.set_facecolor("white")
    return Drawn(figure, {row.method: [row.psnr, row.exact_spread, row.energy] for row in rows})


def draw_restored() -> Drawn:
    """Digits, what was measured of them, a sample, the mean of eight, and their standard deviation; and RED-diff's."""
    bench = digits_bench(quick=False, seed=0)
    bench = dataclasses.replace(bench, clean=bench.clean[:10])
    trial = bench.trial("inpaint50", 0.05)
    how: dict[str, Any] = {"noise_std": 0.05, "samples": 8, "batch_size": 80}
    found = ud.restore(bench.model, trial.y, trial.operator, "mmps", steps=50, **how)
    sharp = ud.restore(bench.model, trial.y, trial.operator, "red-diff-quality", steps=200, **how)
    widest = float(found.std.max())
    rows = {
        "the truth": trial.clean,
        "what was measured": torch.where(trial.operator.singulars() > 0, trial.y, -1.0),  # type: ignore[attr-defined]
        "mmps: one sample": found.samples[0],
        "mmps: mean of eight": found.mean,
        "mmps: standard deviation": 2 * found.std / widest - 1,
        "red-diff-quality: one answer": sharp.samples[0],
        "red-diff-quality: standard deviation, same scale": 2 * sharp.std / widest - 1,
    }
    panels = [ink_on_paper(x.float(), 10, (-1.0, 1.0)) for x in rows.values()]
    return Drawn(stacked_panels(panels, list(rows), []), {"largest standard deviation": widest})


def scatter(axes: Axes, points: Tensor, colour: str, title: str, frame: Tensor) -> None:
    """Points in the square where `frame` has points, axes left out."""
    low, high = frame.amin(0), frame.amax(0)
    middle, half = 0.5 * (low + high), 0.54 * float((high - low).max())
    axes.set_xlim(float(middle[0]) - half, float(middle[0]) + half)
    axes.set_ylim(float(middle[1]) - half, float(middle[1]) + half)
    axes.scatter(points[:, 0], points[:, 1], s=1.2, color=colour, linewidths=0, alpha=0.6)
    axes.set_title(title, fontsize=9, color=INK)
    axes.set_aspect("equal")
    axes.set_axis_off()


# -- figures ----------------------------------------------------------------------------------------


def pixel_figure(width: int, height: int) -> Figure:
    """An empty figure of whole pixels."""
    return plt.figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")


def paste(figure: Figure, pixels: np.ndarray, x: int, y: int) -> None:
    """Put uint8 pixels (H, W, 1) into a figure, unscaled, the lower left corner at (x, y)."""
    grey = pixels[..., 0] / 255.0
    figure.figimage(np.repeat(grey[..., None], 3, axis=2), x, y, origin="upper")


def write(figure: Figure, text: str, x: float, y: float, **alignment: Any) -> None:
    """Write at a place given in pixels."""
    width, height = figure.get_size_inches() * figure.dpi
    figure.text(x / width, y / height, text, fontsize=9, color=INK, linespacing=1.4, **alignment)


def plot_figure(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes side by side, sizes in inches."""
    plt.rcParams.update({"font.size": 9, "axes.edgecolor": GREY, "xtick.color": INK, "ytick.color": INK})
    figure, axes = plt.subplots(1, count, figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    found = list(np.atleast_1d(axes))
    for one in found:
        one.spines[["top", "right"]].set_visible(False)
        one.xaxis.label.set_color(INK)
        one.yaxis.label.set_color(INK)
    return figure, found


def save(figure: Figure, path: Path) -> int:
    """Write a PNG of few colours and return its size in bytes.

    Raises:
        ValueError: The picture is larger than a page should carry.
    """
    from PIL import Image

    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi)
    plt.close(figure)
    picture = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)
    size = path.stat().st_size
    if size > _LARGEST:
        raise ValueError(f"{path} has {size} bytes; at most {_LARGEST} are wanted: draw less of it.")
    return size


OF_MODEL: dict[str, Callable[[ud.Model], Drawn]] = {
    "digits": draw_digits,
    "guidance": draw_guidance,
    "readings": draw_readings,
    "trajectory": draw_trajectory,
    "tuned": draw_tuned,
    "likelihoods": draw_likelihoods,
    "choice": draw_choice,
}
ALONE: dict[str, Callable[[], Drawn]] = {
    "solvers": draw_solvers,
    "wrappers": draw_wrappers,
    "frames": draw_frames,
    "weights": draw_weights,
    "mixture": draw_mixture,
    "distilled": draw_distilled,
    "codebook": draw_codebook,
    "token-laws": draw_token_laws,
    "openings": draw_openings,
    "completion": draw_completion,
    "spread": draw_spread,
    "restored": draw_restored,
    "operators": draw_operators,
}


def main() -> None:
    """Draw the pictures asked for, all of them by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"among {', '.join([*OF_MODEL, *ALONE])}; none: all")
    parser.add_argument("--model", default="digits", help="a model of the digits; default: the built-in one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    asked = parser.parse_args()
    unknown = set(asked.names) - {*OF_MODEL, *ALONE}
    if unknown:
        parser.error(f"there is no picture {', '.join(sorted(unknown))}")
    numbers = {}
    for name in asked.names or [*OF_MODEL, *ALONE]:
        drawn = OF_MODEL[name](ud.load(asked.model)) if name in OF_MODEL else ALONE[name]()
        size = save(drawn.figure, asked.out / f"{name}.png")
        numbers[name] = {"bytes": size, **drawn.numbers}
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
