"""Two digits side by side: a model told which digit is where, asked of pairs that its training left out."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from undiffuse.analysis.compositionality.bench import ComposeReport, Row, bench_compose
from undiffuse.analysis.compositionality.measures import chosen_right
from undiffuse.analysis.compositionality.task import Task
from undiffuse.analysis.compositionality.two_digits import BagOfWords, two_digit_tasks, two_digits
from undiffuse.models.model import Model
from undiffuse.papers.study import Part
from undiffuse.report.measures import Measure
from undiffuse.training.run import train

_STEPS = 1000  # of batches of 64: some 3 minutes on one core
_ASKED = 90.0  # per cent of orders told right, on seen pairs


def two_digit_study(quick: bool, seed: int) -> Part:
    """Train the model, and ask it and a bag of words about seen and unseen pairs."""
    n = 12 if quick else 100
    dataset = two_digits(500 if quick else 20_000)
    model = train_two_digits(10 if quick else _STEPS, seed, dataset)
    words = BagOfWords(two_digits(300 if quick else 4000))
    tasks = [*two_digit_tasks(n), *two_digit_tasks(n, unseen=True)]
    report = bench_compose(model, tasks, times=4 if quick else 20, seed=seed)
    by_name = {task.name: task for task in tasks}
    rows = [(*row.cells()[:6], row.cells()[6], _by_words(words, by_name[row.task], row)) for row in report.rows]
    return Part(
        title="Two digits",
        text="Pictures of two digits, each bright or dark; a small U-Net is told digit and tone of both places, and is "
        f"trained for {_STEPS} steps on pairs of which every fifth is left out in both orders. Asked on scans that "
        "were held out: which pair, which order, how often the left digit is there (of unseen pairs always once), "
        "which one is dark, and two pictures with two orders. A bag of words (logistic regressions of how often each "
        "word is true) knows no order: its candidates tie there, and half of the ties are counted.",
        columns=("task", "group", "measure", "n", "chance", "model", "95 %", "bag of words"),
        rows=rows,
        numeric=(3, 4, 5, 7),
        measures=_asked(report, rows, quick),
    )


def train_two_digits(steps: int, seed: int, dataset: Any) -> Model:
    """Return a model of two digits, trained from nothing for some minutes."""
    keys = (
        f"train.steps={steps}",
        f"train.seed={seed}",
        f"train.warmup={min(100, steps // 2)}",
        "train.preview_every=0",
        f"train.checkpoint_every={steps}",
        "data.source=two-digits",
    )
    with tempfile.TemporaryDirectory() as folder:
        return train(dataset, "digits", out=Path(folder) / "run", overrides=keys).model


def _by_words(words: BagOfWords, task: Task, row: Row) -> str:
    """Return what the bag of words reaches, ties counted as halves; nothing for measures of pairs."""
    if row.measure != "accuracy":
        return ""
    scores = torch.cat(words.scores(task))
    right, tied = chosen_right(scores, torch.tensor(task.answers))
    best = scores == scores.amax(1, keepdim=True)
    among = best.gather(1, torch.tensor(task.answers)[:, None])[:, 0] & tied
    return f"{100 * float(right.double().mean() + (among / best.sum(1)).mean()):.1f}"


def _asked(report: ComposeReport, rows: list[tuple[str, ...]], quick: bool) -> list[Measure]:
    by_words = next(float(cells[-1]) for cells in rows if cells[0] == "order, seen pairs")
    found = [
        Measure(
            f"order of {kind} pairs",
            100 * report.row(f"order, {kind} pairs").value,
            "%",
            _ASKED if kind == "seen" and not quick else None,
            "higher",
        )
        for kind in ("seen", "unseen")
    ]
    return [*found, Measure("order of seen pairs, bag of words", by_words, "%", 55.0, note="chance is 50 %")]
