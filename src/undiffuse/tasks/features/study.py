"""A probe and everything that says what it is worth: the search, the baselines, few labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from undiffuse.errors import UndiffuseError
from undiffuse.events import Listener, Message, silent
from undiffuse.metrics.shares import share
from undiffuse.models.model import Model
from undiffuse.tasks.features.baselines import RawItems, untrained
from undiffuse.tasks.features.encoder import DEFAULT_TIME, FeatureEncoder, Times, write_time
from undiffuse.tasks.features.few_labels import COUNTS, FewLabels, few_label_curve
from undiffuse.tasks.features.head import Head, Inputs
from undiffuse.tasks.features.items import LabelledItems
from undiffuse.tasks.features.layers import AUTO, Layers
from undiffuse.tasks.features.options import CLOSED, HeadOptions
from undiffuse.tasks.features.probing import Encoder, ProbeClassifier, fit_head, head_inputs, number_labels
from undiffuse.tasks.features.search import ProbeSearch, probe_search
from undiffuse.tasks.features.transferring import number_as

COLUMNS = ("features", "number", "head", "accuracy", "95 %")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One encoder under one head.

    Args:
        name: The features in words.
        features: How many, of a head that reads maps their numbers.
        head: The head.
        accuracy: On the items that judge.
        low, high: Its 95 % interval.
        few: Accuracy by labels of each class; empty where that was not asked for.
    """

    name: str
    features: int
    head: str
    accuracy: float
    low: float
    high: float
    few: tuple[FewLabels, ...] = ()


