"""`evaluate`: compare a model with real data it has not seen, choosing the metrics by the kind of data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from undiffuse.data import decode_text, open_data, split
from undiffuse.errors import DataError
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.limits import check_counts
from undiffuse.metrics.bench import (
    Bench,
    Findings,
    Judge,
    Samples,
    check_fit,
    proportional_labels,
)
from undiffuse.metrics.categories import TABLE_JUDGES
from undiffuse.metrics.continuous import JUDGES, guidance_series, suitable_judges
from undiffuse.metrics.features import FeatureExtractor
from undiffuse.metrics.items import load_items, to_array
from undiffuse.metrics.pictures import picture
from undiffuse.metrics.reference import Reference, open_reference
from undiffuse.metrics.results import Evaluation, Picture
from undiffuse.metrics.tokens import TOKEN_JUDGES
from undiffuse.models.conditions import Fitted
from undiffuse.noise import permutation
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean

MOST_ITEMS = 10_000
SAMPLES, TOKEN_SAMPLES = 1000, 128
_TASK = "evaluate"
_TEXTS_SHOWN = 4


def evaluate(
    model: Any,
    data: Any,
    *,
    held_out: Any = None,
    holdout: float | None = None,
    n: int | None = None,
    seed: int = 0,
    guidance: Sequence[float] | None = None,
    metrics: str | Sequence[str] = "auto",
    features: str | FeatureExtractor = "auto",
    cache: bool = True,
    reference: str | os.PathLike[str] | Reference | None = None,
    listener: Listener = silent,
    **sampling: Any,
) -> Evaluation:
    """Sample a model and compare the samples, or the model's likelihoods, with real data.

    Images, volumes and signals get Frechet distance, KID, precision and recall, and memorisation at each guidance
    scale, and with labels label agreement; video also the Frechet distance of frames; vectors energy and sliced
    Wasserstein distance; tokens bits per token beside n-grams, and the unigrams, bigrams and plausibility of samples.
    Distances stand beside those of real data v real data at equal size. Where they have few items to go by, as
    `warnings` says, Frechet distances are to be read by their interval.

    Args:
        model: A `Model`: `spec`, `sample(n, seed=, cond=, guidance=, ...)` in data units; for tokens `elbo(tokens)`,
            and where the data have conditions that the model knows `elbo(tokens, cond=...)`.
        data: The source the model was trained on, or a data set.
        held_out: A source or data set the model was not trained on; None splits it off `data`, as training does.
        holdout: Share (below 1) or number of items to split off, as in the training run; None: the data's own default.
        n: Number of samples per scale; None means 1000, for tokens 128.
        seed: Seed of the samples, of the subsets and of the judges.
        guidance: Guidance scales; None means 1 alone (unguided). Only for models with conditions.
        metrics: "auto", or names among `JUDGES` (continuous data) or `TOKEN_JUDGES`.
        features: What continuous data are compared in: a name as in `extractors.make_extractor`, or a fitted extractor.
        cache: Keep features of real items by networks in the cache folder (see `undiffuse.cache`).
        reference: Texts: a model that reads from left to right and judges samples ("generative"), which is added to
            what "auto" means: a folder (see `undiffuse.metrics.reference`).
        listener: Receives progress events, those of the sampling included.
        sampling: Passed to `model.sample`: solver, steps, ...

    Raises:
        DataError: The data does not fit the model, or too little of it is held out.
        ValueError: Unknown metrics, features that do not suit the data, scales for a model without conditions, n small.
    """
    train, unseen = _two_sets(model.spec, data, held_out, holdout)
    check_fit(model.spec, train.spec)
    bench = _bench(
        model,
        train,
        unseen,
        n=n,
        seed=seed,
        sampling={"listener": listener, **sampling},
        extractor=features,
        cache=cache,
        device=str(getattr(model, "device", "cpu")),
        exact=getattr(getattr(model, "module", None), "causal", False),
        reference=_reference(reference, model),
    )
    scales = _scales(guidance, bench)
    table = judges_of(model.spec)
    judges = [table[name](bench) for name in _chosen(metrics, table, bench)]
    drawn = [Samples(bench, scale) for scale in scales]
    found = _judge_all(judges, drawn, listener)
    rows = tuple(row for findings in found for row in findings.rows)
    return Evaluation(
        kind=model.spec.kind,
        n=bench.n,
        seed=seed,
        rows=rows,
        series=_series_at_first_scale(found) | guidance_series(rows),
        texts=_texts(bench, drawn[0]) if model.spec.is_discrete else (),
        pictures=_pictures(bench, drawn) if model.spec.kind == "image" else {},
        settings=dict(sampling),
        warnings=tuple(dict.fromkeys(line for findings in found for line in findings.warnings)),
    )


def _reference(given: Any, model: Any) -> Reference | None:
    if given is None:
        return None
    if not model.spec.is_discrete or model.spec.columns:
        raise ValueError(f"reference judges texts; this model makes {model.spec.noun}. Leave it out.")
    return open_reference(given, getattr(model, "device", "cpu")) if isinstance(given, (str, os.PathLike)) else given


def judges_of(spec: DataSpec) -> dict[str, Callable[[Bench], Judge]]:
    """Return the judges that there are for data of a kind, by name."""
    if spec.columns:
        return TABLE_JUDGES
    return TOKEN_JUDGES if spec.is_discrete else JUDGES


def _two_sets(spec: DataSpec, data: Any, held_out: Any, holdout: float | None) -> tuple[Any, Any]:
    if isinstance(data, (str, os.PathLike)):
        data = open_data(os.fspath(data), spec=spec)
    if isinstance(held_out, (str, os.PathLike)):
        held_out = open_data(os.fspath(held_out), spec=spec)
    if held_out is None:
        data, held_out = split(data, holdout)
    if min(len(data), len(held_out)) < 2:
        raise DataError(
            f"{len(data)} training and {len(held_out)} held-out items; an evaluation needs at least 2 of each: "
            f"give more data or a larger holdout."
        )
    return data, held_out


def _bench(
    model: Any, train: Any, unseen: Any, *, n: int | None, seed: int, sampling: dict[str, Any], **rest: Any
) -> Bench:
    count = n if n is not None else (TOKEN_SAMPLES if model.spec.is_discrete and not model.spec.columns else SAMPLES)
    check_counts(n=count)
    if count < 2:
        raise ValueError(f"n={count}; an evaluation needs at least 2 samples, and hundreds to mean something.")
    real = load_items(train, limit=MOST_ITEMS, seed=seed)
    cond = conditions_to_ask(model.spec, train, real.labels, count, seed)
    labels = cond["label"].numpy() if "label" in cond else None

    def draw(scale: float | None) -> NDArray[Any]:
        return to_array(model.sample(count, seed=seed, cond=cond or None, guidance=scale, **sampling))

    return Bench(
        spec=model.spec,
        train=real,
        held_out=load_items(
            unseen,
            limit=MOST_ITEMS,
            seed=seed,
            conditions=told_conditions(model.spec) if model.spec.is_discrete else (),
        ),
        labels=labels,
        conditional=bool(cond),
        draw=draw,
        elbo=getattr(model, "elbo", None),
        n=count,
        seed=seed,
        **rest,
    )


def told_conditions(spec: DataSpec) -> tuple[str, ...]:
    """Return the names of the conditions that samples are asked for with."""
    return tuple(name for name in spec.conditions if name not in spec.kept_conditions)


def conditions_to_ask(
    spec: DataSpec, train: Any, labels: NDArray[np.int64] | None, n: int, seed: int
) -> dict[str, torch.Tensor]:
    """Return the conditions of `n` samples: those of real training items, so that samples and items compare.

    Labels alone are asked for in their proportions. Captions, numbers and whatever else a model knows come with the
    label of their item, from a choice of items by `seed`. Labels rise.
    """
    told = told_conditions(spec)
    if not [name for name in told if name in spec.cond]:
        known = labels is not None and bool(spec.classes)
        return {"label": torch.from_numpy(proportional_labels(labels, n))} if known and labels is not None else {}
    rows = permutation(seed, 0, len(train))[torch.arange(n) % len(train)]
    found = train.batch(rows)["cond"]
    order = torch.argsort(found["label"], stable=True) if "label" in found else torch.arange(n)
    return Fitted((name, found[name][order].cpu()) for name in told if name in found)


def _scales(guidance: Sequence[float] | None, bench: Bench) -> tuple[float | None, ...]:
    if bench.conditional:
        return tuple(guidance) if guidance else (1.0,)
    if guidance is not None:
        raise ValueError("guidance needs a model and data with labels or other conditions; leave guidance out.")
    return (None,)


def _chosen(metrics: str | Sequence[str], table: dict[str, Callable[[Bench], Judge]], bench: Bench) -> tuple[str, ...]:
    if metrics == "auto":
        judged = tuple(name for name in table if name != "generative" or bench.reference is not None)
        return judged if bench.spec.is_discrete else suitable_judges(bench)
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for name in names:
        if name not in table:
            known = f"choose among {', '.join(table)}.{did_you_mean(name, table)}"
            raise ValueError(f"metric {name!r} is unknown for {bench.spec.noun}; {known}")
    return names


def _judge_all(judges: list[Judge], drawn: list[Samples], listener: Listener) -> list[Findings]:
    """Return the findings of every judge at every scale, scales outermost."""
    found: list[Findings] = []
    listener(Started(_TASK, total=len(judges) * len(drawn), unit="metric"))
    for samples in drawn:
        for judge in judges:
            found.append(judge(samples))
            listener(Advanced(_TASK, done=len(found)))
    listener(Finished(_TASK))
    return found


def _series_at_first_scale(found: list[Findings]) -> dict[str, dict[str, list[float]]]:
    return {name: columns for findings in reversed(found) for name, columns in findings.series.items()}


def _texts(bench: Bench, samples: Samples) -> tuple[str, ...]:
    """Return the first samples as text, where any were drawn."""
    shown = samples.x[:_TEXTS_SHOWN] if samples.drawn else ()
    return tuple(decode_text(torch.from_numpy(row), bench.spec) for row in shown)


def _pictures(bench: Bench, drawn: list[Samples]) -> dict[str, Picture]:
    """Return one grid per guidance scale and one of real images, by the title to show over it."""
    bounds = bench.spec.range
    titles = ["samples" if samples.scale is None else f"samples, guidance {samples.scale:g}" for samples in drawn]
    grids = {title: picture(samples.x, bench.labels, bounds) for title, samples in zip(titles, drawn, strict=True)}
    return grids | {"real training data": picture(bench.train.x, bench.train.labels, bounds)}
