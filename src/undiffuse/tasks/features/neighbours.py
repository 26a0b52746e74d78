"""Nearest-neighbour probe: the classes of the nearest training items vote."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from undiffuse.tasks.features.head import Head, Inputs, Standard
from undiffuse.tasks.features.options import HeadOptions

_CHUNK = 512  # rows whose distances are held at once
_TIE = 1e-3  # of a vote: the nearer of two classes with equal votes wins
_PRIOR = 0.1  # votes that every class has, so that no probability is 0


class NeighbourHead(Head):
    """The k nearest items by Euclidean distance of standardised features; as many as there are, where k is more.

    Probabilities are the shares of the votes, with a tenth of a vote for every class.
    """

    def __init__(self, standard: Standard, items: Tensor, labels: Tensor, classes: int, count: int) -> None:
        self.standard, self.items, self.labels = standard, items, labels
        self.classes, self.count = classes, min(count, len(items))

    @classmethod
    def fit(cls, inputs: Inputs, labels: Tensor, classes: int, options: HeadOptions) -> Self:
        """Keep the items."""
        standard = Standard.of(inputs)
        return cls(standard, standard(inputs).float(), labels, classes, options.neighbours)

    def logits(self, inputs: Inputs) -> Tensor:
        """Return log-shares of the votes."""
        z = self.standard(inputs).float()
        return torch.cat([self._votes(part) for part in z.split(_CHUNK)])

    def _votes(self, z: Tensor) -> Tensor:
        nearest = torch.cdist(z, self.items).topk(self.count, dim=1, largest=False)
        rank = torch.arange(self.count, dtype=torch.float64)
        weight = 1 - _TIE * rank / self.count
        votes = (one_hot(self.labels[nearest.indices], self.classes).double() * weight[None, :, None]).sum(1)
        return (votes + _PRIOR).log()

    def tensors(self) -> dict[str, Tensor]:
        """Return the items, which are the head."""
        return {"items": self.items, "labels": self.labels, "mean": self.standard.mean, "std": self.standard.std}

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], facts: dict[str, Any], classes: int, options: HeadOptions) -> Self:
        """Return the head as it was."""
        standard = Standard(tensors["mean"], tensors["std"])
        return cls(standard, tensors["items"], tensors["labels"], classes, options.neighbours)
