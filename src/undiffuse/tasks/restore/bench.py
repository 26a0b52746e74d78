"""`bench_restore`: every restorer on every operator, on items whose truth is known, beside the exact posterior if any.

Distortion, calibration and cost stand in one row, for each can be bought with another.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.errors import ConfigError, UndiffuseError
from undiffuse.events import Advanced, Finished, Listener, Message, Started, silent
from undiffuse.metrics.agreement import LabelClassifier, NetworkClassifier, label_agreement
from undiffuse.metrics.calibration import coverage, energy_to_reference, fair_crps, spread_ratio
from undiffuse.metrics.classifier import classifier_for
from undiffuse.metrics.perceptual import Distance, make_distance
from undiffuse.metrics.restoration import consistency, psnr, ssim
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import LinearOperator, Operator
from undiffuse.tasks.restore.bench_results import EXACT, BenchRow, RestoreBench
from undiffuse.tasks.restore.exact import MixturePosterior, exact_posterior
from undiffuse.tasks.restore.peak_memory import PeakMemory
from undiffuse.tasks.restore.registry import RESTORERS, restorer_class
from undiffuse.tasks.restore.restorer import RestoreResult
from undiffuse.tasks.restore.run import restore

_TASK = "bench-restore"
_REFERENCE = 128  # samples of the exact posterior behind an energy distance
_DENSE = 4096  # largest item or measurement whose exact posterior is computed
_REFUSALS = (ValueError, TypeError, NotImplementedError, UndiffuseError)
Keep = Callable[[RestoreBench], object]


@dataclass(frozen=True)
class Trial:
    """An operator with its measurements.

    Args:
        name: As it is shown.
        operator: A.
        clean: True items (B, *shape), model units.
        y: Measurements, model units.
        noise_std: Of their noise, model units.
        exact: The exact posterior, where it is known.
        reference: Samples of it (M, B, *shape).
        distance: Of pictures, in features, where asked for.
        judge: Of their classes, where asked for.
    """

    name: str
    operator: Operator
    clean: Tensor
    y: Tensor
    noise_std: float
    exact: MixturePosterior | None = None
    reference: Tensor = field(default_factory=lambda: torch.empty(0))
    distance: Distance | None = None
    judge: Judge | None = None


@dataclass(frozen=True)
class Judge:
    """Who says what pictures show.

    Args:
        classifier: Of pictures in [-1, 1].
        wanted: Right classes of the items (B,), numbers of the classifier's.
        true_share: Share of the true items in which it sees them; None where `wanted` is what it saw in those.
    """

    classifier: LabelClassifier
    wanted: Tensor
    true_share: float | None

    def figures(self, samples: Tensor) -> dict[str, Any]:
        """Return the figures of samples (K, B, C, H, W)."""
        labels = self.wanted.repeat(len(samples))
        share = label_agreement(self.classifier, samples.flatten(0, 1), labels.numpy()).share
        return {"top1": share, "top1_true": self.true_share, "top1_items": len(self.wanted)}


def bench_restore(
    model: Model,
    clean: Tensor,
    operators: Mapping[str, Operator],
    methods: Sequence[str] | None = None,
    steps: Sequence[int] = (20, 100),
    *,
    noise_std: float = 0.1,
    samples: int = 8,
    seed: int = 0,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    perceptual: str | None = None,
    classifier: str | None = None,
    labels: Tensor | None = None,
    before: RestoreBench | None = None,
    settings: Mapping[str, Any] | None = None,
    keep: Keep | None = None,
    listener: Listener = silent,
    **arguments: Any,
) -> RestoreBench:
    """Measure restorers on operators.

    Args:
        model: The prior. With an analytic mixture and a linear operator, distances to the exact posterior are added.
        clean: True items (B, *model.spec.shape), model units.
        operators: Name -> operator.
        methods: Names of restorers; None: all.
        steps: Numbers of steps, each a row.
        noise_std: Of the measurements, model units.
        samples: K of each item; 1 has no spread.
        seed: Of noise and samples.
        options: Method -> options of its own.
        perceptual: Adds the distance in features: "lpips", or a classifier by its folder or shipped name.
        classifier: Adds the share of samples in which a classifier, a folder or a shipped name, sees the right class.
        labels: Right classes of the items (B,), numbers of the classifier's; None: what it sees in the true items.
        before: Rows that are there already; they are not computed again.
        settings: Kept with the rows.
        keep: Hears of all rows after each new one, to write them.
        listener: Hears about progress.
        arguments: Further arguments of `restore`.

    Raises:
        ValueError: A method is unknown, or numbers are out of range. What a method cannot do is a row with the reason.
        ConfigError: The perceptual distance or the classifier cannot be had, or does not fit the items.
    """
    chosen = _checked_methods(methods)
    if noise_std < 0 or samples < 1 or not steps or min(steps) < 1 or len(clean) < 1 or not operators:
        raise ValueError(
            f"noise_std={noise_std}, samples={samples}, steps={tuple(steps)}, {len(clean)} items and {len(operators)} "
            "operators; expected at least 0, and at least 1 of all others."
        )
    distance = make_distance(perceptual, model.spec) if perceptual is not None else None
    judge = make_judge(classifier, clean, labels, model)
    found = RestoreBench(rows=() if before is None else before.rows, settings=dict(settings or {}))
    known = {row.key for row in found.rows}
    listener(Started(_TASK, len(operators) * len(chosen) * len(steps), "row"))
    count = 0
    for name, operator in operators.items():
        trial = replace(measure(name, operator, clean, noise_std, seed, model), distance=distance, judge=judge)
        if trial.exact is not None and (name, EXACT, 0) not in known:
            found = _kept(found, exact_row(trial, samples, seed), keep)
        for method in chosen:
            for number in steps:
                if (name, method, number) not in known:
                    listener(Message(_TASK, f"{method} on {name}, {number} steps"))
                    given = dict((options or {}).get(method, {}))
                    run = {"steps": number, "samples": samples, "seed": seed, "options": given, **arguments}
                    found = _kept(found, method_row(model, trial, method, run), keep)
                count += 1
                listener(Advanced(_TASK, count))
    listener(Finished(_TASK))
    return found


def make_judge(classifier: str | None, clean: Tensor, labels: Tensor | None, model: Model) -> Judge | None:
    """Return who says what pictures show; None where nobody was asked for.

    Raises:
        ValueError: Labels without a classifier, or of other items or classes.
        ConfigError: The items are no pictures of the classifier's shape.
        CheckpointError: It cannot be loaded.
    """
    if classifier is None:
        if labels is not None:
            raise ValueError("labels are what a classifier is asked for; give classifier too.")
        return None
    if model.spec.kind != "image":
        raise ConfigError(f"a classifier judges pictures, but these are {model.spec.noun}; leave it out.")
    network = classifier_for(classifier, model.spec)
    named = NetworkClassifier(network)
    if labels is None:
        return Judge(named, torch.from_numpy(named.predict(clean)), None)
    wanted = labels.cpu().long()
    count = len(network.config.classes)
    if wanted.shape != (len(clean),) or bool(((wanted < 0) | (wanted >= count)).any()):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and values to {int(wanted.max())}; expected ({len(clean)},) "
            f"with the classifier's classes 0 to {count - 1}."
        )
    return Judge(named, wanted, label_agreement(named, clean, wanted.numpy()).share)


def measure(name: str, operator: Operator, clean: Tensor, noise_std: float, seed: int, model: Model) -> Trial:
    """Return an operator with noisy measurements of items, and the exact posterior where it is known."""
    noise = KeyedNoise(seed, range(len(clean)), clean.device)
    y = operator(clean)
    y = y + noise_std * operator.measured(noise.normal("measure", 0, tuple(y.shape[1:]), y.dtype))
    trial = Trial(name, operator, clean, y, noise_std)
    prior = model.module
    small = max(y[0].numel(), clean[0].numel()) <= _DENSE
    if not (isinstance(prior, MixtureDenoiser) and isinstance(operator, LinearOperator) and small):
        return trial
    exact = exact_posterior(prior, y, operator, noise_std)
    return replace(trial, exact=exact, reference=exact.sample(KeyedNoise(seed + 1, range(len(clean))), _REFERENCE))


def exact_row(trial: Trial, samples: int, seed: int) -> BenchRow:
    """Return the row of the exact posterior: its mean is the best PSNR there is, its samples show what is honest."""
    assert trial.exact is not None
    drawn = trial.exact.sample(KeyedNoise(seed + 2, range(len(trial.clean))), samples)
    row = BenchRow(operator=trial.name, method=EXACT, steps=0, nfe=0, nfe_grad=0)
    row = replace(row, **figures(trial, drawn.to(trial.clean)))
    return replace(row, psnr_mean=float(psnr(trial.exact.mean.to(trial.clean), trial.clean).mean()))


def method_row(model: Model, trial: Trial, method: str, run: Mapping[str, Any]) -> BenchRow:
    """Return the row of a restorer, or why there is none."""
    row = BenchRow(operator=trial.name, method=method, steps=int(run["steps"]))
    try:
        _warm_up(model, trial, method, run)
        start = time.perf_counter()
        with PeakMemory(trial.clean.device) as memory:
            result: RestoreResult = restore(
                model, trial.y, trial.operator, method=method, noise_std=trial.noise_std, **run
            )
    except _REFUSALS as error:
        return replace(row, failure=" ".join(str(error).split()))
    seconds = (time.perf_counter() - start) / len(trial.clean)
    row = replace(row, seconds=seconds, memory=memory.mib, nfe=result.nfe, nfe_grad=result.nfe_grad)
    residual = float(result.residual_rms.square().mean().sqrt())
    ratio = residual / trial.noise_std if trial.noise_std > 0 else None
    row = replace(row, residual=residual, residual_ratio=ratio, warnings=tuple(result.warnings))
    return replace(row, **figures(trial, result.samples))


def _warm_up(model: Model, trial: Trial, method: str, run: Mapping[str, Any]) -> None:
    """Do a step for one item, untimed: what is imported or compiled at first use is no part of a method's time."""
    first = trial.operator.take(torch.zeros(1, dtype=torch.int64))
    few = {**run, "steps": 1, "samples": min(2, int(run["samples"]))}
    restore(model, trial.y[:1], first, method=method, noise_std=trial.noise_std, **few)


