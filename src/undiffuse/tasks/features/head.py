"""`Head`: what turns frozen features into scores of classes. And the scaling of features that heads share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self

import torch
from torch import Tensor

from undiffuse.tasks.features.options import HeadOptions

HEADS = {
    "ridge": "undiffuse.tasks.features.ridge:RidgeHead",
    "logistic": "undiffuse.tasks.features.logistic:LogisticHead",
    "knn": "undiffuse.tasks.features.neighbours:NeighbourHead",
    "mlp": "undiffuse.tasks.features.head_training:TrainedHead",
    "cnn": "undiffuse.tasks.features.head_training:TrainedHead",
    "attention": "undiffuse.tasks.features.head_training:TrainedHead",
}
"""Head -> "module:class"."""

Inputs = Any
"""Features (n, F), or for heads that read maps: name of a map -> (n, C, *)."""


class Head(ABC):
    """Scores of classes from frozen features. A head is fitted once, by `fit`."""

    @classmethod
    @abstractmethod
    def fit(cls, inputs: Inputs, labels: Tensor, classes: int, options: HeadOptions) -> Self:
        """Return a head trained on features and class numbers int64 (n,) below `classes`."""

    @abstractmethod
    def logits(self, inputs: Inputs) -> Tensor:
        """Return scores (n, classes) float64, whose softmax are the probabilities."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return all numbers that the head was fitted to."""

    @property
    def facts(self) -> dict[str, Any]:
        """What else is needed to build the head again, as plain JSON."""
        return {}

    @classmethod
    @abstractmethod
    def restore(cls, tensors: dict[str, Tensor], facts: dict[str, Any], classes: int, options: HeadOptions) -> Self:
        """Return the head that `tensors` and `facts` were written by."""


@dataclass(frozen=True)
class Standard:
    """Features to mean 0 and standard deviation 1 by statistics of the training items; constant ones become 0.

    Args:
        mean: (F,) float64.
        std: (F,) float64, 1 where the features do not vary.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Standard:
        """Measure features (n, F)."""
        wide = features.double()
        std = wide.std(0, correction=0)
        return cls(wide.mean(0), torch.where(std > 0, std, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        """Return features (n, F) scaled, float64.

        Raises:
            ValueError: Another number of features.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"the features have shape {tuple(features.shape)}; expected (n, {len(self.mean)}).")
        return (features.double() - self.mean) / self.std


def head_class(name: str) -> type[Head]:
    """Return the class of a head."""
    module, _, attribute = HEADS[name].partition(":")
    return getattr(import_module(module), attribute)


def check_features(inputs: Inputs, labels: Tensor) -> None:
    """Refuse features that no head can read.

    Raises:
        ValueError: Another number of rows than labels, or numbers that are not finite.
    """
    parts = inputs if isinstance(inputs, dict) else {"features": inputs}
    for name, part in parts.items():
        if len(part) != len(labels):
            raise ValueError(f"{name} has {len(part)} rows and there are {len(labels)} labels; give one for each item.")
        if not bool(part.isfinite().all()):
            bad = int((~part.isfinite()).flatten(1).any(1).nonzero()[0, 0])
            raise ValueError(
                f"{name} of item {bad} are not finite: the network overflows there; use float32 or less t."
            )
