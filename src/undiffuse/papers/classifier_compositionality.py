"""When do diffusion classifiers understand compositionality? Domains, learned weights, and two digits side by side."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from undiffuse.analysis.compositionality.bench import rows_of
from undiffuse.analysis.compositionality.gap import DomainGap, domain_gap
from undiffuse.analysis.compositionality.labelled import DOMAINS, labelled_task, moved_task
from undiffuse.analysis.compositionality.learned import LearnedWeights, learn_on, split_items
from undiffuse.analysis.compositionality.own_generations import classifier_filter, self_bench
from undiffuse.analysis.compositionality.pictures import load_pictures
from undiffuse.analysis.compositionality.score import TaskErrors, score_task
from undiffuse.analysis.compositionality.task import Task
from undiffuse.data import open_data, split
from undiffuse.events import Listener, silent
from undiffuse.metrics.features import ClassifierFeatures, PCAFeatures
from undiffuse.metrics.shares import Share
from undiffuse.models import load
from undiffuse.noise import permutation
from undiffuse.papers.compose_two_digits import two_digit_study
from undiffuse.papers.study import Keep, Part, Study, drop, run_parts
from undiffuse.report.measures import Measure, machine_settings
from undiffuse.report.plots import lines
from undiffuse.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TIMES = 20
_SHOTS = (10, 30, 50, 100)
_DRAWS = 3
_COMPONENTS = 16  # of features: a covariance of more would be singular in a hundred pictures
_BLUR = "3 x 3 blur"
_REAL = "real"


def reproduce(*, quick: bool = False, seed: int = 0, listener: Listener = silent, keep: Keep = drop) -> Study:
    """Compute all tables; `quick` takes few pictures and trains next to nothing: to try it."""
    digits = _Digits(quick, seed)
    parts = [
        ("domains and learned weights", partial(domains, digits)),
        ("the gap", partial(gaps, digits)),
        ("two digits", partial(two_digit_study, quick, seed)),
    ]
    settings = machine_settings(seed=seed, quick=quick, times=digits.times, test=len(digits.real) // 2)
    return run_parts("classifier-compositionality", parts, settings, listener, keep)


@dataclass
class _Domain:
    """A domain's pictures, the errors on them, and what weights learned there are worth.

    Args:
        name: Its name.
        errors: Of the shipped model.
        logistic: Accuracy of the logistic regression on the held-out half.
        learned: Shots -> draws; none for own generations.
    """

    name: str
    errors: TaskErrors
    logistic: float
    learned: dict[int, list[LearnedWeights]]

    @property
    def uniform(self) -> float:
        """Accuracy with equal weights on the held-out half, in per cent."""
        first = next(iter(self.learned.values()))
        return 100 * first[0].uniform.value

    def mean(self, shots: int) -> float:
        """Mean accuracy on it with weights learned from so many shots, in per cent."""
        return 100 * float(np.mean([found.learned.value for found in self.learned[shots]]))


@dataclass(frozen=True)
class _Judge:
    """A classifier of model units that takes data units."""

    classifier: ClassifierFeatures
    components: PCAFeatures
    spec: DataSpec

    def fit(self, x: Any, labels: Any = None) -> _Judge:
        """It is fitted already."""
        return self

    def features(self, x: Any) -> Any:
        """Return principal components of its features (N, D)."""
        return self.components.features(self.classifier.features(self.spec.to_model(torch.as_tensor(x))))

    def predict(self, x: Any) -> Any:
        """Return class numbers (N,)."""
        return self.classifier.predict(self.spec.to_model(torch.as_tensor(x)))


class _Digits:
    """The shipped model on digits that it has not seen, taken to other domains."""

    def __init__(self, quick: bool, seed: int) -> None:
        self.model, self.seed, self.quick = load("digits"), seed, quick
        self.agreement: dict[float, Share] = {}
        self.times = 4 if quick else _TIMES
        self.shots = (10,) if quick else _SHOTS
        self.names = (_REAL, _BLUR) if quick else (_REAL, *DOMAINS)
        self.train, held_out = split(open_data("digits"))
        rows = permutation(seed, 0, len(held_out))[: 24 if quick else 200]
        items = held_out.batch(rows)
        data = held_out.spec.from_model(items["x"])
        self.real = labelled_task(data, items["cond"]["label"], self.model.spec.classes, _REAL)

    @cached_property
    def domains(self) -> list[_Domain]:
        """All domains of real pictures."""
        return [self._domain(name) for name in self.names]

    @cached_property
    def own(self) -> dict[float, Task]:
        """Guidance -> own generations that an independent classifier names as they were asked for."""
        return {scale: self._own(scale) for scale in ((3.0,) if self.quick else (1.0, 3.0))}

    @cached_property
    def own_errors(self) -> dict[float, TaskErrors]:
        """Guidance -> errors on the own generations."""
        return {scale: self._errors(task) for scale, task in self.own.items()}

    @cached_property
    def training(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (N, 64) in model units and labels (N,) of the digits that the model was trained on."""
        items = self.train.batch(torch.arange(len(self.train)))
        return items["x"].flatten(1).numpy(), items["cond"]["label"].numpy()

    @cached_property
    def judge(self) -> _Judge:
        """A perceptron that knows the classes and gives features, independent of the model."""
        classifier = ClassifierFeatures(seed=self.seed).fit(*self.training)
        components = PCAFeatures(components=_COMPONENTS).fit(classifier.features(self.training[0]))
        return _Judge(classifier, components, self.model.spec)

    @cached_property
    def regression(self) -> Any:
        """A logistic regression on the same digits."""
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(max_iter=500).fit(*self.training)

    def judged(self, task: Task) -> np.ndarray:
        """Return which items the logistic regression has right."""
        images = [image for item in task.items for image in item.images]
        pixels = self.model.spec.to_model(self._pictures(task, images)).flatten(1).numpy()
        return self.regression.predict(pixels) == np.array(task.answers)

    def _pictures(self, task: Task, images: Sequence[Any]) -> torch.Tensor:
        return load_pictures(task, images, self.model.spec)

    def _errors(self, task: Task) -> TaskErrors:
        return score_task(self.model, task, times=self.times, seed=self.seed)

    def _domain(self, name: str) -> _Domain:
        task = self.real if name == _REAL else moved_task(self.real, self.model.spec, name, self.seed)
        errors = self._errors(task)
        test = split_items(len(task), 0.5, self.seed)[0]
        learned = {
            shots: [learn_on(errors, shots=shots, seed=self.seed, draw=draw) for draw in range(_DRAWS)]
            for shots in self.shots
        }
        return _Domain(name, errors, 100 * float(self.judged(task)[test].mean()), learned)

    def _own(self, scale: float) -> Task:
        keep = classifier_filter(self.judge, self.model.spec.classes)
        with tempfile.TemporaryDirectory() as folder:
            found = self_bench(
                self.model,
                Path(folder) / "own",
                samples=2 if self.quick else 10,
                guidance=scale,
                filter=keep,
                seed=self.seed,
            )
            (task,) = found.tasks
            data = self._pictures(task, [image for item in task.items for image in item.images])
        assert found.passed is not None
        self.agreement[scale] = found.passed
        name = f"own generations, guidance {scale:g}"
        return labelled_task(data, torch.tensor(task.answers), self.model.spec.classes, name)


