"""`classify`: the candidate condition under which an item is denoised best wins; candidates drop out in rounds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from undiffuse.analysis.subject import Wrap
from undiffuse.events import Finished, Listener, silent
from undiffuse.tasks.classify.errors import TASK, Ledger, error_options, open_ledger
from undiffuse.tasks.classify.likelihoods import by_likelihood
from undiffuse.tasks.classify.options import Rounds, usual_rounds
from undiffuse.tasks.classify.results import Classification, Reduce, judged
from undiffuse.tasks.classify.table import Weight
from undiffuse.tasks.classify.times import time_sets

Method = Literal["errors", "ode", "elbo"]


def classify(
    model: Any,
    x: Tensor,
    candidates: Any = None,
    *,
    times: int | Sequence[int] | None = None,
    keep: int | Sequence[int] | None = None,
    weight: Weight = "uniform",
    order: Literal["corput", "reference"] = "corput",
    race: float | None = None,
    reduce: Reduce = "max",
    condition: str | None = None,
    template: str | Sequence[str] | None = None,
    cond: dict[str, Any] | None = None,
    wrap: Wrap | None = None,
    dtype: torch.dtype | None = None,
    method: Method = "errors",
    likelihood: dict[str, Any] | None = None,
    listener: Listener = silent,
    **options: Any,
) -> Classification:
    """Return the candidate that fits each item best, by how well the item is denoised under its condition.

        score(c) = -(1/n) sum_i w(t_i) loss(eps_i - eps_hat(alpha_i x + sigma_i eps_i, t_i, c)),

    with the same n pairs (t_i, eps_i) for all candidates. Nothing is trained. All are measured at a few times, the best
    of them at more (`times`, `keep`).

    Args:
        model: A `Model` with conditions, of continuous data or tokens; or a `Denoiser`, whose data are states in model
            units and whose candidates are tensors.
        x: Items in data units (B, *shape); token ids (B, L).
        candidates: None: all classes of the model's label. Names or numbers of classes, prompts, rows of a vector
            condition, or condition -> values; a list among prompts holds several of one class.
        times: Times known after each round, rising, or one number; None: a quarter of 40, then 40.
        keep: Candidates that each round keeps, 1 at last; None: the better half, at most 5, then 1.
        weight: "uniform", "elbo" (a likelihood bound, on times uniform in log-SNR), a target such as "x0" whose squared
            error is meant, `TimeWeights`, or a number for each time.
        order: "corput": each round goes on where the last one ended; "reference": the sets of the paper's code.
        race: After each round also give up what lags behind the best by so many standard errors, such as 4, and stop
            where one is left: costs less, by an amount that the items decide.
        reduce: "max": the best of a class's candidates speaks for it; "mean": the mean of their probabilities.
        condition, template: See `candidates.read_candidates`.
        cond: Further conditions, the same for all candidates, as in `Model.sample`.
        wrap: Applied to the denoiser. Guidance above 1 usually costs accuracy.
        dtype: Of the states; None: float64 for data in float64 under a bare denoiser, else float32.
        method: "errors" as above; "ode" and "elbo": by `log_likelihood`, the same probes and noise for all candidates.
        likelihood: Further options of that, for method ode or elbo.
        listener: Hears about progress.
        options: See `ErrorOptions`: loss, target, spacing, between, antithetic, contrast, seed, batch_size.

    Raises:
        ValueError: Options out of range or that do not go together; data, candidates or conditions that do not fit; a
            model without conditions.
        UndiffuseError: An error is not a number; the message names candidate and time.

    Source: Li et al. 2023, "Your diffusion model is secretly a zero-shot classifier", arXiv:2303.16203, algorithms 1
        and 2. The order of times and the race are ours.
    """
    if reduce not in get_args(Reduce):
        raise ValueError(f"reduce={reduce!r} is unknown; choose 'max' or 'mean'.")
    asked: dict[str, Any] = {"condition": condition, "template": template, "cond": cond, "wrap": wrap, "dtype": dtype}
    if method != "errors":
        unused = {"times": times, "keep": keep, "race": race, "weight": weight} | options
        unused["order"] = None if order == "corput" else order
        settings = _likelihood_settings(method, unused, likelihood or {})
        return by_likelihood(model, x, candidates, settings, reduce=reduce, listener=listener, **asked)
    if likelihood is not None:
        raise ValueError("likelihood holds options of method='ode' or 'elbo'; name one of these, or leave it out.")
    chosen = error_options(options)
    counts = tuple(times) if isinstance(times, Sequence) else times
    kept = tuple(keep) if isinstance(keep, Sequence) else keep
    plan = partial(usual_rounds, times=counts, keep=kept, order=order, race=race)
    total = plan(2).times[-1]  # refuses rounds that are none before anything is encoded
    spacing = "logsnr" if isinstance(weight, str) and weight == "elbo" else "t"
    ledger = open_ledger(model, x, candidates, chosen, times=total, usual_spacing=spacing, listener=listener, **asked)
    known = len(ledger.measure.grid.times) < total  # causal models of tokens know their likelihood by one evaluation
    rounds = Rounds(times=(1,), keep=(1,)) if known else plan(ledger.distinct)
    weights = ledger.table().weights(weight)
    promised = promised_nfe(ledger, rounds)
    survived = _run(ledger, rounds, weights)
    table = ledger.table()
    return judged(
        logits=table.logits(weights, table.null is not None),
        scores=table.scores(weights, table.null is not None),
        rounds=survived[:, ledger.candidates.same],
        table=table,
        weights=weights,
        reduce=reduce,
        promised=promised,
        settings=_settings(ledger, rounds, weight),
    )


def promised_nfe(ledger: Ledger, rounds: Rounds) -> int:
    """Return the most network evaluations for an item; without a race the number that is made."""
    null = ledger.null is not None
    return sum((count + null) * sum(map(ledger.measure.calls, times)) for times, count in _planned(ledger, rounds))


def _planned(ledger: Ledger, rounds: Rounds) -> list[tuple[list[int], int]]:
    """Return the times of each round, and the most candidates that an item has in it."""
    remaining, found = ledger.distinct, []
    added = time_sets(len(ledger.measure.grid.times), rounds.times, rounds.order)
    for number, (times, keep) in enumerate(zip(added, rounds.keep, strict=True)):
        if remaining == 1 and number:
            break
        found.append((times, remaining))
        remaining = min(remaining, keep)
    return found


def _likelihood_settings(method: str, unused: dict[str, Any], likelihood: dict[str, Any]) -> dict[str, Any]:
    """Return the options of `log_likelihood`.

    Raises:
        ValueError: An unknown method, or options of the other one.
    """
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(get_args(Method))}.")
    shared = {name: unused.pop(name) for name in ("seed", "batch_size") if name in unused}
    for name, value in unused.items():
        if value is not None and not (name == "weight" and isinstance(value, str) and value == "uniform"):
            raise ValueError(
                f"{name} does not belong to method={method!r}, whose options are given by likelihood={{...}}."
            )
    return likelihood | shared | {"method": method}


def _settings(ledger: Ledger, rounds: Rounds, weight: Weight) -> dict[str, Any]:
    measure = ledger.measure
    return {
        "times": rounds.times,
        "keep": rounds.keep,
        "order": rounds.order,
        "race": rounds.race,
        "weight": weight if isinstance(weight, str) else "given",
        "loss": measure.loss,
        "target": measure.target,
        "antithetic": measure.options.antithetic,
        "contrast": measure.options.contrast,
        "seed": measure.options.seed,
    }


def _run(ledger: Ledger, rounds: Rounds, weights: Tensor) -> Tensor:
    """Go through the rounds and return in how many each distinct candidate was measured, int64 (B, D)."""
    alive = torch.ones(ledger.items, ledger.distinct, dtype=torch.bool)
    survived = torch.zeros(alive.shape, dtype=torch.int64)
    added = time_sets(len(ledger.measure.grid.times), rounds.times, rounds.order)
    ledger.start(_planned(ledger, rounds))
    for number, (times, keep) in enumerate(zip(added, rounds.keep, strict=True)):
        if number:
            alive &= alive.sum(1, keepdim=True) > 1  # where one is left, nothing is open
        if not bool(alive.any()):
            break
        ledger.measure_all(times, alive)
        survived += alive
        alive = _best(ledger.errors, weights, alive, keep, rounds.race)
    ledger.listener(Finished(TASK))
    return survived


def _best(errors: Tensor, weights: Tensor, alive: Tensor, keep: int, race: float | None) -> Tensor:
    """Return which candidates go on, bool (B, D): the `keep` best of those alive, without those that lag behind."""
    weighted = errors.double() * weights
    means = torch.where(alive, weighted.nanmean(-1), torch.inf)
    place = means.argsort(dim=1, stable=True).argsort(dim=1)  # ties: the first goes on
    going = alive & (place < keep)
    if race is None:
        return going
    best = weighted[torch.arange(len(means)), means.argmin(1)][:, None]
    apart = weighted - best
    known = apart.isnan().logical_not().sum(-1)
    mean = apart.nanmean(-1)
    spread = ((apart - mean[..., None]).square().nansum(-1) / (known - 1).clamp(min=1)).sqrt()
    lags = (mean > race * spread / known.clamp(min=1).sqrt()) & (known > 1)
    return going & ~lags
