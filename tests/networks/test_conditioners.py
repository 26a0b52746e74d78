from __future__ import annotations

import pytest
import torch

from tests.networks.helpers import described
from undiffuse.networks.conditioners import Conditioners, LabelConditioner, VectorConditioner, make_conditioners
from undiffuse.spec import ConditionSpec


@pytest.fixture
def conditioners() -> Conditioners:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_conditioners(described(3, pose=2), 8)


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


@pytest.mark.parametrize("name", ["type", "values", "train", "embed", "dims", "fields"])
def test_conditions_may_be_called_what_modules_call_their_own(name):
    described_so = {name: ConditionSpec(kind="vector", width=2)}
    one, two = make_conditioners(described_so, 4), make_conditioners(described_so, 4)
    two.load_state_dict(one.state_dict())
    assert list(one.state_dict()) == [f"{name}.null_vector", f"{name}.project.weight", f"{name}.project.bias"]
    rows = torch.ones(3, 2)
    assert torch.equal(one.embed({name: rows}, 3).vector, two.embed({name: rows}, 3).vector)
    assert one.fields == {"vector"}


def test_names_that_cannot_be_saved_and_labels_without_a_null_are_refused():
    with pytest.raises(ValueError, match=r"'a\.b' cannot be saved; give it a name without dots"):
        make_conditioners({"a.b": ConditionSpec(kind="vector", width=2)}, 4)
    with pytest.raises(ValueError, match="'mood' is a label, which has no zero"):
        make_conditioners({"mood": ConditionSpec(kind="label", classes=("a", "b"), null="zero")}, 4)


def test_a_vector_whose_null_is_zero_has_no_offset():
    conditioner = VectorConditioner(2, 4, null="zero")
    assert [name for name, _ in conditioner.named_parameters()] == ["project.weight"]
    assert (conditioner(torch.zeros(3, 2)) == 0).all() and (conditioner.null(3) == 0).all()
    assert torch.equal(conditioner(torch.tensor([[1.0, 2.0]])), conditioner(torch.tensor([[-1.0, -2.0]])).neg())


@pytest.mark.parametrize("null", ["learned", "zero"])
@pytest.mark.parametrize("kind", ["text", "embedding"])
def test_sequences_have_one_readable_token_more_than_they_are_long(kind, null):
    spec = ConditionSpec(kind=kind, length=5, width=3 if kind == "embedding" else 0, null=null)
    conditioners = make_conditioners({"it": spec}, 8)
    lengths = torch.tensor([5, 2, 0])
    inside = torch.arange(5) < lengths[:, None]
    values = torch.where(inside, 97, -1) if kind == "text" else inside[..., None] * torch.ones(3, 5, 3)
    embedded = conditioners.embed({"it": values}, 3)
    assert embedded.mask.sum(1).tolist() == [6, 3, 1] and bool(embedded.mask[:, 0].all())
    assert (embedded.tokens[~embedded.mask] == 0).all()
    null_of_all = conditioners.embed(None, 3)
    assert torch.equal(embedded.tokens[2], null_of_all.tokens[2])
    same = torch.allclose(embedded.vector[2], null_of_all.vector[2], rtol=1e-5, atol=1e-6)
    assert same == (null == "zero")  # where the null is learned, an empty caption is said


def test_a_caption_is_read_in_order():
    conditioner = make_conditioners({"it": ConditionSpec(kind="text", length=3)}, 8)
    words = torch.tensor([[97, 98, 99], [99, 98, 97]])
    vector = conditioner.embed({"it": words}, 2).vector
    assert not torch.allclose(vector[0], vector[1], atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "values", "match"),
    [
        ("text", torch.zeros(2, 3), "expected int64 bytes"),
        ("text", torch.zeros(2, 6, dtype=torch.int64), "is 6 long.*at most 5"),
        ("text", torch.full((2, 5), 256), "holds 256; expected bytes"),
        ("embedding", torch.zeros(2, 5, 4), r"expected floats \(B, 5, 3\)"),
        ("embedding", torch.zeros(2, 6, 3), "is 6 long.*at most 5"),
        ("map", torch.zeros(2, 4, 4, 4), "3 channels and 2 spatial axes"),
        ("map", torch.zeros(2, 3, 4), "3 channels and 2 spatial axes"),
        ("map", torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "expected floats"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(kind, values, match):
    needed = {"text": {"length": 5}, "embedding": {"length": 5, "width": 3}, "map": {"width": 3}}[kind]
    conditioners = make_conditioners({"it": ConditionSpec(kind=kind, **needed)}, 8, dims=2)
    with pytest.raises(ValueError, match=f"condition 'it': .*{match}"):
        conditioners.embed({"it": values}, 2)
