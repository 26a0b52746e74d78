"""Which items are learned from and which judge: folds and few labels, drawn by key, each class in proportion."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from undiffuse.data.holdout import rank_in_class


def make_folds(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Return the fold of each item, int64 (n,); the items of a class are dealt out in a keyed order.

    Where a class has fewer items than there are folds, there are as many folds as it has, with a warning.

    Args:
        labels: Class numbers (n,).
        folds: Number of folds, at least 2.
        seed: Key of the order.

    Raises:
        ValueError: Fewer than 2 folds, or a class with one item.
    """
    if folds < 2:
        raise ValueError(f"folds={folds}; cross-validation needs at least 2.")
    counts = torch.bincount(labels)
    present = counts[counts > 0]
    if int(present.min()) < 2:
        rare = int((counts == 1).nonzero()[0, 0])
        raise ValueError(f"class number {rare} has one item; cross-validation needs 2 of each class or more.")
    if int(present.min()) < folds:
        warnings.warn(f"a class has {int(present.min())} items, so there are as many folds, not {folds}.", stacklevel=2)
    return rank_in_class(labels, seed) % min(folds, int(present.min()))


def few_of_each(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return the positions of `count` items of each class, chosen by `seed`, in order.

    Raises:
        ValueError: A class has fewer.
    """
    least = int(torch.bincount(labels)[labels.unique()].min())
    if count < 1 or count > least:
        raise ValueError(
            f"{count} items of each class were asked for and the rarest has {least}; ask for 1 to {least}."
        )
    return (rank_in_class(labels, seed) < count).nonzero()[:, 0]
