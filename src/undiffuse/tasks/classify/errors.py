"""`error_table`: the errors of all candidates at all times; and what it shares with `classify`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.subject import Asked, Subject, Wrap, asked_of, subject_of
from undiffuse.analysis.tokens import encode_tokens
from undiffuse.errors import UndiffuseError
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.models.conditions import Fitted
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.tasks.classify.candidates import Candidates, PairConditions, read_candidates
from undiffuse.tasks.classify.measure import GaussianMeasure, Measure, TokenMeasure
from undiffuse.tasks.classify.options import ErrorOptions
from undiffuse.tasks.classify.table import ErrorTable
from undiffuse.tasks.classify.times import gaussian_grid

TASK = "classify"


def error_table(
    model: Any,
    x: Tensor,
    candidates: Any = None,
    *,
    times: int | Sequence[float] | Tensor = 40,
    condition: str | None = None,
    template: str | Sequence[str] | None = None,
    cond: dict[str, Any] | None = None,
    wrap: Wrap | None = None,
    dtype: torch.dtype | None = None,
    listener: Listener = silent,
    **options: Any,
) -> ErrorTable:
    """Return the error of every candidate at every time, with the same noise for all items and candidates.

    Args:
        model: A `Model`; or a `Denoiser`, whose data are states in model units and whose candidates are tensors.
        x: Items in data units (B, *shape); token ids (B, L).
        candidates, condition, template: Conditions that compete; see `candidates.read_candidates`.
        times: How many, in the middle of equal cells; or the times themselves, rising. Of tokens: draws of the bound.
        cond: Further conditions, the same for all candidates, as in `Model.sample`: one value, or one per item.
        wrap: Applied to the denoiser, such as guidance.
        dtype: Of the states; None: float64 for data in float64 under a bare denoiser, else float32.
        listener: Hears about progress.
        options: See `ErrorOptions`: loss, target, spacing, between, antithetic, contrast, seed, batch_size.

    Raises:
        ValueError: Options out of range; data, candidates or conditions that do not fit; a model without conditions.
        UndiffuseError: An error is not a number; the message names candidate and time.
    """
    ledger = open_ledger(
        model,
        x,
        candidates,
        error_options(options),
        times=times,
        condition=condition,
        template=template,
        cond=cond,
        wrap=wrap,
        dtype=dtype,
        listener=listener,
    )
    ledger.start()
    ledger.measure_all(range(len(ledger.measure.grid.times)))
    listener(Finished(TASK))
    return ledger.table()


def error_options(given: dict[str, Any]) -> ErrorOptions:
    """Return the options, or say which one there is not.

    Raises:
        ValueError: An unknown option, or one out of range.
    """
    try:
        return ErrorOptions(**given)
    except TypeError as error:
        raise ValueError(f"unknown option of classification: {error}.") from error


class Ledger:
    """Errors of B items under D distinct candidates, filled in time by time.

    Args:
        measure: Asked for them.
        candidates: Named where something is wrong, and expanded to in the table.
        listener: Hears about progress.
    """

    def __init__(self, measure: Measure, candidates: Candidates, listener: Listener) -> None:
        self.measure, self.candidates, self.listener = measure, candidates, listener
        self.items, self.distinct = len(measure.x), len(candidates.distinct)
        shape = (self.items, self.distinct, len(measure.grid.times))
        self.errors = torch.full(shape, torch.nan, dtype=measure.dtype)
        self.null = self.errors[:, 0].clone() if measure.conditions.null else None
        self.calls = torch.zeros(self.items, dtype=torch.int64)
        self.done = 0

    def start(self, rounds: Sequence[tuple[Sequence[int], int]] | None = None) -> None:
        """Tell the listener how many questions there will be: of rounds of times with so many candidates each; all."""
        rounds = rounds or [(range(len(self.measure.grid.times)), self.distinct)]
        each = sum(len(times) * (candidates + (self.null is not None)) for times, candidates in rounds)
        self.listener(Started(TASK, self.items * each, "question"))

    def measure_all(self, times: Sequence[int], alive: Tensor | None = None) -> None:
        """Measure the candidates that are alive, bool (B, D), at some times; None: all.

        Raises:
            UndiffuseError: An error is not a number.
        """
        alive = torch.ones(self.items, self.distinct, dtype=torch.bool) if alive is None else alive
        items, numbers = alive.nonzero().unbind(1)
        asked = alive.any(1)
        for time in times:
            found = self._asked(time, items, self.candidates.distinct[numbers])
            self._check(found, time, numbers)
            self.errors[items, numbers, time] = found
            if self.null is not None:
                rows = asked.nonzero()[:, 0]
                self.null[rows, time] = self._asked(time, rows, torch.full_like(rows, len(self.candidates)))
            count = alive.sum(1) + (asked if self.null is not None else 0)
            self.calls += self.measure.calls(time) * count

    def _asked(self, time: int, items: Tensor, candidates: Tensor) -> Tensor:
        """Return the errors of pairs (R,) at a time, batch by batch."""
        size = self.measure.options.batch_size
        found = []
        for rows, columns in zip(items.split(size), candidates.split(size), strict=True):
            found.append(self.measure.errors(time, rows, columns).cpu())
            self.done += len(rows)
            self.listener(Advanced(TASK, self.done))
        return torch.cat(found)

    def table(self) -> ErrorTable:
        """Return what is known so far, with a row for each candidate."""
        measure, candidates = self.measure, self.candidates
        return ErrorTable(
            errors=self.errors[:, candidates.same],
            times=measure.grid.times,
            half_logsnr=measure.grid.half_logsnr,
            names=candidates.names,
            classes=candidates.classes,
            class_names=candidates.class_names,
            dims=measure.dims,
            target=measure.target,
            loss=measure.loss,
            null=self.null,
            widths=measure.grid.widths,
            forms=measure.grid.forms,
            calls=self.calls.clone(),
        )

    def _check(self, found: Tensor, time: int, numbers: Tensor) -> None:
        tokens = self.measure.target == "tokens"  # an impossible token has an infinite error, and rightly
        wrong = found.isnan() if tokens else ~found.isfinite()
        if bool(wrong.any()):
            name = self.candidates.names[int(self.candidates.distinct[numbers[wrong][0]])]
            t = float(self.measure.grid.times[time])
            raise UndiffuseError(
                f"the error of candidate {name!r} at t={t:.4g} is not a number; look at the model's weights, its dtype "
                "and the data's range."
            )


def open_ledger(
    model: Any,
    x: Tensor,
    candidates: Any,
    options: ErrorOptions,
    *,
    times: int | Sequence[float] | Tensor,
    condition: str | None = None,
    template: str | Sequence[str] | None = None,
    cond: dict[str, Any] | None = None,
    wrap: Wrap | None = None,
    dtype: torch.dtype | None = None,
    usual_spacing: str = "t",
    listener: Listener = silent,
) -> Ledger:
    """Return an empty ledger of what is asked; arguments as of `error_table`.

    Args:
        usual_spacing: What spacing "auto" means.
    """
    asked: Asked
    if isinstance(getattr(model, "process", None), CategoricalProcess):
        asked = asked_of(model, wrap, task="a classification")
        states = encode_tokens(asked, torch.as_tensor(x), options.batch_size)
    else:
        asked = subject_of(model, wrap, task="a classification")
        states = _states(asked, torch.as_tensor(x), options, dtype)
    found = read_candidates(asked, candidates, condition=condition, template=template)
    others = asked.conditions(_spread(cond, len(states)) if asked.model is None else cond, len(states))
    conditions = PairConditions(asked.denoiser, found.cond, others, options.contrast)
    spacing = usual_spacing if options.spacing == "auto" else options.spacing
    return Ledger(_measure(asked, states, conditions, options, times, spacing), found, listener)


def _measure(
    asked: Asked,
    states: Tensor,
    conditions: PairConditions,
    options: ErrorOptions,
    times: int | Sequence[float] | Tensor,
    spacing: str,
) -> Measure:
    if not isinstance(asked, Subject):
        refused = {"loss": "l2", "target": "eps", "spacing": "auto", "between": None, "antithetic": False}
        wrong = [name for name, usual in refused.items() if getattr(options, name) != usual]
        if wrong or not isinstance(times, int):
            what = wrong[0] if wrong else "times"
            raise ValueError(
                f"{what} is for continuous data; tokens are judged by draws of their evidence bound: leave it out, and "
                "give times as a number."
            )
        if times < 1:
            raise ValueError(f"{times} times: at least 1 is needed.")
        return TokenMeasure(asked.denoiser, states, conditions, options, times)
    grid = gaussian_grid(asked.process, times, spacing, options.between)
    return GaussianMeasure(asked.denoiser, states, conditions, options, grid)


def _states(subject: Subject, x: Tensor, options: ErrorOptions, dtype: torch.dtype | None) -> Tensor:
    data = subject.check(x)
    keep = data.dtype == torch.float64 and subject.model is None
    encoded = torch.cat([subject.encode(rows) for rows in data.split(options.batch_size)])
    return encoded.to(dtype or (torch.float64 if keep else torch.float32))


def _spread(cond: dict[str, Any] | None, count: int) -> Fitted:
    """Return conditions of a bare denoiser with a row per item; one row is for all."""
    rows = {name: torch.as_tensor(value) for name, value in (cond or {}).items()}
    return Fitted(
        (name, value.expand(count, *value.shape[1:]) if value.ndim and len(value) == 1 else value)
        for name, value in rows.items()
    )
