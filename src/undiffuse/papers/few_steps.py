"""Flow maps on points and on small pictures: what one call is worth, against the denoiser that they replace."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from undiffuse.data import open_data
from undiffuse.distillation.few_steps import distill_run
from undiffuse.distillation.mmd_features import trained_classifier
from undiffuse.distillation.mmd_judge import all_items
from undiffuse.metrics.energy import energy_distance
from undiffuse.metrics.frechet import frechet_distance
from undiffuse.models import Model
from undiffuse.noise import KeyedNoise
from undiffuse.papers.study import Part, short
from undiffuse.report.measures import Measure
from undiffuse.training.run import train

Points = Literal["mixture", "gaussian", "digits"]
CHANCE = 7e-4  # of the energy distance, for a set of samples of the right law
_SETS = 4  # of samples, where the distance of one is mostly chance
MANY = 100  # DDIM steps of the denoiser that the others are measured by
COUNTS = (1, 2, 4, 8)
_COUNTED: dict[Points, int] = {"mixture": 3000, "gaussian": 20_000, "digits": 2000}  # samples that a figure is of
_RECIPE = (
    "model=mlp",
    "model.width=128",
    "model.depth=3",
    "process.schedule=rf",
    "process.prediction=v",
    "objective.times=uniform",
)
_TRAINING: dict[str, Any] = {"batch_size": 256, "checkpoint_every": 100_000, "preview_every": 0, "log_every": 500}
_OWN = {
    "meanflow": ("train.lr=3e-3",),
    "consistency-training": ("train.steps=6000", "train.batch_size=1024", "objective.last_levels=2560"),
}
"""What one jump of the mixture needs. Few levels blur it: each averages over the noise that is left, for there is no
teacher; and more of them need a law of the noise that larger batches know better."""
_MEANS = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]])
_DEVIATIONS, _SHARES = torch.tensor([0.15, 0.2, 0.1]), torch.tensor([0.3, 0.4, 0.3])
_CENTRE, _SPREAD = torch.tensor([0.7, -0.3]), torch.tensor([0.5, 1.0])


@dataclass(frozen=True)
class Trained:
    """A generator and its errors by number of calls, and the seconds that its training and sampling took."""

    name: str
    errors: dict[int, float]
    seconds: float


def compare(
    points: Points,
    methods: Sequence[str],
    steps: int,
    *,
    teacher_steps: int | None = None,
    seed: int = 0,
    students: Sequence[str] = (),
    own: Mapping[str, Sequence[str]] | None = None,
    heard: Callable[[Trained], None] = lambda trained: None,
) -> list[Trained]:
    """Train a denoiser and flow maps from it, and return the errors of each, the denoiser with DDIM first.

    Args:
        points: "mixture": energy distance of 3000 samples to fresh points, three narrow Gaussians, a mean of four sets;
            0 +- 0.0007 is chance in each. "gaussian": the largest relative error of mean (in deviations) and deviation
            of 20 000 samples. "digits": Frechet distance of 2000 samples to the 1797 digits of 8 x 8 values in features
            of a classifier.
        methods: Names of `undiffuse.distillation.METHODS`.
        steps: Optimizer steps of the denoiser, and of each map.
        teacher_steps: Those of the denoiser, where they are others.
        seed: Of data and training.
        students: "key=value" of the maps' recipes.
        own: Method -> "key=value" of its recipe alone.
        heard: Called after each.
    """
    data = draw(points, 50_000, seed).numpy()
    options = {**_TRAINING, "steps": steps, "seed": seed}
    found: list[Trained] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("denoiser, DDIM", *methods):
            began = time.perf_counter()
            if not found:
                taught = {**options, "steps": teacher_steps or steps}
                run = train(data, "vector", out=folder / "teacher", overrides=_RECIPE, **taught)
                sampling: dict[str, Any] = {"solver": "ddim", "grid": "t"}
                counts: tuple[int, ...] = (*COUNTS, MANY)
            else:
                mapped = {**options, "lr": 1e-3}
                keys = [*students, *(own or {}).get(name, ())]
                run = distill_run(folder / "teacher", name, data, folder / name, overrides=keys, **mapped)
                counts, sampling = COUNTS, {}
            if not run.finished:
                raise KeyboardInterrupt
            errors = {n: error(points, run.model, steps=n, **sampling) for n in counts}
            found.append(Trained(name, errors, time.perf_counter() - began))
            heard(found[-1])
    return found


def error(points: Points, model: Model, **sampling: Any) -> float:
    """Return how far samples are from the law of `points`; see `compare`."""
    count = _COUNTED[points]
    if points == "mixture":
        sets = ((model.sample(count, seed=1 + n, batch_size=count, **sampling), 1000 + n) for n in range(_SETS))
        return float(np.mean([energy_distance(x.numpy(), draw(points, count, seed).numpy()) for x, seed in sets]))
    samples = model.sample(count, seed=1, batch_size=count, **sampling)
    if points == "digits":
        features, real = _digit_features()
        return frechet_distance(features(samples), real)
    shift, spread = (samples.mean(0) - _CENTRE) / _SPREAD, samples.std(0) / _SPREAD - 1
    return float(torch.cat([shift, spread]).abs().max())


def draw(points: Points, count: int, seed: int) -> Tensor:
    """Return points (count, 2), or the first `count` digits (count, 64)."""
    if points == "digits":
        return all_items(open_data("digits"))[:count].flatten(1)
    noise = KeyedNoise(seed, range(count))
    z = noise.normal("data", 0, (2,))
    if points == "gaussian":
        return _CENTRE + _SPREAD * z
    mode = torch.searchsorted(_SHARES.cumsum(0)[:2].double(), noise.uniform("class", 0, ()))
    return _MEANS[mode] + _DEVIATIONS[mode, None] * z


@cache
def _digit_features() -> tuple[Callable[[Tensor], np.ndarray], np.ndarray]:
    """Return the features of a classifier of digits, of values (N, 64), and those of all digits."""
    digits = open_data("digits")
    network = trained_classifier(digits, None, seed=1)

    def features(x: Tensor) -> np.ndarray:
        with torch.no_grad():
            return network.features(x.clamp(-1, 1).view(-1, *digits.spec.shape)).double().numpy()

    return features, features(draw("digits", len(digits), 0))


def flow_maps(seed: int, steps: int = 4000) -> Part:
    """Energy distances of samples in few calls, of a denoiser and of flow maps made from it."""
    found = compare("mixture", tuple(_OWN), steps, seed=seed, own=_OWN)
    plain, *maps = found
    own = "; ".join(f"{name}, {' '.join(keys)}" for name, keys in _OWN.items())
    floor = 4 * max(plain.errors[MANY], CHANCE)
    return Part(
        title="Flow maps",
        text="Energy distance of 3000 samples to as many fresh points of a mixture of three narrow Gaussians, a mean "
        f"of four sets; 0 +- 0.0007 is chance in each. A network of three layers; {steps} steps of training with "
        f"batches of 256 for the denoiser, and for the maps but for what they say of their own: {own}. A flow map does "
        "in one call what the denoiser needs several for; more calls need not help it.",
        columns=("generator", *(f"{n} calls" if n > 1 else "1 call" for n in (*COUNTS, MANY)), "seconds"),
        rows=[(t.name, *(short(t.errors.get(n)) for n in (*COUNTS, MANY)), f"{t.seconds:.0f}") for t in found],
        numeric=range(1, len(COUNTS) + 3),
        measures=[
            measure
            for t in maps
            for measure in (
                Measure(f"1 call: denoiser / {t.name}", plain.errors[1] / max(t.errors[1], 1e-4), better="higher"),
                Measure(f"1 call of {t.name}; asked: 4 times 100 steps", t.errors[1], "", asked=floor),
            )
        ],
    )
