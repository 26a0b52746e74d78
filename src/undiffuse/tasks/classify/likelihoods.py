"""Classification by likelihoods: `log_likelihood` under each candidate, with the same probes and noise for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undiffuse.analysis.likelihood import log_likelihood
from undiffuse.analysis.results import Likelihood
from undiffuse.analysis.subject import Wrap, asked_of
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.models.conditions import Fitted
from undiffuse.tasks.classify.candidates import Candidates, check_apart, read_candidates
from undiffuse.tasks.classify.results import Classification, Reduce, judged
from undiffuse.tasks.classify.table import ErrorTable

_TASK = "classify"


def by_likelihood(
    model: Any,
    x: Tensor,
    candidates: Any,
    options: dict[str, Any],
    *,
    condition: str | None = None,
    template: Any = None,
    cond: dict[str, Any] | None = None,
    wrap: Wrap | None = None,
    dtype: torch.dtype | None = None,
    reduce: Reduce = "max",
    listener: Listener = silent,
) -> Classification:
    """Return the candidate of the highest log-likelihood; probabilities are then the posterior for equal odds.

    Args:
        model, x, candidates, condition, template, cond, wrap, dtype, reduce, listener: As in `classify`.
        options: Of `log_likelihood`; its seed keys probes and noise by item, so they are those of all candidates.

    Raises:
        ValueError: See `log_likelihood` and `read_candidates`.
    """
    asked = asked_of(model, wrap, task="a classification")
    data = torch.as_tensor(x)
    asked.check_shape(data)
    found = read_candidates(asked, candidates, condition=condition, template=template)
    others = asked.conditions(cond, len(data))
    check_apart(found.cond, others)
    listener(Started(_TASK, len(found.distinct), "candidate"))
    parts: list[Likelihood] = []
    for number in found.distinct.tolist():
        own = {name: rows[number : number + 1].expand(len(data), *rows.shape[1:]) for name, rows in found.cond.items()}
        told = Fitted({**others, **own})
        parts.append(log_likelihood(model, data, cond=told, wrap=wrap, dtype=dtype, **options))
        listener(Advanced(_TASK, len(parts)))
    listener(Finished(_TASK))
    return _judged(found, parts, options, reduce)


def _judged(candidates: Candidates, parts: list[Likelihood], options: dict[str, Any], reduce: Reduce) -> Classification:
    first, ones = parts[0], torch.ones(1, dtype=torch.float64)
    log_p = torch.stack([part.log_p.double() for part in parts], 1)[:, candidates.same]
    table = ErrorTable(
        errors=(-log_p / first.dims)[..., None],
        times=ones * (first.t_min or 0.0),
        half_logsnr=ones * torch.inf,
        names=candidates.names,
        classes=candidates.classes,
        class_names=candidates.class_names,
        dims=first.dims,
        target="likelihood",
        loss="nll",
        calls=torch.full((len(log_p),), sum(part.nfe for part in parts), dtype=torch.int64),
    )
    return judged(
        logits=table.logits(),
        scores=table.scores(),
        rounds=torch.ones(log_p.shape, dtype=torch.int64),
        table=table,
        weights=ones,
        reduce=reduce,
        promised=int(table.calls.max()) if table.calls is not None else 0,
        settings=dict(options),
    )
