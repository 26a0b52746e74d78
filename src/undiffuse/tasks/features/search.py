"""The best (block, time, pooling) for a task, by cross-validation on the training items alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from undiffuse.data.holdout import rank_in_class
from undiffuse.events import Advanced, Finished, Listener, Message, Started, silent
from undiffuse.noise import permutation
from undiffuse.tasks.features.encoder import FeatureEncoder
from undiffuse.tasks.features.folds import make_folds
from undiffuse.tasks.features.layers import ALL, Layers
from undiffuse.tasks.features.options import HeadOptions
from undiffuse.tasks.features.probing import accuracy, check_features, fit_head, number_labels

TIMES = (0.02, 0.05, 0.1, 0.2, 0.3)
POOLS = (1, 2, 4)
_MOST = 1000  # items that judge: enough for a standard error of about 1 % where accuracy is 90 %


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One choice, and how it did.

    Args:
        layer, t, pool: The choice.
        features: How many features it gives.
        accuracy: Mean over the folds, each judged by a head that has not seen it.
        error: Standard error of that mean, over the folds.
    """

    layer: str
    t: float
    pool: int
    features: int
    accuracy: float
    error: float


@dataclass(frozen=True)
class ProbeSearch:
    """What a search found.

    Args:
        rows: All candidates, the best first; of equals the one with fewer features.
        settings: Head, folds, items.
    """

    rows: tuple[Candidate, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Candidate:
        """The candidate with the highest accuracy."""
        return self.rows[0]

    columns = ("layer", "t", "pool", "features", "accuracy", "error")

    def table(self, most: int | None = None) -> list[tuple[str, ...]]:
        """Return the best rows as cells."""
        return [
            (row.layer, f"{row.t:g}", str(row.pool), str(row.features), f"{row.accuracy:.2%}", f"{row.error:.2%}")
            for row in self.rows[:most]
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        return {"best": vars(self.best), "rows": [vars(row) for row in self.rows], **self.settings}


def probe_search(
    model: Any,
    x: Tensor,
    y: Any,
    *,
    layers: Layers = ALL,
    times: Sequence[float] = TIMES,
    pools: Sequence[int] = POOLS,
    folds: int = 3,
    n: int | None = _MOST,
    draws: int = 1,
    index: Tensor | None = None,
    batch_size: int = 64,
    seed: int = 0,
    listener: Listener = silent,
    **options: Any,
) -> ProbeSearch:
    """Try every block, time and pooling by cross-validation, and rank them.

    Give training items only: what judges the final classifier must not choose its features. A time costs one call of
    the network per item and draw for all blocks and poolings; the heads are cheap beside it.

    Args:
        model: A model or denoiser.
        x: Training items in model units (n, *).
        y: Their labels (n,).
        layers: Blocks to try; see `layers_of`.
        times, pools: Times and poolings to try. A pooling above a map's side is that side, and tried once.
        folds: Folds; fewer where a class has fewer items.
        n: Use so many items, chosen by the seed, and more only to have `folds` of each class; None: all.
        draws: Draws of noise per item.
        index: Numbers of the items, which key their noise.
        batch_size: Items computed at once.
        seed: Of noise, folds and choice of items.
        listener: Hears about progress.
        options: Fields of `HeadOptions`; heads that read maps are refused.

    Raises:
        ValueError: One class only, a class with one item, nothing to try, or a head that reads maps.
    """
    settings = HeadOptions(**{"seed": seed} | options)
    if settings.reads_maps:
        raise ValueError(f"head={settings.head!r} reads maps, which have no pooling; search with ridge or logistic.")
    if not times or not pools:
        raise ValueError(f"times={tuple(times)} and pools={tuple(pools)}; give at least one of each.")
    classes, labels = number_labels(y)
    if len(labels) != len(x):
        raise ValueError(f"there are {len(x)} items and {len(labels)} labels; give one label for each item.")
    rows = _choose(labels, n, folds, seed)
    number = (torch.arange(len(x)) if index is None else index)[rows]
    fold = make_folds(labels[rows], folds, seed)
    found: list[Candidate] = []
    listener(Started("search", len(times), "time"))
    for done, t in enumerate(times, 1):
        listener(Message("search", f"t = {t:g}"))
        encoder = FeatureEncoder(model, layers, t, draws=draws, seed=seed, batch_size=batch_size)
        given = encoder.by_pool(x[rows], sorted(set(pools)), index=number, listener=listener)
        for (layer, pool), features in _different(given, encoder.shapes(x)).items():
            scores = _judge(features, labels[rows], fold, len(classes), settings)
            found.append(_candidate(layer, float(t), pool, features, scores))
        listener(Advanced("search", done, {"best accuracy": max(row.accuracy for row in found)}))
    listener(Finished("search"))
    ranked = sorted(found, key=lambda row: (-row.accuracy, row.features))
    made = {"head": settings.head, "folds": int(fold.max()) + 1, "items": len(rows), "seed": seed, "draws": draws}
    return ProbeSearch(tuple(ranked), made)


def _choose(labels: Tensor, n: int | None, folds: int, seed: int) -> Tensor:
    """Return the positions of `n` items, in order, and of some more of classes that have too few of them for folds."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[permutation(seed, 0, len(labels))[:n]] = True
    few = torch.bincount(labels[chosen], minlength=int(labels.max()) + 1) < folds
    return (chosen | (few[labels] & (rank_in_class(labels, seed) < folds))).nonzero()[:, 0]


def _different(
    given: Mapping[tuple[str, int | None], Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[tuple[str, int], Tensor]:
    """Return features by layer and cells on the longest axis: poolings above the sides of a map are one."""
    return {
        (layer, min(pool, max(shapes[layer][1:]))): part for (layer, pool), part in given.items() if pool is not None
    }


def _judge(features: Tensor, labels: Tensor, fold: Tensor, classes: int, options: HeadOptions) -> Tensor:
    """Return the accuracy of each fold under a head trained on the others, (folds,)."""
    check_features(features, labels)
    scores = []
    for held in range(int(fold.max()) + 1):
        head = fit_head(features[fold != held], labels[fold != held], classes, options)
        scores.append(accuracy(head, features[fold == held], labels[fold == held]))
    return torch.tensor(scores, dtype=torch.float64)


def _candidate(layer: str, t: float, pool: int, features: Tensor, scores: Tensor) -> Candidate:
    error = float(scores.std() / len(scores) ** 0.5)
    return Candidate(
        layer=layer, t=t, pool=pool, features=features.shape[1], accuracy=float(scores.mean()), error=error
    )
