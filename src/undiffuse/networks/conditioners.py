"""Conditioners turn a condition (a label, a vector, a caption, a map) into what the network reads, an `Embedded`.

Each one has a *null*, which stands for "not given": for a whole batch when the condition is missing, for single rows
when it is dropped (classifier-free guidance trains and samples with such rows). It is learned, or the condition's zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from undiffuse.networks.embedded import Embedded
from undiffuse.networks.maps import MapConditioner, append_maps, concatenate_maps
from undiffuse.networks.sequences import EmbeddingConditioner, SequenceConditioner, TextConditioner
from undiffuse.spec import ConditionSpec


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
    """Linear map of a vector of `width` numbers, with a learned null vector beside it.

    With null "zero" the map has no offset and the null is 0: a missing vector and one of zeros are the same.
    """

    def __init__(self, width: int, dim: int, *, null: Literal["learned", "zero"] = "learned") -> None:
        super().__init__()
        self.width = width
        self.project = nn.Linear(width, dim, bias=null == "learned")
        self.null_vector = nn.Parameter(torch.randn(dim)) if null == "learned" else None

    def forward(self, vectors: Tensor, drop: Tensor | None = None) -> Tensor:
        """Embed `vectors` (B, width) as (B, D); rows where `drop` (B,) is True get the null.

        Raises:
            ValueError: The vectors have another width.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.width:
            raise ValueError(f"the condition has shape {tuple(vectors.shape)}; expected (B, {self.width}).")
        embedded = self.project(vectors.to(self.project.weight.dtype))
        return embedded if drop is None else torch.where(drop[:, None], self.null(1), embedded)

    def null(self, batch: int) -> Tensor:
        """Return the null for every row, (batch, D)."""
        null = self.project.weight.new_zeros(len(self.project.weight)) if self.null_vector is None else self.null_vector
        return null.expand(batch, -1)


Conditioner = LabelConditioner | VectorConditioner | TextConditioner | EmbeddingConditioner | MapConditioner


class Conditioners(nn.ModuleDict):
    """The conditioners of a network by name: vectors add up, tokens follow each other, maps lie side by side.

    Args:
        conditioners: By name.
        dims: Spatial axes of the maps.
    """

    def __init__(self, conditioners: Mapping[str, nn.Module] | None = None, *, dims: int = 0) -> None:
        super().__init__()
        self.dims = dims
        self.update(conditioners or {})

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Take any name: columns are called "type" or "values", which modules keep for themselves."""
        if not name or "." in name:
            raise ValueError(f"condition {name!r} cannot be saved; give it a name without dots.")
        self._modules[name] = module  # type: ignore[assignment]  # torch's own annotation leaves None out

    @property
    def fields(self) -> frozenset[str]:
        """Fields of `Embedded` that are filled, of "vector", "tokens" (with "mask") and "maps"."""
        found = {"maps" if isinstance(part, MapConditioner) else "vector" for part in self.values()}
        attended = (isinstance(part, SequenceConditioner) and part.null_token is not None for part in self.values())
        return frozenset(found | {"tokens"} if any(attended) else found)

    @property
    def map_channels(self) -> int:
        """Number of channels of all maps together."""
        return sum(part.channels for part in self.values() if isinstance(part, MapConditioner))

    def embed(
        self, cond: Mapping[str, Tensor] | None, batch: int, drop: Mapping[str, Tensor] | None = None
    ) -> Embedded:
        """Embed the conditions of `batch` rows, always with the same structure.

        Only maps that are not given have size 1, the same at each place, for they fit data of any size.

        Args:
            cond: name -> one row per item, as `undiffuse.spec.ConditionSpec` describes; a missing name is its null.
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
        return self._join([self._embed_one(name, cond.get(name), batch, drop.get(name)) for name in self])

    def add_maps(self, x: Tensor, maps: Tensor | None) -> Tensor:
        """Return `x` (B, C, *) or (B, F, C, *) with the maps of an `Embedded` as further channels.

        Raises:
            ValueError: The maps have another size.
        """
        return x if maps is None else append_maps(x, maps, self.dims)

    def _join(self, parts: list[Embedded]) -> Embedded:
        vectors = [part.vector for part in parts if part.vector is not None]
        tokens = [part.tokens for part in parts if part.tokens is not None]
        masks = [part.mask for part in parts if part.mask is not None]
        maps = [part.maps for part in parts if part.maps is not None]
        return Embedded(
            vector=torch.stack(vectors).sum(0) if vectors else None,
            tokens=torch.cat(tokens, dim=1) if tokens else None,
            mask=torch.cat(masks, dim=1) if masks else None,
            maps=concatenate_maps(maps, self.dims) if maps else None,
        )

    def _embed_one(self, name: str, values: Tensor | None, batch: int, drop: Tensor | None) -> Embedded:
        conditioner = cast("Conditioner", self[name])
        try:
            part = conditioner.null(batch) if values is None else conditioner(values, drop)
        except ValueError as error:
            raise ValueError(f"condition {name!r}: {error}") from None
        return part if isinstance(part, Embedded) else Embedded(vector=part)

    def _check(self, given: Mapping[str, Tensor], batch: int) -> None:
        known = ", ".join(repr(name) for name in self) or "none"
        for name, rows in given.items():
            if name not in self:
                raise ValueError(f"condition {name!r} is unknown; this model's conditions: {known}.")
            if rows.ndim < 1 or rows.shape[0] != batch:
                raise ValueError(
                    f"condition {name!r} has shape {tuple(rows.shape)}; expected one row for each of {batch} items."
                )


def make_conditioners(
    conditions: Mapping[str, ConditionSpec] | None, dim: int, *, tokens: bool = True, dims: int = 0
) -> Conditioners:
    """Return one conditioner per condition.

    Args:
        conditions: name -> what it is, such as `DataSpec.conditions`.
        dim: Size D of the vector and of the tokens.
        tokens: Whether the network attends to tokens; if not, texts and embeddings give their summary alone.
        dims: Spatial axes of the network's data; 0: it takes no maps.

    Raises:
        ValueError: A map for a network that takes none, or a label whose null is zero.
    """
    made = {name: _conditioner(name, part, dim, tokens, dims) for name, part in (conditions or {}).items()}
    return Conditioners(made, dims=dims)


def _conditioner(name: str, spec: ConditionSpec, dim: int, tokens: bool, dims: int) -> nn.Module:
    if spec.kind == "label":
        if spec.null == "zero":
            raise ValueError(f"condition {name!r} is a label, which has no zero; use null='learned'.")
        return LabelConditioner(len(spec.classes), dim)
    if spec.kind == "vector":
        return VectorConditioner(spec.width, dim, null=spec.null)
    if spec.kind == "text":
        return TextConditioner(spec.length, dim, tokens=tokens, null=spec.null)
    if spec.kind == "embedding":
        return EmbeddingConditioner(spec.width, spec.length, dim, tokens=tokens, null=spec.null)
    if not dims:
        raise ValueError(f"condition {name!r} is a map, but these data have no spatial axes; give it as a vector.")
    return MapConditioner(spec.width, dims, null=spec.null)