def domains(digits: _Digits) -> Part:
    """Section 5's table: accuracy by domain, with equal weights and with weights learned from a few items."""
    rows = []
    for scale, errors in digits.own_errors.items():
        found = rows_of(errors)[0]
        judged = 100 * float(digits.judged(errors.task).mean())
        passed = digits.agreement[scale]
        name = f"{errors.task.name} ({passed.hits} of {passed.n} pass)"
        rows.append(
            (name, str(found.n), f"{100 * found.value:.1f}", *[""] * len(digits.shots), "", "", f"{judged:.1f}")
        )
    for domain in digits.domains:
        gap = _gap(digits, domain)
        means = [f"{domain.mean(shots):.1f}" for shots in digits.shots]
        more = (f"{gap.real.best_time:.2f}", f"{gap.error_ratio:.1f}", f"{domain.logistic:.1f}")
        rows.append((domain.name, str(len(digits.real) // 2), f"{domain.uniform:.1f}", *means, *more))
    columns = ("domain", "n", "uniform", *[f"{shots} shots" for shots in digits.shots])
    return Part(
        title="Domains",
        text=f"The shipped model of digits reads pictures among ten classes by {digits.times} times with shared noise. "
        "Own generations passed an independent classifier; the others are digits that the model has not seen, taken to "
        f"other domains. Weights are learned from shots and tested on {len(digits.real) // 2} other items, mean of "
        f"{_DRAWS} draws; best t is the best single time; the error ratio is that of the right class to own "
        "generations.",
        columns=(*columns, "best t", "error ratio", "logistic regression"),
        rows=rows,
        numeric=range(1, len(columns) + 3),
        measures=_asked(digits),
    )


def _asked(digits: _Digits) -> list[Measure]:
    named = {domain.name: domain for domain in digits.domains}
    shots = 30 if 30 in digits.shots else digits.shots[0]
    ask = not digits.quick
    gain = named[_BLUR].mean(shots) - named[_BLUR].uniform
    loss = named[_REAL].uniform - named[_REAL].mean(shots)
    return [
        Measure(f"gain on {_BLUR}, {shots} shots", gain, "points", 15.0 if ask else None, "higher"),
        Measure(f"loss in domain, {shots} shots", loss, "points", 1.5 if ask else None),
    ]


def _gap(digits: _Digits, domain: _Domain) -> DomainGap:
    return domain_gap(digits.model, domain.errors, digits.own_errors[3.0], features=digits.judge)


def gaps(digits: _Digits) -> Part:
    """How far each domain lies from own generations, and what weights win there."""
    shots = digits.shots[-1]
    found = [(domain, _gap(digits, domain)) for domain in digits.domains]
    rows = [
        (
            domain.name,
            f"{gap.frechet:.2f}",
            f"{gap.error_ratio:.2f}",
            f"{domain.mean(shots) - domain.uniform:+.1f}",
            f"{gap.real.best_time:.2f}",
            f"{100 * float(gap.real.accuracy.max()):.1f}",
            f"{float(gap.real.effect.max()):.2f}",
        )
        for domain, gap in found
    ]
    return Part(
        title="The domain gap",
        text="Frechet distance of the features of an independent classifier to those of own generations (between two "
        f"halves of these: {found[0][1].frechet_floor:.2f}), the ratio of true-class errors, what {shots} shots win, "
        "and what the best single time tells: its accuracy on the items that it is chosen by, and its margin over the "
        "margin's standard deviation.",
        columns=("domain", "Frechet", "error ratio", "won", "best t", "accuracy there", "margin / s.d."),
        rows=rows,
        numeric=range(1, 7),
        figure=_curves(found),
        caption="Accuracy of the choice by a single time; the ends of the time axis tell little in every domain.",
    )


def _curves(found: Sequence[tuple[_Domain, DomainGap]]) -> Figure:
    curves = {domain.name: (gap.real.times.tolist(), (100 * gap.real.accuracy).tolist()) for domain, gap in found}
    return lines(curves, "time", "accuracy by one time alone, %")
