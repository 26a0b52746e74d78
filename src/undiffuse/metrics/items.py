"""Real items in data units."""

from __future__ import annotations

from dataclasses import dataclass
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
    """

    x: NDArray[Any]
    labels: NDArray[np.int64] | None = None
    text: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.x)


def load_items(dataset: Any, *, limit: int, seed: int) -> Items:
    """Read at most `limit` items of a data set, chosen by `seed`, and convert them to data units."""
    count = len(dataset)
    index = np.arange(count) if count <= limit else np.sort(np.random.default_rng(seed).choice(count, limit, False))
    batches = [dataset.batch(part) for part in torch.from_numpy(index).split(_BATCH)]
    x = torch.cat([dataset.spec.from_model(batch["x"]) for batch in batches])
    labels = [batch["cond"]["label"] for batch in batches if "label" in batch.get("cond", {})]
    text = to_array(dataset.tokens) if dataset.spec.is_discrete and hasattr(dataset, "tokens") else None
    return Items(to_array(x), torch.cat(labels).cpu().numpy() if labels else None, text)


def to_array(x: Tensor) -> NDArray[Any]:
    """Return a tensor as an array: floats in float64, token ids in int64."""
    return x.detach().cpu().to(torch.float64 if x.is_floating_point() else torch.int64).numpy()
