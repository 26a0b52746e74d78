"""Conditioners turn a condition (a label, a vector) into the vector that modulates the network.

Each one learns a *null*, which stands for "not given": for a whole batch when the condition is missing,
for single rows when it is dropped (classifier-free guidance trains and samples with such rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from undiffuse.networks.embedded import Embedded


class LabelConditioner(nn.Module):
    """Learned vector per class; the last row of the table is the null.

    Args:
        classes: Number of classes.
        dim: Size D of the embedded vector.
    """

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.classes = classes
        self.table = nn.Embedding(classes + 1, dim)

    def forward(self, labels: Tensor, drop: Tensor | None = None) -> Tensor:
        """Embed integer `labels` (B,) as (B, D); rows where `drop` (B,) is True get the null.

        Raises:
            ValueError: A label is no integer or lies outside 0 .. classes - 1.
        """
        if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; expected integers of shape (B,).")
        # On an accelerator looking at the labels would wait for it in every step; `Model` and data sets check before.
        outside = labels[(labels < 0) | (labels >= self.classes)] if labels.device.type == "cpu" else labels[:0]
        if outside.numel():
            raise ValueError(
                f"label {int(outside[0])} does not exist; this model knows labels 0 to {self.classes - 1}."
            )
        return self.table(labels if drop is None else labels.masked_fill(drop, self.classes))

    def null(self, batch: int) -> Tensor:
        """Return the null for every row, (batch, D)."""
        return self.table.weight[-1].expand(batch, -1)


class VectorConditioner(nn.Module):
    """Linear map of a vector of `width` numbers, with a learned null vector beside it."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(width, dim)
        self.null_vector = nn.Parameter(torch.randn(dim))

    def forward(self, vectors: Tensor, drop: Tensor | None = None) -> Tensor:
        """Embed `vectors` (B, width) as (B, D); rows where `drop` (B,) is True get the null.

        Raises:
            ValueError: The vectors have another width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise ValueError(f"the condition has shape {tuple(vectors.shape)}; expected (B, {self.width}).")
        embedded = self.project(vectors.to(self.project.weight.dtype))
        return embedded if drop is None else torch.where(drop[:, None], self.null_vector, embedded)

    def null(self, batch: int) -> Tensor:
        """Return the null for every row, (batch, D)."""
        return self.null_vector.expand(batch, -1)


Conditioner = LabelConditioner | VectorConditioner


class Conditioners(nn.ModuleDict):
    """The conditioners of a network by name; their vectors add up."""

    def embed(
        self, cond: Mapping[str, Tensor] | None, batch: int, drop: Mapping[str, Tensor] | None = None
    ) -> Embedded:
        """Embed the conditions of `batch` rows, always with the same structure.

        Args:
            cond: name -> one row per item, (B,) labels or (B, width) vectors; a missing name is its null.
            batch: Number of rows B.
            drop: name -> (B,) bool, True where the row's condition is replaced by the null.

        Raises:
            ValueError: An unknown name, rows that do not match `batch`, or values a conditioner refuses.
        """
        cond, drop = cond or {}, drop or {}
        for given in (cond, drop):
            self._check(given, batch)
        for name, rows in drop.items():
            if rows.dtype != torch.bool or rows.ndim != 1:
                raise ValueError(f"drop[{name!r}] is {rows.dtype} {tuple(rows.shape)}; expected bool ({batch},).")
        vectors = [self._embed_one(name, cond.get(name), batch, drop.get(name)) for name in self]
        return Embedded(vector=torch.stack(vectors).sum(0) if vectors else None)

    def _embed_one(self, name: str, values: Tensor | None, batch: int, drop: Tensor | None) -> Tensor:
        conditioner = cast("Conditioner", self[name])
        if values is None:
            return conditioner.null(batch)
        return conditioner(values, drop)

    def _check(self, given: Mapping[str, Tensor], batch: int) -> None:
        known = ", ".join(repr(name) for name in self) or "none"
        for name, rows in given.items():
            if name not in self:
                raise ValueError(f"condition {name!r} is unknown; this model's conditions: {known}.")
            if rows.ndim < 1 or rows.shape[0] != batch:
                raise ValueError(
                    f"condition {name!r} has shape {tuple(rows.shape)}; expected one row for each of {batch} items."
                )


def make_conditioners(classes: int, vectors: Mapping[str, int] | None, dim: int) -> Conditioners:
    """Return the conditioner "label" (where there are classes) and one per entry `name -> width` of `vectors`."""
    chosen: dict[str, nn.Module] = {"label": LabelConditioner(classes, dim)} if classes else {}
    for name, width in (vectors or {}).items():
        if name in chosen:
            raise ValueError("a vector condition is called 'label', which is the name of the class label; rename it.")
        chosen[name] = VectorConditioner(width, dim)
    return Conditioners(chosen)
