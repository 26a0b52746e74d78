"""Make every picture of the documentation, and print the figures that its pages quote, as JSON.

    python docs/make_pictures.py [NAME ...] [--model FOLDER] [--out docs/pictures]

Needs nothing but the package: the built-in digits model, exact denoisers, and two short trainings.
All pictures but "choice" take about four minutes on one core, and that one five.
"""

from __future__ import annotations

import argparse
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
from undiffuse.guidance import Autoguidance, ClassifierFreeGuidance, ClassifierGuidance, Thresholding
from undiffuse.images import image_grid
from undiffuse.metrics.energy import energy_distance
from undiffuse.process.grids import known, uniform_grid
from undiffuse.report.plots import error_by_evaluations, loss_weights, weight_curves
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
    """Pictures under each other, with a label per column above the first."""
    height, width = panels[0].shape[:2]
    block, left = height + 34, 40
    figure = pixel_figure(width + left + 10, len(panels) * block + 26)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        bottom = (len(panels) - 1 - number) * block + 6
        paste(figure, panel, left, bottom)
        write(figure, title, left + 2, bottom + height + 6, va="bottom", ha="left")
    above = len(panels) * block + 4
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
