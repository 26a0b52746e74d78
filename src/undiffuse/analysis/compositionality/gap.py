"""How far a task lies from a model's own generations, and at which times the model can read it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.compositionality.measures import chosen_right
from undiffuse.analysis.compositionality.pictures import load_pictures
from undiffuse.analysis.compositionality.score import TaskErrors, score_task
from undiffuse.analysis.compositionality.task import Task
from undiffuse.events import Listener, silent
from undiffuse.metrics.features import FeatureExtractor, PCAFeatures
from undiffuse.metrics.frechet import frechet_distance
from undiffuse.models.model import Model


@dataclass(frozen=True, kw_only=True)
class TimeProfile:
    """What single times tell on a task.

    Args:
        times: (n,).
        accuracy: Of the choice by that time alone, (n,); ties are wrong.
        margin: Mean error of the wrong candidates minus that of the right one, over items, (n,).
        spread: Standard deviation of that over items, (n,).
        right: Mean error of the right candidate, (n,); that without a text is not subtracted.
    """

    times: Tensor
    accuracy: Tensor
    margin: Tensor
    spread: Tensor
    right: Tensor

    @property
    def effect(self) -> Tensor:
        """Margin over its standard deviation, (n,)."""
        return self.margin / self.spread.clamp(min=1e-12)

    @property
    def best_time(self) -> float:
        """The single time with the best accuracy; of several the one with the largest effect."""
        top = self.accuracy == self.accuracy.max()
        return float(self.times[torch.where(top, self.effect, -torch.inf).argmax()])


def time_profile(found: TaskErrors) -> TimeProfile:
    """Return accuracy, margin and error of every single time.

    Raises:
        ValueError: A task of bias.
    """
    errors, answers = found.choices()  # (N, C, n)
    plain = replace(found, null=None).choices()[0]
    count = errors.shape[2]
    place = answers[:, None, None].expand(-1, 1, count)
    right = errors.gather(1, place)[:, 0]
    wrong = errors.scatter(1, place, torch.nan).nanmean(1)
    accuracy = torch.stack([chosen_right(-errors[..., k], answers)[0].double().mean() for k in range(count)])
    margin = wrong - right
    spread = margin.std(0) if len(margin) > 1 else torch.zeros(count, dtype=margin.dtype)
    return TimeProfile(
        times=found.frame.times,
        accuracy=accuracy,
        margin=margin.mean(0),
        spread=spread,
        right=plain.gather(1, place)[:, 0].mean(0),
    )


@dataclass(frozen=True, kw_only=True)
class DomainGap:
    """A task beside a model's own generations.

    Args:
        frechet: Frechet distance of their pictures' features.
        frechet_floor: The same between two halves of the own generations.
        error_ratio: Mean error of the right candidate on the task over that on the own generations.
        ratio_by_time: The same at each time, (n,).
        real: Profile of the task.
        own: Profile of the own generations.
    """

    frechet: float
    frechet_floor: float
    error_ratio: float
    ratio_by_time: Tensor
    real: TimeProfile
    own: TimeProfile


def domain_gap(
    model: Model,
    real: Task | TaskErrors,
    own: Task | TaskErrors,
    *,
    features: FeatureExtractor | None = None,
    listener: Listener = silent,
    **options: Any,
) -> DomainGap:
    """Return how far a task lies from a model's own generations.

    Args:
        model: Reads both.
        real: The task, or errors on it that were measured before.
        own: The own generations, likewise.
        features: Fitted, to compare pictures in; None: principal components of the own generations.
        listener: Hears about progress.
        options: See `score_task`: times, spacing, seed, resize, ...

    Raises:
        ValueError: The two were measured at other times.
        DataError: A picture is missing or of another size.
    """
    found = [
        part if isinstance(part, TaskErrors) else score_task(model, part, listener=listener, **options)
        for part in (real, own)
    ]
    if found[0].half_logsnr.shape != found[1].half_logsnr.shape or not torch.equal(
        found[0].half_logsnr, found[1].half_logsnr
    ):
        raise ValueError("the two tasks were measured at other times; measure both alike.")
    resize = options.get("resize", "crop")
    theirs, mine = (
        load_pictures(part.task, [image for item in part.task.items for image in item.images], model.spec, resize)
        for part in found
    )
    extractor = PCAFeatures(components=min(16, max(2, len(mine) // 4))).fit(mine) if features is None else features
    a, b = extractor.features(theirs), extractor.features(mine)
    profiles = [time_profile(part) for part in found]
    ratios = profiles[0].right / profiles[1].right
    return DomainGap(
        frechet=frechet_distance(a, b),
        frechet_floor=frechet_distance(b[::2], b[1::2]),
        error_ratio=float(profiles[0].right.mean() / profiles[1].right.mean()),
        ratio_by_time=ratios,
        real=profiles[0],
        own=profiles[1],
    )
