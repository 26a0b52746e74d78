"""Holding a part of a data set out, the same part every time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from undiffuse.data.dataset import Dataset, IndexedDataset
from undiffuse.data.streams import StreamDataset
from undiffuse.data.text import TextDataset
from undiffuse.errors import DataError
from undiffuse.noise import permutation


def split(dataset: Dataset, holdout: float | None = None, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Return (training part, held-out part).

    Items of a class are drawn in a keyed order, each class in proportion to its size; mirror images stay out of the
    held-out part. Text is cut once: its end is held out, in windows that do not overlap. Of a stream the first items.

    Args:
        dataset: What `open_data` returned.
        holdout: Share of the items (below 1) or their number (1 or more; of tokens, for text); None: the
            data set's own default.
        seed: Key of the choice.

    Raises:
        DataError: Nothing would be left to train on, or nothing held out though it was asked for.
        TypeError: The data set is of another making.
    """
    holdout = dataset.default_holdout if holdout is None else holdout
    if isinstance(dataset, TextDataset):
        return dataset.cut(_part(len(dataset.tokens), holdout))
    if isinstance(dataset, StreamDataset):
        return dataset.cut(holdout)
    if not isinstance(dataset, IndexedDataset):
        raise TypeError(f"cannot split a {type(dataset).__name__}; expected a data set made by open_data.")
    chosen = _choose(dataset, _part(dataset.count, holdout), seed)
    positions = torch.arange(dataset.count)
    return dataset.take(positions[~chosen]), replace(dataset.take(positions[chosen]), mirror=False)


def usual_holdout(dataset: Dataset) -> float:
    """Return what a data set holds out unless asked otherwise; 0 where that is less than one item."""
    share = dataset.default_holdout
    if isinstance(dataset, IndexedDataset) and share < 1 and round(dataset.count * share) == 0:
        return 0.0
    return share


def _part(count: int, holdout: float) -> int:
    """Return how many of `count` items are held out."""
    if holdout < 0:
        raise ValueError(f"holdout={holdout} is negative; give a share below 1, a number of items, or 0.")
    part = round(count * holdout) if holdout < 1 else int(holdout)
    if holdout > 0 and part == 0:
        raise DataError(f"{count} item(s) are too few to hold out {holdout:g} of them; set data.holdout=0.")
    if part >= count:
        raise DataError(f"data.holdout={holdout:g} leaves none of {count} item(s) to train on; hold out fewer.")
    return part


def rank_in_class(labels: Tensor, seed: int) -> Tensor:
    """Return the place of each item among those of its class in a keyed order, int64 (N,).

    Args:
        labels: Class numbers int64 (N,).
        seed: Key of the order.
    """
    order = permutation(seed, 0, len(labels))
    by_class = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    first = counts.cumsum(0) - counts
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - first[labels[by_class]]
    return rank


def _choose(dataset: IndexedDataset, part: int, seed: int) -> Tensor:
    """Return which items are held out, bool (N,)."""
    labels = dataset.class_labels()
    labels = torch.zeros(dataset.count, dtype=torch.int64) if labels is None else labels.cpu()
    return rank_in_class(labels, seed) < _quotas(torch.bincount(labels), part)[labels]


def _quotas(counts: Tensor, part: int) -> Tensor:
    """Return how many items of each class make up `part`: proportional, by largest remainders."""
    exact = counts.double() * part / counts.sum()
    quotas = exact.floor().long()
    largest = torch.argsort(exact - quotas, descending=True, stable=True)
    quotas[largest[: part - int(quotas.sum())]] += 1
    return quotas
