"""Restoration beside deepinv: DDRM and DiffPIR with the same exact prior, the same measurements, in one run.

Digits with half of the pixels missing and noise of 0.05 (model units). The prior is the exact mixture of the digits, so
every sampler can be held against the exact posterior: the spread is the variance of the samples over the exact one.
Both solvers ask the prior equally often. Reported are ratios of seconds of one thread (so that other processes hardly
count), PSNR, spread and energy distance of both.

deepinv is not a dependency: pip install deepinv. Without its torchvision operators it is imported all the same.

    python benchmarks/restore_deepinv.py [--out results.json]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.models.model import Model
from undiffuse.operators.parse import parse_operator
from undiffuse.report.measures import Measure, Results, machine_settings, publish, script_options
from undiffuse.tasks.restore.bench import Trial, figures, measure
from undiffuse.tasks.restore.exact import digits_prior
from undiffuse.tasks.restore.run import restore

ITEMS, SAMPLES, STEPS, ROUNDS, NOISE = 24, 8, 100, 3, 0.05
ASKED_TIME = 1.05
_OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align": "(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
}


def main() -> None:
    """Run both and publish."""
    arguments = script_options(__doc__ or "").parse_args()
    items, samples, rounds = (4, 2, 1) if arguments.quick else (ITEMS, SAMPLES, ROUNDS)
    torch.set_num_threads(1)
    title, settings = "Restoration beside deepinv", machine_settings(items=items, samples=samples, steps=STEPS)
    try:
        peer = import_deepinv()
    except ImportError as error:
        missing = Measure("ddrm: seconds, ours / deepinv", None, asked=ASKED_TIME, note=f"deepinv is missing: {error}")
        publish(Results(title, "deepinv is not installed: pip install deepinv.", (missing,), settings), arguments.out)
        return
    prior, held_out = digits_prior()
    assert prior.spec is not None
    model, clean = Model(prior, prior.spec), held_out[:items]
    operator = parse_operator("inpaint:random,missing=0.5", prior.spec)
    trial = measure("inpaint50", operator, clean, NOISE, 0, model)
    measures: list[Measure] = []
    for name, theirs in (("ddrm", ddrm(peer, prior, trial)), ("diffpir", diffpir(peer, prior, trial))):
        measures += compare(name, ours(model, trial, name, samples), lambda t=theirs: t(samples), trial, rounds)
    summary = f"{items} digits, {samples} samples each, {STEPS} evaluations; deepinv {peer.__version__}"
    publish(Results(title, summary, tuple(measures), settings | {"deepinv": peer.__version__}), arguments.out)


def import_deepinv() -> Any:
    """Import deepinv, after declaring the operators that torchvision's Python part looks for.

    Raises:
        ImportError: It, or something that it imports, is not installed.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _OPERATORS.items():
        try:
            library.define(name + schema)
        except RuntimeError:  # torchvision is whole
            break
    import deepinv

    deepinv.declared = library  # the declarations live as long as this object
    return deepinv


class Prior(torch.nn.Module):
    """The exact mixture as deepinv asks it: x + sigma z in, the posterior mean out.

    Args:
        prior: In model units.
        unit: Whether deepinv speaks of data in [0, 1].
    """

    def __init__(self, prior: MixtureDenoiser, unit: bool) -> None:
        super().__init__()
        self.prior, self.unit = prior, unit

    def forward(self, x: Tensor, sigma: Any, **options: Any) -> Tensor:
        """Return E[x_0 | x]."""
        level = torch.as_tensor(sigma, dtype=torch.float64).flatten()[0] * (2.0 if self.unit else 1.0)
        schedule = self.prior.process.schedule
        t = float(schedule.time(-level.clamp(min=1e-3).log()))
        alpha = float(schedule.alpha(torch.tensor(t, dtype=torch.float64)))
        mean = self.prior(alpha * (2 * x - 1 if self.unit else x), t).mean
        return (mean + 1) / 2 if self.unit else mean


def ddrm(peer: Any, prior: MixtureDenoiser, trial: Trial) -> Callable[[int], Tensor]:
    """Return deepinv's DDRM on our levels, drawing (K, B, *)."""
    mask = trial.operator.mask[None]  # type: ignore[attr-defined]
    physics = peer.physics.Inpainting(tuple(mask.shape[1:]), mask=mask, noise_model=peer.physics.GaussianNoise(NOISE))
    times = torch.linspace(1.0, 0.0, STEPS + 1, dtype=torch.float64)[:-1]
    levels = (prior.process.schedule.sigma(times) / prior.process.schedule.alpha(times)).tolist()
    solver = peer.sampling.DDRM(Prior(prior, unit=False), sigmas=levels, eta=0.85, etab=1.0)
    return lambda count: torch.stack([solver(trial.y.clone(), physics, seed=k + 1) for k in range(count)])


def diffpir(peer: Any, prior: MixtureDenoiser, trial: Trial) -> Callable[[int], Tensor]:
    """Return deepinv's DiffPIR at its defaults, in [0, 1]."""
    mask = trial.operator.mask[None]  # type: ignore[attr-defined]
    noise = peer.physics.GaussianNoise(NOISE / 2)
    physics = peer.physics.Inpainting(tuple(mask.shape[1:]), mask=mask, noise_model=noise)
    solver = peer.sampling.DiffPIR(
        Prior(prior, unit=True), peer.optim.data_fidelity.L2(), sigma=NOISE / 2, max_iter=STEPS
    )
    y = mask * (trial.y + 1) / 2
    return lambda count: torch.stack([solver(y.clone(), physics, seed=k + 1) * 2 - 1 for k in range(count)])


def ours(model: Model, trial: Trial, name: str, samples: int) -> Callable[[], Tensor]:
    """Return our restorer of that name, one sample of all items at a time, as deepinv draws them."""

    def draw() -> Tensor:
        found = [
            restore(model, trial.y, trial.operator, name, noise_std=NOISE, samples=1, steps=STEPS, seed=seed).samples[0]
            for seed in range(samples)
        ]
        return torch.stack(found)

    return draw


def compare(
    name: str, own: Callable[[], Tensor], theirs: Callable[[], Tensor], trial: Trial, rounds: int
) -> list[Measure]:
    """Return ratios of medians, alternating, and the figures of both."""
    seconds: dict[str, list[float]] = {"ours": [], "deepinv": []}
    drawn: dict[str, Tensor] = {}
    for _ in range(rounds):
        for label, draw in (("ours", own), ("deepinv", theirs)):
            start = time.process_time()
            drawn[label] = draw()
            seconds[label].append(time.process_time() - start)
    ratio = statistics.median(seconds["ours"]) / statistics.median(seconds["deepinv"])
    found = {label: figures(trial, x.to(trial.clean)) for label, x in drawn.items()}
    measures = [Measure(f"{name}: seconds, ours / deepinv", ratio, asked=ASKED_TIME, note="medians, alternating")]
    for label, row in found.items():
        measures += [
            Measure(f"{name}, {label}: PSNR of one sample", row["psnr"], "dB", better="higher"),
            Measure(f"{name}, {label}: spread / exact", row["exact_spread"], ""),
            Measure(f"{name}, {label}: energy distance to the exact posterior", row["energy"], ""),
        ]
    return measures


if __name__ == "__main__":
    main()
