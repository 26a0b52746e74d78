from __future__ import annotations

import pytest
import torch

from undiffuse.networks.conditioners import Conditioners, LabelConditioner, VectorConditioner, make_conditioners


@pytest.fixture
def conditioners() -> Conditioners:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_conditioners(3, {"pose": 2}, 8)


POSE = torch.tensor([[0.5, -1.0], [2.0, 0.0], [1.0, 1.0]])
LABEL = torch.tensor([0, 2, 1])


def test_the_vectors_of_all_conditioners_add_up(conditioners):
    both = conditioners.embed({"label": LABEL, "pose": POSE}, 3).vector
    expected = conditioners["label"].table.weight[LABEL] + conditioners["pose"].project(POSE)
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize("missing", ["label", "pose"])
def test_a_missing_condition_equals_dropping_every_row(conditioners, missing):
    cond = {"label": LABEL, "pose": POSE}
    dropped = conditioners.embed(cond, 3, {missing: torch.ones(3, dtype=torch.bool)})
    del cond[missing]
    torch.testing.assert_close(conditioners.embed(cond, 3).vector, dropped.vector, rtol=0, atol=0)


def test_drop_replaces_single_rows(conditioners):
    cond = {"label": LABEL, "pose": POSE}
    drop = torch.tensor([False, True, False])
    mixed = conditioners.embed(cond, 3, {"label": drop, "pose": drop}).vector
    given, null = conditioners.embed(cond, 3).vector, conditioners.embed(None, 3).vector
    torch.testing.assert_close(mixed, torch.where(drop[:, None], null, given), rtol=0, atol=0)
    assert not torch.equal(given[1], null[1])


def test_dropping_a_missing_condition_changes_nothing(conditioners):
    drop = {"label": torch.tensor([True, False, True])}
    assert torch.equal(conditioners.embed(None, 3, drop).vector, conditioners.embed(None, 3).vector)


def test_structure_is_the_same_whatever_is_missing(conditioners):
    for cond in (None, {}, {"label": LABEL}, {"pose": POSE}, {"label": LABEL, "pose": POSE}):
        embedded = conditioners.embed(cond, 3)
        assert embedded.vector.shape == (3, 8)
        assert embedded.tokens is None and embedded.maps is None


def test_without_conditioners_nothing_is_embedded():
    assert Conditioners().embed(None, 4).vector is None


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named_with_the_range(conditioners, label):
    with pytest.raises(ValueError, match=rf"label {label} does not exist.* 0 to 2"):
        conditioners.embed({"label": torch.tensor([0, label, 1])}, 3)


def test_the_null_row_cannot_be_asked_for_by_number():
    with pytest.raises(ValueError, match="label 5"):
        LabelConditioner(5, 4)(torch.tensor([5]))


@pytest.mark.parametrize(
    ("cond", "drop", "match"),
    [
        ({"lable": LABEL}, None, "'lable' is unknown.*'label', 'pose'"),
        (None, {"mood": torch.ones(3, dtype=torch.bool)}, "'mood' is unknown.*'label', 'pose'"),
        ({"label": LABEL[:2]}, None, "expected one row for each of 3 items"),
        ({"label": torch.tensor(1)}, None, "expected one row"),
        ({"label": LABEL.float()}, None, "expected integers"),
        ({"pose": POSE[:, :1]}, None, r"expected \(B, 2\)"),
        ({"label": LABEL}, {"label": torch.zeros(3)}, "expected bool"),
    ],
)
def test_wrong_conditions_are_refused(conditioners, cond, drop, match):
    with pytest.raises(ValueError, match=match):
        conditioners.embed(cond, 3, drop)


def test_a_vector_condition_may_not_take_the_label_s_name():
    with pytest.raises(ValueError, match="called 'label'"):
        make_conditioners(3, {"label": 2}, 8)


def test_nulls_and_given_rows_are_both_learned(conditioners):
    drop = torch.tensor([True, False, False])
    conditioners.embed(
        {"label": LABEL, "pose": POSE}, 3, {"label": drop, "pose": drop}
    ).vector.square().sum().backward()
    grad = conditioners["label"].table.weight.grad
    assert (grad[[1, 2, 3]].abs().sum(1) > 0).all() and (grad[0] == 0).all()
    assert conditioners["pose"].null_vector.grad.abs().sum() > 0


def test_dropped_rows_do_not_leak_their_vector():
    conditioner = VectorConditioner(2, 4)
    vectors = POSE.clone().requires_grad_()
    conditioner(vectors, torch.tensor([True, False, True])).sum().backward()
    assert (vectors.grad[[0, 2]] == 0).all()
