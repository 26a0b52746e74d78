"""Errors of every picture of a task under each of its texts, at every time, with the same noise for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, get_args

import torch
from torch import Tensor

from undiffuse.analysis.compositionality.pictures import load_pictures
from undiffuse.analysis.compositionality.task import Item, Task, Text, text_key
from undiffuse.analysis.subject import Wrap
from undiffuse.errors import UndiffuseError
from undiffuse.events import Advanced, Event, Finished, Listener, Started, silent
from undiffuse.images.fit import Resize
from undiffuse.limits import check_counts
from undiffuse.models.model import Model
from undiffuse.process.warp import TimeWarp
from undiffuse.tasks.classify.errors import error_options, open_ledger
from undiffuse.tasks.classify.options import ErrorOptions
from undiffuse.tasks.classify.table import ErrorTable, Weight

TASK = "match"
SPACINGS = ("t", "logsnr", "shifted", "later", "logit-normal")
_CHUNK = 64  # items whose pictures are held at once
_SHIFT = 3.0  # of the times of SD3
Measured = tuple[list[Tensor], list[Tensor], ErrorTable]


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskErrors:
    """What a model's errors on a task are.

    Args:
        task: The task.
        errors: Of each item (I, T, n): pictures, texts, times.
        null: Of each item the errors without a text, (I, n); None where they were not measured.
        frame: A table without items, which knows the times, what was measured, and how weights are meant.
    """

    task: Task
    errors: tuple[Tensor, ...]
    null: tuple[Tensor, ...] | None
    frame: ErrorTable

    @property
    def half_logsnr(self) -> Tensor:
        """log(alpha / sigma) of the times, float64 (n,)."""
        return self.frame.half_logsnr

    def scores(self, weight: Weight = "uniform") -> list[Tensor]:
        """Return the scores (I, T) of each item: minus the weighted mean error, less that without a text if measured.

        Raises:
            ValueError: Weights that do not fit.
            UndiffuseError: A score is not a number; the message names the item.
        """
        weights = self.frame.weights(weight)
        found = []
        for number, errors in enumerate(self.errors):
            apart = errors.double() if self.null is None else errors.double() - self.null[number].double()[:, None]
            found.append(-(apart * weights).mean(-1))
            if not bool(found[-1].isfinite().all()):
                raise UndiffuseError(
                    f"a score of item {number} of {self.task.name} is not a number; look at its picture."
                )
        return found

    def choices(self) -> tuple[Tensor, Tensor]:
        """Return the errors of the candidates (N, C, n), float64, NaN where an item has fewer, and the answers (N,).

        Of pairs each picture is a choice between its two texts.

        Raises:
            ValueError: The task is one of bias, which has no answers.
        """
        if self.task.type == "bias":
            raise ValueError(f"{self.task.name} asks about bias, which has no right answers.")
        rows, answers = [], []
        for number, (item, errors) in enumerate(zip(self.task.items, self.errors, strict=True)):
            shown = errors.double() if self.null is None else errors.double() - self.null[number].double()[:, None]
            if item.type == "pair":
                rows += [shown[0], shown[1]]
                answers += [0, 1]
            else:
                rows.append(shown[0] if item.type == "image_to_text" else shown[:, 0])
                answers.append(item.answer)
        most = max(len(row) for row in rows)
        filled = [torch.cat([row, row.new_full((most - len(row), row.shape[1]), torch.nan)]) for row in rows]
        return torch.stack(filled), torch.tensor(answers)

    def take(self, positions: Sequence[int]) -> TaskErrors:
        """Return the errors of some items."""
        null = None if self.null is None else tuple(self.null[i] for i in positions)
        return replace(self, task=self.task.take(positions), errors=tuple(self.errors[i] for i in positions), null=null)


def score_task(
    model: Model,
    task: Task,
    *,
    times: int = 30,
    spacing: str = "t",
    contrast: bool | None = None,
    resize: Resize = "crop",
    template: str | None = None,
    wrap: Wrap | None = None,
    listener: Listener = silent,
    **options: Any,
) -> TaskErrors:
    """Return the errors of a task's pictures under its texts.

    Args:
        model: What is tested.
        task: The items.
        times: How many.
        spacing: Where they lie; see `spaced_times`.
        contrast: Subtract the error without a text. That is what makes pictures comparable; it changes no choice among
            texts. None: where pictures are compared ("text_to_image", "pair", "bias").
        resize: How pictures of another size are made to fit: "crop", "pad" or "stretch".
        template: What captions are made of the texts with, "a photo of a {}.".
        wrap: Applied to the denoiser, such as guidance.
        listener: Hears about progress.
        options: See `undiffuse.tasks.classify.options.ErrorOptions`: loss, target, seed, batch_size, ...

    Raises:
        ValueError: Options out of range, texts or conditions that the model does not know.
        DataError: A picture is missing or damaged.
        UndiffuseError: An error is not a number; the message names item, candidate and time.
    """
    if resize not in get_args(Resize):
        raise ValueError(f"resize={resize!r} is unknown; use {', '.join(get_args(Resize))}.")
    wanted = task.type != "image_to_text" if contrast is None else contrast
    places, more = spaced_times(spacing, times)
    chosen = error_options({**more, **options, "contrast": wanted})
    scorer = _Scorer(model, task, places, chosen, resize, template, wrap)
    errors, null = [], []
    listener(Started(TASK, len(task), "item"))
    for low in range(0, len(task), _CHUNK):
        part, free, table = scorer.chunk(low, _within(listener, low, min(_CHUNK, len(task) - low)))
        errors += part
        null += free
        listener(Advanced(TASK, min(low + _CHUNK, len(task))))
    listener(Finished(TASK))
    return TaskErrors(
        task=task, errors=tuple(errors), null=tuple(null) if wanted else None, frame=table.rows(slice(0, 0))
    )


def _within(listener: Listener, low: int, count: int) -> Listener:
    """Return a listener that tells how many of `count` items from number `low` the questions so far are worth."""
    total = 1

    def hear(event: Event) -> None:
        nonlocal total
        if isinstance(event, Started):
            total = max(1, event.total)
        elif isinstance(event, Advanced):
            listener(Advanced(TASK, low + count * event.done // total))

    return hear


@dataclass(frozen=True)
class _Scorer:
    """What is asked of a model about the items of a task; see `score_task`."""

    model: Model
    task: Task
    times: int | list[float]
    options: ErrorOptions
    resize: Resize
    template: str | None
    wrap: Wrap | None

    def chunk(self, low: int, listener: Listener) -> Measured:
        """Return the errors of a chunk of items; where one is not a number, find the item that it belongs to.

        Raises:
            UndiffuseError: An error is not a number.
        """
        items = self.task.items[low : low + _CHUNK]
        try:
            return self.errors(items, listener)
        except UndiffuseError as error:
            if "is not a number" not in str(error):
                raise
            for number, item in enumerate(items, low):
                try:
                    self.errors([item])
                except UndiffuseError as own:
                    raise UndiffuseError(f"item {number} of {self.task.name}: {own}") from own
            raise

    def errors(self, items: Sequence[Item], listener: Listener = silent) -> Measured:
        """Return errors and errors without a text of each item, and their table; pairs of an item alone are asked."""
        flat = [image for item in items for image in item.images]
        texts = {text_key(text): text for item in items for text in item.texts}
        numbers = {key: number for number, key in enumerate(texts)}
        ledger = open_ledger(
            self.model,
            load_pictures(self.task, flat, self.model.spec, self.resize),
            _candidates(list(texts.values())),
            self.options,
            times=self.times,
            template=self.template,
            wrap=self.wrap,
            listener=listener,
        )
        columns = [[numbers[text_key(text)] for text in item.texts] for item in items]
        rows = _slices([len(item.images) for item in items])
        alive = torch.zeros(len(flat), ledger.distinct, dtype=torch.bool)
        for row, column in zip(rows, columns, strict=True):
            alive[row, ledger.candidates.same[column].unique()] = True
        count = len(ledger.measure.grid.times)
        ledger.listener(Started(TASK, count * (int(alive.sum()) + (ledger.null is not None) * len(flat)), "question"))
        ledger.measure_all(range(count), alive)
        table = ledger.table()
        found = [table.errors[row][:, column] for row, column in zip(rows, columns, strict=True)]
        return found, [] if table.null is None else [table.null[row] for row in rows], table


def spaced_times(spacing: str, n: int) -> tuple[int | list[float], dict[str, Any]]:
    """Return n times by the name of their spacing for `error_table`, and options that belong to it.

    t              in the middle of n equal cells of t; of tokens n draws of the bound
    logsnr         likewise of log-SNR
    shifted        sigma = 3 u / (1 + 2 u) for u = 0.023 + 0.033 k and n = 30: the steps of SD3, which crowd at high
                   noise, as the published harness takes them; of a flow on a straight line, whose sigma is t
    later          uniform in [0.5, 1]
    logit-normal   at the quantiles of sigmoid(N(0, 1)), which SD3 was trained on; evenly spread, so none comes twice

    Raises:
        ValueError: An unknown spacing, or `n` below 1.
    """
    check_counts(times=n)
    if spacing == "t":
        return n, {}
    if spacing == "logsnr":
        return n, {"spacing": "logsnr"}
    if spacing == "later":
        return n, {"spacing": "t", "between": (0.5, 1.0)}
    cells = torch.arange(n, dtype=torch.float64)
    if spacing == "shifted":
        return TimeWarp(_SHIFT)((0.69 + 0.99 * cells) / n).tolist(), {}
    if spacing == "logit-normal":
        return torch.special.ndtri((cells + 0.5) / n).sigmoid().tolist(), {}
    raise ValueError(f"spacing={spacing!r} is unknown; use {', '.join(SPACINGS)}.")


def _candidates(texts: list[Text]) -> Any:
    """Return texts as `read_candidates` takes them.

    Raises:
        ValueError: Some are captions and others conditions, or they name different conditions.
    """
    if all(isinstance(text, str) for text in texts):
        return texts
    keys = {tuple(sorted(text)) if not isinstance(text, str) else () for text in texts}
    if len(keys) > 1:
        raise ValueError("the texts of a task must all be captions, or all name the same conditions.")
    return {key: [text[key] for text in texts] for key in next(iter(keys))}  # type: ignore[index]


def _slices(counts: Sequence[int]) -> list[slice]:
    """Return where parts of some lengths lie, one after the other."""
    ends = list(accumulate(counts))
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