def figures(trial: Trial, samples: Tensor) -> dict[str, Any]:
    """Return the figures of samples (K, B, *shape) that need no more than them and the trial."""
    clean, count = trial.clean, len(samples)
    flat = samples.flatten(0, 1)
    repeated = clean.repeat(count, *[1] * (clean.ndim - 1))
    measured = torch.cat([trial.operator(one) for one in samples.to(trial.y.dtype)])
    wanted = trial.y.repeat(count, *[1] * (trial.y.ndim - 1))
    found = {
        "psnr": float(psnr(flat, repeated).mean()),
        "psnr_mean": float(psnr(samples.mean(0), clean).mean()),
        "consistency": float(consistency(measured, wanted).mean()),
    }
    if clean.ndim > 2:
        with warnings.catch_warnings():  # about small windows: the same for all rows
            warnings.simplefilter("ignore")
            found["ssim"] = float(ssim(flat, repeated).mean())
    if trial.distance is not None:
        pictures = (part.float().flatten(0, -4) for part in (flat, repeated))  # the frames of a video one by one
        with torch.no_grad():
            found["perceptual"] = float(trial.distance(*pictures).mean())
    if trial.judge is not None:
        found |= trial.judge.figures(samples)
    if count > 1:
        found["spread"] = spread_ratio(samples, clean)
        found["coverage"] = coverage(samples, clean).share
        found["crps"] = fair_crps(samples, clean)
    if trial.exact is not None:
        apart = (samples.mean(0).double() - trial.exact.mean).square().flatten(1).sum(1)
        found["mean_distance"] = float(apart.mean())
        if count > 1:
            found["exact_spread"] = spread_ratio(samples, exact_variance=trial.exact.variance)
            found["energy"] = energy_to_reference(samples, trial.reference)
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


def _checked_methods(methods: Sequence[str] | None) -> list[str]:
    chosen = list(RESTORERS) if methods is None else list(dict.fromkeys(methods))
    for name in chosen:
        restorer_class(name)
    return chosen


def _kept(found: RestoreBench, row: BenchRow, keep: Keep | None) -> RestoreBench:
    grown = replace(found, rows=(*found.rows, row))
    if keep is not None:
        keep(grown)
    return grown
