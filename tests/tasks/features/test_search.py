"""What is chosen is chosen on training items; few labels and transfer stand beside their baselines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.networks.helpers import generator
from tests.tasks.features.test_encoder import IMAGE, PROCESS, small_unet
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.models.model import Model
from undiffuse.tasks.features.baselines import RawItems, untrained
from undiffuse.tasks.features.few_labels import few_label_curve
from undiffuse.tasks.features.folds import few_of_each, make_folds
from undiffuse.tasks.features.options import HeadOptions
from undiffuse.tasks.features.search import probe_search
from undiffuse.tasks.features.transferring import Target, number_as, transfer


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(NetworkDenoiser(small_unet(), PROCESS, "v", spec=IMAGE).eval(), IMAGE)


def halves(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures whose left or right half is bright, and which."""
    x, y = 0.3 * torch.randn(n, 1, 8, 8, generator=generator(seed)), torch.arange(n) % 2
    x[y == 0, :, :, :4] += 1
    x[y == 1, :, :, 4:] += 1
    return x, y


def test_every_choice_is_tried_and_the_best_stands_first(model: Model):
    x, y = halves(60)
    found = probe_search(model, x, y, layers=["in", "mid"], times=(0.05, 0.9), pools=(1, 2, 4, 8), folds=3)
    tried = {(row.layer, row.t, row.pool) for row in found.rows}
    assert tried == {
        (name, t, p) for t in (0.05, 0.9) for name, sides in (("in", 8), ("mid", 4)) for p in (1, 2, 4, 8) if p <= sides
    }
    assert [row.accuracy for row in found.rows] == sorted((row.accuracy for row in found.rows), reverse=True)
    assert found.best.t == 0.05 and found.best.accuracy == 1.0
    assert found.best.features == min(row.features for row in found.rows if row.accuracy == 1.0)
    again = probe_search(
        model, x, y, layers=["in", "mid"], times=(0.05, 0.9), pools=(1, 2, 4, 8), folds=3, batch_size=7
    )
    assert [row.layer for row in again.rows[:4]] == [row.layer for row in found.rows[:4]]


def test_labels_of_the_fold_that_judges_are_not_learned_from(model: Model):
    x, _ = halves(64)
    noise = torch.randint(0, 2, (64,), generator=generator(3))  # labels that nothing tells
    found = probe_search(model, x, noise, layers="mid", times=(0.1,), pools=(4,), folds=4)
    assert found.best.accuracy < 0.5 + 4 * (0.25 / 64) ** 0.5  # 256 features would learn 64 labels by heart


def test_a_choice_of_items_leaves_rare_classes_enough_for_the_folds(model: Model):
    x, y = halves(43)
    y[:40], y[40:] = 0, 1
    found = probe_search(model, x, y, layers="in", times=(0.1,), pools=(1,), folds=3, n=10)
    assert found.settings["folds"] == 3 and 10 <= found.settings["items"] <= 13


def test_folds_deal_out_every_class_and_become_fewer_where_a_class_is_small():
    labels = torch.tensor([0] * 9 + [1] * 6)
    folds = make_folds(labels, 3, seed=0)
    assert torch.bincount(folds[labels == 0]).tolist() == [3, 3, 3]
    assert torch.bincount(folds[labels == 1]).tolist() == [2, 2, 2]
    with pytest.warns(UserWarning, match="as many folds, not 5"):
        assert int(make_folds(torch.tensor([0, 0, 0, 1, 1]), 5, seed=0).max()) == 1
    with pytest.raises(ValueError, match="class number 1 has one item"):
        make_folds(torch.tensor([0, 0, 1]), 2, seed=0)
    with pytest.raises(ValueError, match="at least 2"):
        make_folds(labels, 1, seed=0)
    rows = few_of_each(labels, 4, seed=1)
    assert torch.bincount(labels[rows]).tolist() == [4, 4]
    with pytest.raises(ValueError, match="the rarest has 6"):
        few_of_each(labels, 7, seed=1)


def test_more_labels_are_better_and_the_choice_of_items_is_the_same_for_all_features():
    (x, y), (far, truth) = halves(80), halves(200, seed=1)
    raw = RawItems()
    rows = few_label_curve((raw(x), y), (raw(far), truth), counts=(1, 10, 99, None), repeats=4)
    assert [row.count for row in rows] == [1, 10, None]
    assert rows[0].accuracy <= rows[1].accuracy + 0.01 and rows[-1].accuracy > 0.99 and rows[-1].error is None
    double = few_label_curve(
        (torch.cat([raw(x)] * 2, 1), y), (torch.cat([raw(far)] * 2, 1), truth), counts=(10,), repeats=4
    )
    assert double[0].accuracy == pytest.approx(rows[1].accuracy, abs=0.02)  # the same items
    with pytest.raises(ValueError, match="repeats"):
        few_label_curve((raw(x), y), (raw(far), truth), repeats=0)


def test_transfer_judges_the_model_and_both_baselines(model: Model):
    (x, y), (far, truth) = halves(40), halves(60, seed=1)
    names = np.array(["left", "right"])
    target = Target(x, names[y], far, names[truth])
    search = {"layers": ["in", "mid"], "times": (0.05,), "pools": (2,), "folds": 2}
    rows = transfer(
        model, {"sides": target}, heads=("ridge",), few_labels=5, repeats=2, search=search, others={"again": RawItems()}
    )
    assert [row.encoder for row in rows] == ["model", "untrained network", "raw items", "again"]
    assert rows[2].accuracy == rows[3].accuracy
    assert all(row.accuracy > 0.9 and row.few is not None for row in rows)
    with pytest.raises(ValueError, match="'up' is not among the labels"):
        number_as(["up"], ("left", "right"))
    with pytest.raises(ValueError, match="needs a target"):
        transfer(model, {})


def test_the_untrained_network_is_the_same_one_with_fresh_weights(model: Model):
    fresh = untrained(model)
    mine, theirs = model.denoiser.state_dict(), fresh.denoiser.state_dict()
    assert {name: value.shape for name, value in mine.items()} == {name: value.shape for name, value in theirs.items()}
    assert not torch.equal(mine["backbone.enter.weight"], theirs["backbone.enter.weight"])
    again = untrained(model).denoiser.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in theirs.items())


def test_what_cannot_be_searched_is_refused(model: Model):
    x, y = halves(10)
    for message, wrong in (
        ("reads maps", {"head": "attention"}),
        ("at least one of each", {"times": ()}),
        ("10 items and 3 labels", {"y": [0, 1, 0]}),
    ):
        with pytest.raises(ValueError, match=message):
            probe_search(model, x, **({"y": y} | wrong))
    assert HeadOptions(head="attention").reads_maps