@dataclass(frozen=True)
class ProbeStudy:
    """What `study_probe` found.

    Args:
        classifier: The probe.
        rows: The probe first, then the baselines.
        search: How block, time and pooling were chosen; None where they were given.
        settings: Encoder, items.
    """

    classifier: ProbeClassifier
    rows: tuple[Judged, ...]
    search: ProbeSearch | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> list[tuple[str, ...]]:
        """Return the accuracies as cells under `COLUMNS`."""
        return [(row.name, str(row.features), row.head, f"{row.accuracy:.2%}", _ends(row)) for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the probe itself as plain JSON."""
        rows = [{**vars(row), "few": [vars(part) for part in row.few]} for row in self.rows]
        found = None if self.search is None else self.search.to_json()
        return {"accuracy": self.rows[0].accuracy, "rows": rows, "search": found, **self.settings}


def study_probe(
    model: Model,
    learned: LabelledItems,
    judged: LabelledItems,
    *,
    layers: Layers = AUTO,
    t: Times | None = None,
    pool: int | None = None,
    draws: int = 1,
    seed: int = 0,
    folds: int = 3,
    few: Sequence[int] = COUNTS,
    baselines: bool = True,
    batch_size: int = 64,
    listener: Listener = silent,
    **options: Any,
) -> ProbeStudy:
    """Choose features by cross-validation on what is learned from, train a probe, and judge it once on the rest.

    Args:
        model: The model.
        learned, judged: Items with labels.
        layers: "auto" searches, within `t` and `pool` where those are given; else see `FeatureEncoder`.
        t, pool: Time and pooling; None: searched with "auto", else 0.1 and 2. Heads that read maps take no pooling.
        draws, seed, batch_size: See `FeatureEncoder`.
        folds: Of the search.
        few: Labels of each class for the few-label curve, of heads on flat features; empty: none.
        baselines: Judge the untrained network and the raw items, too.
        listener: Hears about progress.
        options: Fields of `HeadOptions`. A search uses ridge where the head is a network.

    Raises:
        ValueError: No labels, one class, a label among `judged` that was never learned, or `pool` of a head that reads
            maps.
    """
    settings = HeadOptions(**{"seed": seed} | options)
    if settings.reads_maps and pool is not None:
        raise ValueError(f"pool={pool} has no effect: head={settings.head!r} reads whole maps; leave it out.")
    if learned.labels is None or judged.labels is None:
        raise ValueError("a probe needs items with labels.")
    classes, labels = number_labels(learned.labels)
    test = number_as(judged.labels, classes)
    search = None
    if layers == AUTO:
        search = _search(model, learned, settings, t, pool, folds, draws, seed, batch_size, listener)
        layers, t, pool = search.best.layer, search.best.t, search.best.pool
    chosen: dict[str, Any] = {
        "layers": layers,
        "t": DEFAULT_TIME if t is None else t,
        "pool": None if settings.reads_maps else 2 if pool is None else pool,
        "draws": draws,
        "seed": seed,
        "batch_size": batch_size,
    }
    encoder = FeatureEncoder(model, **chosen)
    named: dict[str, Encoder] = {describe_encoder(encoder): encoder}
    if baselines:
        named |= _baselines(model, chosen, listener)
    parts = (learned, labels, judged, test)
    found = [_judge(name, each, parts, len(classes), settings, few, listener) for name, each in named.items()]
    made = {"encoder": encoder.settings, "learned_from": len(learned), "judged_by": len(judged), "seed": seed}
    classifier = ProbeClassifier(encoder, found[0][1], classes, settings)
    return ProbeStudy(classifier, tuple(row for row, _ in found), search, made | {"classes": list(classes)})


def _judge(
    name: str,
    encoder: Encoder,
    parts: tuple[LabelledItems, Tensor, LabelledItems, Tensor],
    classes: int,
    options: HeadOptions,
    few: Sequence[int],
    listener: Listener,
) -> tuple[Judged, Head]:
    """Train a head on one encoder's features, and judge it; return the figures and the head."""
    learned, labels, judged, test = parts
    inputs = head_inputs(encoder, learned.x, options, learned.index, listener)
    head = fit_head(inputs, labels, classes, options)
    judging = head_inputs(encoder, judged.x, options, judged.index, listener)
    curve: list[FewLabels] = []
    if few and options.head in CLOSED:
        counts = (*few, None)
        curve = few_label_curve((inputs, labels), (judging, test), counts=counts, seed=options.seed, options=options)
    right = share(head.logits(judging).argmax(1) == test)
    row = Judged(
        name=name,
        features=_size(inputs),
        head=options.head,
        accuracy=right.value,
        low=right.low,
        high=right.high,
        few=tuple(curve),
    )
    return row, head


def _ends(row: Judged) -> str:
    return f"{100 * row.low:.1f} to {100 * row.high:.1f}"


def describe_encoder(encoder: FeatureEncoder) -> str:
    """Return an encoder in words: "up1.0, t = 0.1, pool 4"."""
    times = ", ".join(write_time(t) for t in encoder.times)
    pool = "" if encoder.pool is None else f", pool {encoder.pool}"
    return f"{', '.join(encoder.names)}, t = {times}{pool}"


def _search(
    model: Model,
    learned: LabelledItems,
    settings: HeadOptions,
    t: Times | None,
    pool: int | None,
    folds: int,
    draws: int,
    seed: int,
    batch_size: int,
    listener: Listener,
) -> ProbeSearch:
    limits: dict[str, Any] = {}
    if t is not None:
        limits["times"] = tuple(t) if isinstance(t, Sequence) else (t,)
    if pool is not None:
        limits["pools"] = (pool,)
    head = settings.head if settings.head in CLOSED else "ridge"
    return probe_search(
        model,
        learned.x,
        learned.labels,
        index=learned.index,
        folds=folds,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
        head=head,
        listener=listener,
        **limits,
    )


def _baselines(model: Model, chosen: dict[str, Any], listener: Listener) -> dict[str, Encoder]:
    named: dict[str, Encoder] = {}
    try:
        named["the same of the untrained network"] = FeatureEncoder(untrained(model), **chosen)
    except UndiffuseError as error:
        listener(Message("probe", str(error), "warning"))
    if not model.spec.is_discrete:
        named["raw items"] = RawItems()
    return named


def _size(inputs: Inputs) -> int:
    if isinstance(inputs, dict):
        return sum(part[0].numel() for part in inputs.values())
    return int(inputs.shape[1])
