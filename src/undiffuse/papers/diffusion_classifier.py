"""A diffusion model as a classifier: shared noise, pruning, times, weights and confidence, on digits never seen."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from undiffuse.data import open_data, split
from undiffuse.events import Listener, silent
from undiffuse.models import Model, load
from undiffuse.papers.study import Keep, Part, Study, drop, run_parts
from undiffuse.report.measures import Measure, machine_settings
from undiffuse.report.plots import lines
from undiffuse.tasks.classify.errors import error_table
from undiffuse.tasks.classify.results import Classification, judged
from undiffuse.tasks.classify.run import classify
from undiffuse.tasks.classify.table import ErrorTable, Weight
from undiffuse.tasks.classify.temperature import fit_temperature, negative_log_likelihood
from undiffuse.tasks.classify.times import time_sets

_IMAGES, _TIMES, _KEEP = 250, 40, 4
_COUNTS = (1, 2, 5, 10, 20, 40)


def reproduce(*, quick: bool = False, seed: int = 0, listener: Listener = silent, keep: Keep = drop) -> Study:
    """Compute all tables; `quick` takes a tenth of the images and a fifth of the times: to try it."""
    bench = _Bench(quick, seed)
    parts = [
        ("shared noise", partial(shared_noise, bench)),
        ("pruning", partial(pruning, bench)),
        ("one time alone", partial(single_times, bench)),
        ("weights of times", partial(weights, bench)),
        ("probabilities", partial(probabilities, bench)),
    ]
    settings = machine_settings(seed=seed, quick=quick, images=len(bench.truth), times=bench.times)
    return run_parts("diffusion-classifier", parts, settings, listener, keep)


class _Bench:
    """Held-out digits, the built-in model, and the errors of all classes at all times, computed when first asked for.

    Args:
        quick: Few images and times.
        seed: Of the noise.
    """

    def __init__(self, quick: bool, seed: int) -> None:
        self.quick, self.seed = quick, seed
        self.model: Model = load("digits")
        self.times = 8 if quick else _TIMES
        self.counts = tuple(count for count in _COUNTS if count <= self.times)
        rest, held_out = split(open_data("digits"))
        batch, taught = held_out.batch(torch.arange(25 if quick else _IMAGES)), rest.batch(torch.arange(len(rest)))
        self.x, self.truth = self.model.spec.from_model(batch["x"]), batch["cond"]["label"]
        self.taught, self.taught_truth = taught["x"], taught["cond"]["label"]

    @cached_property
    def table(self) -> ErrorTable:
        """Squared errors with shared noise."""
        return error_table(self.model, self.x, times=self.times, seed=self.seed)

    @cached_property
    def absolute(self) -> ErrorTable:
        """Absolute errors with shared noise."""
        return error_table(self.model, self.x, times=self.times, seed=self.seed, loss="l1")

    @cached_property
    def unshared(self) -> Tensor:
        """Squared errors with noise of its own for each class, (B, C, n)."""
        columns = []
        for label in range(len(self.model.spec.classes)):
            alone = error_table(self.model, self.x, [label], times=self.times, seed=self.seed + 1000 * (label + 1))
            columns.append(alone.errors)
        return torch.cat(columns, 1)

    def accuracy(self, errors: Tensor) -> float:
        """Share of images whose true class has the lowest mean error."""
        return float((errors.double().mean(-1).argmin(1) == self.truth).double().mean())

    @cached_property
    def logistic(self) -> float:
        """Accuracy of a logistic regression on the pixels of all digits that were not held out."""
        from sklearn.linear_model import LogisticRegression

        pixels = self.model.spec.to_model(self.x).flatten(1)
        learned = LogisticRegression(max_iter=2000).fit(self.taught.flatten(1).numpy(), self.taught_truth.numpy())
        return float(learned.score(pixels.numpy(), self.truth.numpy()))

    def asked(self, value: float) -> float | None:
        """What is asked of a figure; nothing of a quick run."""
        return None if self.quick else value


def shared_noise(bench: _Bench) -> Part:
    """Accuracy by number of times: the same noise for all classes, or noise of its own for each."""
    rows, found = [], {}
    for count in bench.counts:
        even = time_sets(bench.times, (count,), "reference")[0] if count < bench.times else list(range(bench.times))
        nested = time_sets(bench.times, (count,), "corput")[0] if count < bench.times else even
        found[count] = {
            "even": bench.accuracy(bench.table.errors[..., even]),
            "nested": bench.accuracy(bench.table.errors[..., nested]),
            "l1": bench.accuracy(bench.absolute.errors[..., nested]),
            "unshared": bench.accuracy(bench.unshared[..., nested]),
        }
        rows.append((str(count), *(_percent(value) for value in found[count].values())))
    few, all_times = min(10, bench.counts[-1]), bench.counts[-1]
    return Part(
        title="Shared noise",
        text=f"{len(bench.truth)} digits that the built-in model has never seen, by the class under which they are "
        "denoised best, with times evenly spread or in the library's order. With the same noise for all classes a few "
        f"times are enough; with noise of its own for each class several times as many are needed. A logistic "
        f"regression on the pixels of the other digits reaches {_percent(bench.logistic)}. The standard error is "
        f"about {100 * (0.02 * 0.98 / len(bench.truth)) ** 0.5:.1f} points near 98 %.",
        columns=("times", "shared, even", "shared", "shared, l1", "unshared"),
        rows=rows,
        numeric=range(5),
        measures=[
            Measure(name, value, "", bench.asked(asked), "higher")
            for name, value, asked in (
                (f"accuracy, shared noise, {few} times", found[few]["nested"], 0.99),
                (f"shared - unshared, {few} times", found[few]["nested"] - found[few]["unshared"], 0.0),
                (
                    f"shared, {few} times - unshared, {all_times}",
                    found[few]["nested"] - found[all_times]["unshared"],
                    -0.005,
                ),
                ("shared - logistic regression", found[few]["nested"] - bench.logistic, 0.0),
            )
        ],
    )


def pruning(bench: _Bench) -> Part:
    """The better classes alone are asked often; beside a race, and the order of the paper's code."""
    full = bench.table.scores().argmax(1)
    first, total = max(1, bench.times // 4), bench.times
    calls = len(bench.model.spec.classes) * total
    plans: dict[str, dict[str, Any]] = {
        f"{first} times, keep {_KEEP}, then {total}": {"times": (first, total), "keep": (_KEEP, 1)},
        "the same, the paper's sets": {"times": (first, total), "keep": (_KEEP, 1), "order": "reference"},
        f"race to {total}, 4 standard errors": {"times": total, "race": 4.0},
    }
    rows = [
        ("all classes at all times", _percent(float((full == bench.truth).double().mean())), "", f"{calls}", "100 %")
    ]
    found: dict[str, tuple[float, float]] = {}
    for name, plan in plans.items():
        result = classify(bench.model, bench.x, seed=bench.seed, **plan)
        made, same = float(result.calls.double().mean()), float((result.label == full).double().mean())
        found[name] = made / calls, same
        rows.append(
            (name, _percent(result.accuracy(bench.truth).value), _percent(same), f"{made:.0f}", _percent(made / calls))
        )
    share, same = found[next(iter(plans))]
    return Part(
        title="Pruning",
        text="All classes meet a few times, the best of them the others. A race also gives up a class after a round "
        "where it lags behind the best by so many standard errors of their paired difference.",
        columns=("plan", "accuracy", "same label as all", "calls per image", "share"),
        rows=rows,
        numeric=range(1, 5),
        measures=(
            Measure("calls, pruned / all", share, "ratio", bench.asked(0.55)),
            Measure("same labels, pruned and all", same, "", bench.asked(1.0), "higher"),
            Measure("calls, race / all", found[list(plans)[-1]][0], "ratio"),
        ),
    )


def single_times(bench: _Bench) -> Part:
    """Which noise tells the classes apart."""
    table = bench.table
    right = [bench.accuracy(table.errors[..., time : time + 1]) for time in range(bench.times)]
    times = table.times.tolist()
    best = max(range(bench.times), key=right.__getitem__)
    shown = range(bench.times)[:: max(1, bench.times // 10)]
    return Part(
        title="One time alone",
        text="Middle to high noise decides: with little noise every class denoises well, in pure noise none sees the "
        "picture. That is why a first round begins in the middle.",
        columns=("time", "half log-SNR", "accuracy"),
        rows=[(f"{times[k]:.2f}", f"{float(table.half_logsnr[k]):.2f}", _percent(right[k])) for k in shown],
        numeric=range(3),
        measures=(Measure("best single time", times[best], "", note=f"accuracy {_percent(right[best])}"),),
        figure=lines({"shared noise": (times, right)}, "time", "accuracy"),
        caption="Accuracy by the error at one time alone.",
    )


def weights(bench: _Bench) -> Part:
    """What the error of each time counts."""
    table = bench.table
    inside = ((table.times > 0.2) & (table.times < 0.8)).double()
    rules: dict[str, Weight] = {
        "uniform in the noise (the paper)": "uniform",
        "uniform in v": "v",
        "uniform in the data": "x0",
        "the evidence bound": "elbo",
        "0.2 < t < 0.8 alone": inside,
        "noise times SNR": torch.exp(2 * table.half_logsnr),
    }
    found = {name: float((table.scores(rule).argmax(1) == bench.truth).double().mean()) for name, rule in rules.items()}
    uniform, worst = found["uniform in the noise (the paper)"], found["noise times SNR"]
    return Part(
        title="Weights of times",
        text="A wrong weight is ruin: times with little noise hold large weights in the bound, and little about the "
        "class. For a model without error the bound would be right; this one's errors at little noise are larger than "
        "what the classes differ in.",
        columns=("weights", "accuracy"),
        rows=[(name, _percent(value)) for name, value in found.items()],
        numeric=(1,),
        measures=(Measure("uniform - noise times SNR", uniform - worst, "", bench.asked(0.1), "higher"),),
    )


def probabilities(bench: _Bench) -> Part:
    """Are the probabilities honest, and after one number was fitted?"""
    half = len(bench.truth) // 2
    fitting, judging = (_result(bench.table.rows(part)) for part in (slice(0, half), slice(half, None)))
    fit_truth, truth = bench.truth[:half], bench.truth[half:]
    temperature = fit_temperature(fitting, fit_truth)
    rows, losses = [], []
    for name, value in (("1", 1.0), (f"fitted: {temperature:.3g}", temperature)):
        sure = float(judging.probabilities(value).amax(1).mean())
        loss = negative_log_likelihood(judging, truth, value)
        losses.append(loss)
        rows.append((name, _percent(judging.accuracy(truth).value), f"{sure:.3f}", f"{loss:.3f}"))
    return Part(
        title="Probabilities",
        text=f"The temperature was fitted on {half} of the images, the figures are of the others. Uniform weights make "
        "no likelihood, yet the scores times the number of pixels come near one here.",
        columns=("temperature", "accuracy", "mean probability", "-log p, nats"),
        rows=rows,
        numeric=range(1, 4),
        measures=(Measure("-log p at temperature 1", losses[0], "nats", bench.asked(0.15)),),
    )


def _result(table: ErrorTable) -> Classification:
    ones = torch.ones(len(table.times), dtype=torch.float64)
    return judged(
        logits=table.logits(),
        scores=table.scores(),
        rounds=torch.ones(table.errors.shape[:2], dtype=torch.int64),
        table=table,
        weights=ones,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
