"""Which item a step sees: nothing lost, nothing mixed, all a function of seed and epoch."""

from __future__ import annotations

import pytest
import torch

from tests.training.tiny import vectors
from undiffuse.noise import permutation
from undiffuse.training.order import Bucketed, Permuted, Sequential, make_order


class Buckets:
    """A data set that asks for buckets."""

    order = "bucketed"

    def __init__(self, groups: list[int]) -> None:
        self._groups = torch.tensor(groups)

    def __len__(self) -> int:
        return len(self._groups)

    def groups(self) -> torch.Tensor:
        return self._groups


def epoch_of(order: Bucketed, epoch: int) -> torch.Tensor:
    numbers = torch.arange(order.batches * order.batch_size) + epoch * order.batches * order.batch_size
    return order.positions(numbers).view(order.batches, order.batch_size)


def test_the_default_is_a_permutation_per_epoch():
    order = make_order(vectors(7), 3, 4)
    assert isinstance(order, Permuted) and order.mixes
    expected = torch.cat([permutation(3, epoch, 7) for epoch in range(3)])
    assert torch.equal(order.positions(torch.arange(21)), expected)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 16])
def test_an_epoch_of_buckets_loses_no_item_and_mixes_none(batch_size):
    groups = torch.tensor([0] * 10 + [1] * 3 + [4] * 7 + [2])[permutation(1, 0, 21)]
    order = make_order(Buckets(groups.tolist()), 5, batch_size)
    assert isinstance(order, Bucketed) and not order.mixes
    assert order.batches == sum(-(-n // batch_size) for n in (10, 3, 7, 1))
    for epoch in range(3):
        table = epoch_of(order, epoch)
        assert (groups[table] == groups[table[:, :1]]).all()
        counts = torch.bincount(table.flatten(), minlength=21)
        assert (counts >= 1).all()
        for group in groups.unique():
            inside = counts[groups == group]
            assert inside.max() - inside.min() <= 1  # a batch is filled up evenly


def test_epochs_of_buckets_differ_in_items_and_in_the_order_of_batches():
    groups = [0] * 32 + [1] * 32
    order = make_order(Buckets(groups), 0, 4)
    first, second = epoch_of(order, 0), epoch_of(order, 1)
    assert not torch.equal(first, second)
    kinds = torch.tensor(groups)[first[:, 0]], torch.tensor(groups)[second[:, 0]]
    assert not torch.equal(*kinds)
    assert torch.equal(epoch_of(make_order(Buckets(groups), 0, 4), 1), second)
    assert not torch.equal(epoch_of(make_order(Buckets(groups), 1, 4), 0), first)


def test_a_call_may_reach_over_the_end_of_an_epoch():
    order = make_order(Buckets([0, 0, 1, 1, 1]), 0, 2)
    many = order.positions(torch.arange(60))
    assert torch.equal(many, torch.cat([order.positions(torch.arange(i, i + 2)) for i in range(0, 60, 2)]))


@pytest.mark.parametrize("block", [1, 4, 10])
def test_a_stream_is_shuffled_inside_of_blocks_only(block):
    order = Sequential(2, block)
    seen = order.positions(torch.arange(40))
    for start in range(0, 40, block):
        assert sorted(seen[start : start + block].tolist()) == list(range(start, start + block))
    assert torch.equal(seen[17:23], Sequential(2, block).positions(torch.arange(17, 23)))
    assert (block == 1) == torch.equal(seen, torch.arange(40))


def test_an_unknown_order_is_refused():
    dataset = Buckets([0])
    dataset.order = "sorted"
    with pytest.raises(ValueError, match="sorted"):
        make_order(dataset, 0, 1)
