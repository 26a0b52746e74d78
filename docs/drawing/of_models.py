"""Pictures of a model of the digits."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import torch
from drawing.canvas import COLOURS, INK, Drawn, class_rows, ink_on_paper, picture_panels, plot_figure, stacked_panels
from torch import Tensor

import undiffuse as ud
from undiffuse.analysis import choose_solver
from undiffuse.data import open_data, split
from undiffuse.report.plots import error_by_evaluations
from undiffuse.report.solvers import solver_curves


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
        fast = ud.accelerate(model, "digits", steps=2, train_steps=80, out=folder, samples=0, **options)
        panels = [class_rows(of, columns, 1.0, **sampler) for of in (model, fast.model)]
    figure = picture_panels(panels, ["two steps, before", "two steps, after tuning"], model.spec.classes)
    return Drawn(figure, {**sampler, "train_steps": 80})


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
