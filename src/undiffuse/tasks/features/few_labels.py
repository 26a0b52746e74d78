"""Accuracy against the number of labels: what features are worth where labels are dear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.tasks.features.folds import few_of_each
from undiffuse.tasks.features.head import Inputs
from undiffuse.tasks.features.options import HeadOptions
from undiffuse.tasks.features.probing import accuracy, fit_head, take_inputs

COUNTS = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class FewLabels:
    """Accuracy with `count` labels of each class; None: with all.

    Args:
        count: Labels of each class.
        accuracy: Mean over the choices of items.
        error: Standard error of that mean; None where there was one choice.
    """

    count: int | None
    accuracy: float
    error: float | None


def few_label_curve(
    train: tuple[Inputs, Tensor],
    test: tuple[Inputs, Tensor],
    *,
    counts: Sequence[int | None] = (*COUNTS, None),
    repeats: int = 5,
    seed: int = 0,
    options: HeadOptions | None = None,
) -> list[FewLabels]:
    """Train heads on a few labels of each class and judge them on all test items.

    Args:
        train: Features and class numbers of what is learned from.
        test: Those of what judges.
        counts: Labels of each class; those that the rarest class does not have are left out. None: all.
        repeats: Choices of items for each count.
        seed: Of the choices; the same for any features, so that encoders can be compared.
        options: Of the head; None: ridge.

    Raises:
        ValueError: `repeats` below 1, or no count that the classes have.
    """
    options = options or HeadOptions()
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be at least 1.")
    inputs, labels = train
    classes = int(max(labels.max(), test[1].max())) + 1
    least = int(torch.bincount(labels)[labels.unique()].min())
    kept = [count for count in counts if count is None or count <= least]
    if not kept:
        raise ValueError(f"counts={tuple(counts)}, but the rarest class has {least} items; ask for fewer.")
    found = []
    for count in kept:
        choices = 1 if count is None else repeats
        scores = []
        for choice in range(choices):
            rows = torch.arange(len(labels)) if count is None else few_of_each(labels, count, seed + choice)
            head = fit_head(take_inputs(inputs, rows), labels[rows], classes, options)
            scores.append(accuracy(head, *test))
        each = torch.tensor(scores, dtype=torch.float64)
        error = None if choices == 1 else float(each.std() / choices**0.5)
        found.append(FewLabels(count, float(each.mean()), error))
    return found
