"""`bench_compose`: tasks of matching scored by a model, as rows of figures with intervals."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.compositionality.measures import (
    PAIR_CHANCE,
    McNemar,
    chosen_right,
    effect_size,
    mcnemar,
    pair_scores,
    retrieved,
)
from undiffuse.analysis.compositionality.score import TaskErrors, score_task
from undiffuse.analysis.compositionality.task import Task, task_digest
from undiffuse.events import Listener, silent
from undiffuse.metrics.shares import share
from undiffuse.models.model import Model
from undiffuse.tasks.classify.table import Weight
from undiffuse.words import plain_json

COLUMNS = ("task", "group", "measure", "n", "chance", "value", "95 %", "ties")
_RECALL = 5  # candidates, where there are more


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of one task.

    Args:
        task: Its name.
        group: What it asks about.
        measure: "accuracy", "R@5", "text", "image", "group", or the two groups of an effect size.
        n: Items.
        chance: What random scores reach; None for effect sizes, of which it is 0.
        value: The figure.
        low: Lower end of the 95 % interval; None for effect sizes.
        high: Upper end.
        ties: Items whose best candidates tie, which count as wrong.
        hits: Which items are right; empty for effect sizes.
    """

    task: str
    group: str
    measure: str
    n: int
    value: float
    chance: float | None = None
    low: float | None = None
    high: float | None = None
    ties: int = 0
    hits: tuple[bool, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """Return the row as `COLUMNS` has it, shares in per cent."""
        if self.chance is None or self.low is None or self.high is None:
            return (self.task, self.group, self.measure, str(self.n), "0", f"{self.value:+.2f}", "", "")
        ends = f"{100 * self.low:.1f} to {100 * self.high:.1f}"
        figures = (f"{100 * self.chance:.1f}", f"{100 * self.value:.1f}", ends, str(self.ties or ""))
        return (self.task, self.group, self.measure, str(self.n), *figures)


@dataclass(frozen=True)
class ComposeReport:
    """What a model reaches on tasks of matching.

    Args:
        rows: The figures.
        settings: What they depend on; "tasks" has a hash of each task.
        errors: The errors behind them, by task, for learning weights and for other measures; not part of the JSON.
    """

    rows: tuple[Row, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    errors: Mapping[str, TaskErrors] = field(default_factory=dict)

    def table(self) -> list[tuple[str, ...]]:
        """Return cells for people."""
        return [row.cells() for row in self.rows]

    def row(self, task: str, measure: str = "accuracy") -> Row:
        """Return one figure.

        Raises:
            KeyError: There is none of that task and measure.
        """
        for row in self.rows:
            if (row.task, row.measure) == (task, measure):
                return row
        raise KeyError(f"no {measure} of {task}; there are {', '.join(f'{r.measure} of {r.task}' for r in self.rows)}.")

    def compare(self, other: ComposeReport) -> dict[tuple[str, str], McNemar]:
        """Return McNemar's test of each figure that both reports have, on the same items.

        Raises:
            ValueError: A task of the same name asked something else in the other report.
        """
        mine_asked, their_asked = (report.settings.get("tasks", {}) for report in (self, other))
        for name in mine_asked.keys() & their_asked.keys():
            if mine_asked[name] != their_asked[name]:
                raise ValueError(f"{name} has other items in the other report; a paired test needs the same items.")
        theirs = {(row.task, row.measure): row.hits for row in other.rows}
        mine = {(row.task, row.measure): row.hits for row in self.rows if row.hits}
        return {key: mcnemar(hits, theirs[key]) for key, hits in mine.items() if theirs.get(key)}

    def to_json(self) -> dict[str, Any]:
        """Return rows and settings as plain JSON."""
        return plain_json({"rows": [asdict(row) for row in self.rows], "settings": dict(self.settings)})

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> ComposeReport:
        """Read what `to_json` returned.

        Raises:
            ValueError: It is something else.
        """
        try:
            rows = tuple(Row(**{**row, "hits": tuple(row["hits"])}) for row in given["rows"])
            return cls(rows, dict(given["settings"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no report of bench-compose ({error}).") from error

    def csv(self) -> str:
        """Return the rows as CSV, shares as fractions."""
        names = ("task", "group", "measure", "n", "chance", "value", "low", "high", "ties")
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([["" if value is None else value for value in _fields(row, names)] for row in self.rows])
        return file.getvalue()


def _fields(row: Row, names: Sequence[str]) -> list[Any]:
    return [getattr(row, name) for name in names]


def bench_compose(
    model: Model,
    tasks: Sequence[Task],
    *,
    weight: Weight = "uniform",
    interval: str = "wilson",
    listener: Listener = silent,
    keep: Callable[[ComposeReport], Any] | None = None,
    before: ComposeReport | None = None,
    **options: Any,
) -> ComposeReport:
    """Return what a model reaches on tasks of matching.

    A figure depends on the model, the task and the seed, not on the batch size or on the other tasks.

    Args:
        model: Any conditional model of the conditions that the tasks' texts name.
        tasks: See `read_task` and `open_layout`.
        weight: Of the times: a name, `TimeWeights`, or numbers; see `ErrorTable.weights`.
        interval: "wilson" or "normal".
        listener: Hears about progress.
        keep: Called with all rows so far after each task.
        before: An earlier report with these settings; tasks that are in it, item by item, are not scored again.
        options: See `score_task`: times, spacing, loss, contrast, resize, template, seed, target, batch_size.

    Raises:
        ValueError: Two tasks of one name; options or texts that do not fit.
        UndiffuseError: Pictures that are missing, or errors that are not numbers.
    """
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two tasks are called {twice[0]}; rename one.")
    share([True], interval)  # refuses an unknown interval before anything is scored
    settings = {"weight": weight if isinstance(weight, str) else "given", "interval": interval, **options}
    report, known = ComposeReport((), settings), {} if before is None else before.settings.get("tasks", {})
    asked: dict[str, str] = {}
    for task in tasks:
        asked[task.name] = task_digest(task)
        is_known = before is not None and known.get(task.name) == asked[task.name]
        done = tuple(row for row in before.rows if row.task == task.name) if before is not None and is_known else ()
        errors = dict(report.errors)
        if not done:
            errors[task.name] = score_task(model, task, listener=listener, **options)
            done = tuple(rows_of(errors[task.name], weight, interval))
        report = ComposeReport((*report.rows, *done), {**settings, "tasks": dict(asked)}, errors)
        if keep is not None:
            keep(report)
    return report


def rows_of(errors: TaskErrors, weight: Weight = "uniform", interval: str = "wilson") -> list[Row]:
    """Return the figures of a task from the errors on it.

    Raises:
        ValueError: Weights that do not fit, or an unknown interval.
    """
    task, scores = errors.task, errors.scores(weight)
    if task.type == "bias":
        return [row for item, found in zip(task.items, scores, strict=True) for row in _bias(task, item, found)]
    if task.type == "pair":
        hits_of = pair_scores(torch.stack(scores))
        return [_row(task, name, hits, PAIR_CHANCE[name], interval) for name, hits in hits_of.items()]
    filled = _filled([score.flatten() for score in scores])
    answers = torch.tensor(task.answers)
    right, tied = chosen_right(filled, answers)
    counts = filled.isfinite().sum(1).double()
    found = [_row(task, "accuracy", right, float((1 / counts).mean()), interval, int(tied.sum()))]
    if int(counts.min()) > _RECALL:
        hits = retrieved(filled, answers, _RECALL)
        found.append(_row(task, f"R@{_RECALL}", hits, float((_RECALL / counts).mean()), interval))
    return found


def _row(task: Task, measure: str, hits: Tensor, chance: float, interval: str, ties: int = 0) -> Row:
    found = share(hits, interval)
    return Row(
        task=task.name,
        group=task.group,
        measure=measure,
        n=found.n,
        value=found.value,
        chance=chance,
        low=found.low,
        high=found.high,
        ties=ties,
        hits=tuple(hits.tolist()),
    )


def _bias(task: Task, item: Any, scores: Tensor) -> list[Row]:
    """Return the effect size of each two groups."""
    sizes = effect_size(scores, item.image_groups, item.text_groups)
    names = [part.strip() for part in item.tag.split(",")] if item.tag else []
    names = names if len(names) == len(sizes) else [str(i) for i in range(len(sizes))]
    return [
        Row(
            task=task.name,
            group=task.group,
            measure=f"{names[i]} - {names[j]}",
            n=len(scores),
            value=float(sizes[i, j]),
        )
        for i in range(len(sizes))
        for j in range(i + 1, len(sizes))
    ]


def _filled(rows: Sequence[Tensor]) -> Tensor:
    most = max(len(row) for row in rows)
    return torch.stack([torch.cat([row, row.new_full((most - len(row),), torch.nan)]) for row in rows])
