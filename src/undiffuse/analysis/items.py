"""The items that are analysed: rows of a tensor, or chosen items of a data set, with their conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from undiffuse.limits import check_counts
from undiffuse.models.conditions import Fitted
from undiffuse.noise import permutation

_BATCH = 1024


@dataclass(frozen=True)
class Chosen:
    """Items in data units (n, *), their numbers, and the conditions that came with them."""

    data: Tensor
    index: Tensor
    cond: dict[str, Tensor] = field(default_factory=dict)


def choose_items(data: Any, n: int | None, seed: int) -> Chosen:
    """Return the first `n` rows of an array, or `n` items of a data set chosen by `seed`; None: all.

    Raises:
        ValueError: `n` below 1, no items, or something that is neither an array nor a data set.
    """
    check_counts(n=n)
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        rows = torch.as_tensor(data)[:n]
        return Chosen(rows, torch.arange(len(rows)))
    if not hasattr(data, "batch"):
        raise ValueError(
            f"data is a {type(data).__name__}; give a tensor (n, ...) in data units, or a data set: "
            "undiffuse.data.open_data(source)."
        )
    count = len(data)
    if count == 0:
        raise ValueError("the data set is empty; give at least one item.")
    rows = torch.arange(count) if n is None or n >= count else permutation(seed, 0, count)[:n].sort().values
    parts = [data.batch(part) for part in rows.split(_BATCH)]
    values = torch.cat([data.spec.from_model(part["x"]).cpu() for part in parts])
    names = parts[0].get("cond", {})
    cond = {name: torch.cat([part["cond"][name].cpu() for part in parts]) for name in names}
    return Chosen(values, rows, Fitted(cond))
