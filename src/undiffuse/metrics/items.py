"""Real items in data units."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BATCH = 1024


@dataclass(frozen=True)
class Items:
    """Real items.

    Args:
        x: Items in data units, (N, *shape).
        labels: Their labels (N,), or None.
        text: For tokens cut from one text: the whole of it, (T,); else None.
        cond: Their conditions by name, (N, ...) as the data set gives them; those that were asked for.
    """

    x: NDArray[Any]
    labels: NDArray[np.int64] | None = None
    text: NDArray[np.int64] | None = None
    cond: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)


def load_items(dataset: Any, *, limit: int, seed: int, conditions: Collection[str] = ()) -> Items:
    """Read at most `limit` items of a data set, chosen by `seed`, and convert them to data units.

    Args:
        dataset: What is read.
        limit: The most items.
        seed: Of the choice.
        conditions: Names of the conditions that are kept, of those that the data set has.
    """
    count = len(dataset)
    index = np.arange(count) if count <= limit else np.sort(np.random.default_rng(seed).choice(count, limit, False))
    batches = [dataset.batch(part) for part in torch.from_numpy(index).split(_BATCH)]
    x = torch.cat([dataset.spec.from_model(batch["x"]) for batch in batches])
    labels = [batch["cond"]["label"] for batch in batches if "label" in batch.get("cond", {})]
    text = to_array(dataset.tokens) if dataset.spec.is_discrete and hasattr(dataset, "tokens") else None
    found = batches[0].get("cond", {})
    cond = {name: torch.cat([batch["cond"][name] for batch in batches]).cpu() for name in conditions if name in found}
    return Items(to_array(x), torch.cat(labels).cpu().numpy() if labels else None, text, cond)


def to_array(x: Tensor) -> NDArray[Any]:
    """Return a tensor as an array: floats in float64, token ids in int64."""
    return x.detach().cpu().to(torch.float64 if x.is_floating_point() else torch.int64).numpy()
