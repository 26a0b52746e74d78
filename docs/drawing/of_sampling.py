"""Pictures that need no trained model: solvers, wrappers, frames, losses, points in the plane."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from drawing.canvas import COLOURS, FAINT, GREY, INK, Drawn, plot_figure, scatter
from matplotlib.figure import Figure
from torch import Tensor

import undiffuse as ud
from undiffuse.guidance import Autoguidance, ClassifierFreeGuidance, ClassifierGuidance, Thresholding
from undiffuse.metrics.energy import energy_distance
from undiffuse.process.grids import known, uniform_grid
from undiffuse.report.plots import loss_weights, weight_curves
from undiffuse.sampling.constraints import Constraint, Replacement


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
