"""Supervised restoration of digits: a walk from the given picture beside a walk from noise, at few steps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from undiffuse.data import open_data, split
from undiffuse.metrics.calibration import spread_ratio
from undiffuse.metrics.restoration import psnr
from undiffuse.noise import KeyedNoise
from undiffuse.operators.separable import Downsample
from undiffuse.papers.restoring import number
from undiffuse.papers.study import Part
from undiffuse.report.measures import Measure
from undiffuse.tasks.restore.run import restore
from undiffuse.training.run import train

_NOISE = 0.05  # model units; half of it in image units
_STEPS = (15, 5, 3)
_TRAINED = 1500  # steps of training, each method
_METHODS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "ResShift": ((), {"rule": "increments"}),
    "SR3 / Palette": (
        ("process.start=noise", "process.schedule=cosine", "process.prediction=v"),
        {"eta": 1.0},
    ),
}
"""Name -> recipe keys, and options of its steps."""


def supervised(seed: int, quick: bool) -> Part:
    """Train both on digits made half as large, and restore held-out ones."""
    clean = split(open_data("digits"))[1].batch(torch.arange(8 if quick else 64))["x"]
    task = Downsample((1, 8, 8), 2)
    y = task(clean) + _NOISE * KeyedNoise(seed, range(len(clean))).normal("measure", 0, (1, 4, 4))
    rows = [("A^+ y", "", number(float(psnr(task.pinv(y), clean).mean())), "", "")]
    found: dict[tuple[str, int], float] = {}
    for name, (keys, options) in _METHODS.items():
        model = _trained(keys, 20 if quick else _TRAINED, seed)
        for steps in _STEPS:
            drawn = restore(
                model, y, task, "supervised", noise_std=_NOISE, samples=8, steps=steps, seed=seed, options=options
            )
            samples = drawn.samples
            one = float(psnr(samples.flatten(0, 1), clean.repeat(len(samples), 1, 1, 1)).mean())
            mean = float(psnr(drawn.mean, clean).mean())
            found[name, steps] = one
            rows.append((name, str(steps), number(one), number(mean), number(spread_ratio(samples, clean))))
    apart = {steps: found["ResShift", steps] - found["SR3 / Palette", steps] for steps in _STEPS}
    return Part(
        title="Trained for the task",
        text=f"Digits made half as large, noise {_NOISE}, two small U-Nets of equal size trained for {_TRAINED} steps "
        "each on what is not held out: one walks from the given picture (ResShift), one from noise with the picture "
        "beside it (SR3, Palette). 64 held-out digits, 8 samples each. Spread is against the truth: 1 is calibrated.",
        columns=("method", "steps", "PSNR, one", "PSNR, mean", "spread"),
        rows=rows,
        numeric=range(1, 5),
        measures=(
            Measure("ResShift - SR3 at 15 steps", apart[15], "dB", better="higher"),
            Measure("ResShift - SR3 at 3 steps", apart[3], "dB", None if quick else 0.0, better="higher"),
        ),
    )


def _trained(keys: tuple[str, ...], steps: int, seed: int) -> Any:
    shared = [
        f"data.degrade=downsample:2|noise:gaussian,{_NOISE / 2}",
        "model.channels=32",
        f"train.steps={steps}",
        f"train.seed={seed}",
        f"train.warmup={min(100, steps // 2)}",
        "train.preview_every=0",
    ]
    with tempfile.TemporaryDirectory() as folder:
        return train("digits", "restoration", out=Path(folder) / "run", overrides=[*shared, *keys]).model
