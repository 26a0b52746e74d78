"""Which items a step sees: running item numbers to positions in the data set, as a pure function of the seed.

Step `k` of a run with batches of `B` items sees the running numbers k B .. k B + B - 1. An `Order` says which item of
the data set each of them is. A data set asks for one by two optional attributes:

| `order` | the data set has | a running number means |
| --- | --- | --- |
| "permuted" (or no attribute) | `len` | epoch e visits all items in the order keyed by (seed, e) |
| "sequential" | `shuffle: int`, the items of one block | that item of the stream, blocks permuted by key |
| "bucketed" | `groups() -> Tensor`, the bucket of each item, int64 (N,) | see `Bucketed`; no batch mixes buckets |

What all items of a bucket have in common (their shape) is the data set's affair; `batch` is only ever asked for items
of one bucket.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.noise import permutations

if TYPE_CHECKING:
    from undiffuse.data import Dataset

_OF_BATCHES = 1 << 40  # added to the epoch where batches are permuted, so that their key is not that of the items


class Order(ABC):
    """Maps running item numbers to positions.

    Attributes:
        mixes: Whether items of several steps may be read in one call; not where steps differ in shape.
    """

    mixes: bool = True

    @abstractmethod
    def positions(self, items: Tensor) -> Tensor:
        """Return the position of each running number, int64, in the shape of `items`."""


class Permuted(Order):
    """Epoch e visits all `count` items once, in the order keyed by (seed, e)."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed, self.count = seed, count
        self._known: tuple[range, Tensor] | None = None

    def positions(self, items: Tensor) -> Tensor:
        """Return positions (B,) of running numbers (B,)."""
        epochs, places = items // self.count, items % self.count
        known, orders = self._orders(range(int(epochs.min()), int(epochs.max()) + 1))
        return orders[epochs - known.start, places]

    def _orders(self, epochs: range) -> tuple[range, Tensor]:
        """Return epochs that include those asked for, and their orders (E, n); all at once, for they may be many."""
        if self._known is None or epochs[0] not in self._known[0] or epochs[-1] not in self._known[0]:
            self._known = (epochs, permutations(self.seed, epochs, self.count))
        return self._known


class Sequential(Order):
    """Position = running number, but for blocks of `block` items that are permuted by (seed, block number)."""

    def __init__(self, seed: int, block: int = 1) -> None:
        self.seed, self.block = seed, max(1, block)
        self._orders = Permuted(seed, self.block)

    def positions(self, items: Tensor) -> Tensor:
        """Return positions (B,) of running numbers (B,)."""
        if self.block == 1:
            return items
        return items // self.block * self.block + self._orders.positions(items)


class Bucketed(Order):
    """Every batch holds items of one bucket, and no item is lost in an epoch.

    In epoch e the items of each bucket, in the order keyed by (seed, e), are cut into batches; the last batch of a
    bucket is filled up from the start of its order. The batches then come in keyed order. An epoch has
    sum_g ceil(n_g / B) batches, the same number in every epoch, so epoch and batch follow from the running number.

    Args:
        seed: Key.
        groups: Bucket of each position, int64 (N,), at least 0.
        batch_size: Items per step over all processes, B.
    """

    mixes = False

    def __init__(self, seed: int, groups: Tensor, batch_size: int) -> None:
        self.seed, self.batch_size = seed, batch_size
        self.groups = groups.cpu().long()
        self.batches = int((-(-torch.bincount(self.groups) // batch_size)).sum())
        self._epoch: tuple[int, Tensor] | None = None

    def positions(self, items: Tensor) -> Tensor:
        """Return positions (B,) of running numbers (B,)."""
        steps, rows = items // self.batch_size, items % self.batch_size
        epochs, batches = steps // self.batches, steps % self.batches
        found = torch.empty_like(items)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            found[here] = self._table(epoch)[batches[here], rows[here]]
        return found

    def _table(self, epoch: int) -> Tensor:
        """Return the positions of all batches of an epoch, int64 (batches, B)."""
        if self._epoch is None or self._epoch[0] != epoch:
            order = permutations(self.seed, [epoch], len(self.groups))[0]
            parts = [self._cut(order[self.groups[order] == group]) for group in self.groups.unique()]
            shuffled = permutations(self.seed, [epoch + _OF_BATCHES], self.batches)[0]
            self._epoch = (epoch, torch.cat(parts)[shuffled])
        return self._epoch[1]

    def _cut(self, members: Tensor) -> Tensor:
        count = -(-len(members) // self.batch_size)
        return members[torch.arange(count * self.batch_size) % len(members)].view(count, self.batch_size)


def make_order(dataset: Dataset | Any, seed: int, batch_size: int) -> Order:
    """Return the order that a data set asks for.

    Raises:
        ValueError: It asks for an order that there is not.
    """
    kind = getattr(dataset, "order", "permuted")
    if kind == "permuted":
        return Permuted(seed, len(dataset))
    if kind == "sequential":
        return Sequential(seed, dataset.shuffle)
    if kind == "bucketed":
        return Bucketed(seed, dataset.groups(), batch_size)
    raise ValueError(f"a data set asks for the order {kind!r}; expected permuted, sequential or bucketed.")
