"""Columns to conditions: what is seen, what is asked for, what is missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from undiffuse.data import DataOptions
from undiffuse.data.columns import encode, encode_caption, read_conditions, with_conditions
from undiffuse.errors import DataError
from undiffuse.spec import ConditionSpec, DataSpec

COLUMNS = {
    "caption": [f"number {i}" for i in range(20)],
    "age": [float(i) for i in range(20)],
    "place": [[i, -i, 1.0] for i in range(20)],
    "shape": [("round", "square")[i % 2] for i in range(20)],
    "sharp": [i % 3 == 0 for i in range(20)],
    "id": list(range(20)),
    "url": [f"http://{i}" for i in range(20)],
    "label": [("b", "a")[i % 2] for i in range(20)],
}


def test_columns_are_seen_for_what_they_are():
    found = read_conditions(COLUMNS, DataOptions(), "the table")
    kinds = {name: spec.kind for name, spec in found.specs.items()}
    assert kinds == {"caption": "text", "age": "vector", "place": "vector", "shape": "label", "sharp": "label"}
    assert found.classes == ("a", "b") and found.labels.tolist() == [1, 0] * 10
    assert found.specs["shape"].classes == ("round", "square")
    assert found.specs["sharp"].classes == ("false", "true")
    assert any("not used: id, url" in note for note in found.notes)
    spec = with_conditions(DataSpec(kind="vector", shape=(1,)), found)
    assert list(spec.conditions) == ["label", "caption", "age", "place", "shape", "sharp"]


def test_vectors_are_standardised_and_their_scale_is_kept():
    found = read_conditions(COLUMNS, DataOptions(), "the table")
    place, spec = found.cond["place"], found.specs["place"]
    torch.testing.assert_close(place[:, :2].mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(place[:, :2].std(0, correction=0), torch.ones(2))
    assert spec.std[2] == 1.0 and (place[:, 2] == 0).all()  # what never varies is not blown up
    back = place.double().numpy() * np.array(spec.std) + np.array(spec.mean)
    np.testing.assert_allclose(back, COLUMNS["place"], atol=1e-5)


def test_kinds_can_be_asked_for():
    options = DataOptions(cond="age:label, url:text", label="shape")
    found = read_conditions(COLUMNS, options, "the table")
    assert {name: spec.kind for name, spec in found.specs.items()} == {"age": "label", "url": "text"}
    assert found.specs["age"].classes[:3] == ("0", "1", "2")
    assert found.classes == ("round", "square")
    assert read_conditions(COLUMNS, DataOptions(cond="none"), "it").specs == {}


def test_numbers_that_are_asked_for_are_a_vector_also_if_none_recurs():
    """As words they would be spelled, and a network could not tell that 19 lies beside 20."""
    found = read_conditions(COLUMNS, DataOptions(cond="id,url"), "the table")
    assert {name: spec.kind for name, spec in found.specs.items()} == {"id": "vector", "url": "text"}
    assert found.specs["id"].mean == (9.5,)
    assert any("condition id: 1 number(s), standardised" in note for note in found.notes)
    words = {**COLUMNS, "id": [str(i) for i in range(20)]}  # as a .csv has them
    assert read_conditions(words, DataOptions(cond="id"), "it").specs["id"] == found.specs["id"]
    assert read_conditions(COLUMNS, DataOptions(cond="id:text"), "it").specs["id"].kind == "text"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cond": "agee"}, "no column 'agee'.*Did you mean 'age'"),
        ({"label": "kind"}, "no column 'kind'"),
        ({"cond": "url:vector"}, "a vector needs numbers"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(DataError, match=message):
        read_conditions(COLUMNS, DataOptions(**options), "the table")


@pytest.mark.parametrize("text", ["a:b:c", "age:number", ":text", "source"])
def test_an_option_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match=r"data\.cond has the part"):
        DataOptions(cond=text)


def test_missing_captions_are_empty_and_missing_numbers_are_named():
    columns = {"caption": ["one", None, " "], "age": [1.0, float("nan"), 3.0], "label": ["x", "x", None]}
    found = read_conditions(columns, DataOptions(), "the table")
    assert (found.cond["caption"][1:] == -1).all()
    assert found.lacking == {1: "its age: it is missing", 2: "it has no label"}
    assert any("2 of 3 are empty" in note for note in found.notes)


def test_a_model_says_what_is_read():
    model = DataSpec(
        kind="vector",
        shape=(1,),
        classes=("a", "b", "c"),
        cond={"age": ConditionSpec(kind="vector", width=1, mean=(10.0,), std=(2.0,)), "mood": _text(4)},
    )
    found = read_conditions(COLUMNS, DataOptions(), "the table", model)
    assert list(found.specs) == ["age"] and found.cond["age"][:2, 0].tolist() == [-5.0, -4.5]
    assert found.classes == ("a", "b", "c")
    assert any("mood" in note for note in found.notes)
    with pytest.raises(DataError, match="does not know"):
        read_conditions({"label": ["z"]}, DataOptions(), "the table", model)


def _text(length: int) -> ConditionSpec:
    return ConditionSpec(kind="text", length=length)


@given(st.text(max_size=40), st.integers(1, 60))
def test_captions_are_cut_between_characters(text, length):
    row = encode_caption(text, length)
    assert row.shape == (length,) and row.dtype == np.int16
    kept = bytes(row[row >= 0].astype(np.uint8)).decode()
    assert text.startswith(kept)
    assert len(kept) == len(text) or len((kept + text[len(kept)]).encode()) > length


def test_numbers_of_classes_stand_for_their_names():
    found = read_conditions({"label": [1, 0, 2]}, DataOptions(), "it", classes={"label": ("z", "y", "x")})
    assert found.classes == ("z", "y", "x") and found.labels.tolist() == [1, 0, 2]


def test_words_that_read_as_numbers_are_numbers():
    assert encode("3.5", ConditionSpec(kind="vector", width=1, mean=(1.5,), std=(2.0,))).tolist() == [1.0]
