"""From what users write to tensors: every kind of condition, one value or one per sample, and clear refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.models.test_bundle import stirred
from tests.oracles.continuous import process_of
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.models.bundle import load
from undiffuse.models.conditions import class_turns, fit_conditions
from undiffuse.models.model import Model
from undiffuse.networks.build import build_network
from undiffuse.networks.options import UNetOptions
from undiffuse.spec import ConditionSpec, DataSpec

CPU = torch.device("cpu")
SPEC = DataSpec(
    kind="image",
    shape=(3, 4, 6),
    range=(0, 255),
    classes=("cat", "dog"),
    cond={
        "colour": ConditionSpec(kind="label", classes=("red", "green", "blue")),
        "caption": ConditionSpec(kind="text", length=8),
        "clip": ConditionSpec(kind="embedding", length=3, width=2),
        "age": ConditionSpec(kind="vector", width=2, mean=(10.0, 0.0), std=(5.0, 2.0)),
        "depth": ConditionSpec(kind="map", width=1),
    },
)


def fitted(n: int = 2, **cond: Any) -> torch.Tensor:
    (rows,) = fit_conditions(cond, n, SPEC, CPU).values()
    return rows


def test_labels_of_any_name_are_numbers_or_names():
    assert fitted(colour="blue").tolist() == [2, 2]
    assert fitted(colour=["green", 0]).tolist() == [1, 0]
    assert fitted(label="dog").tolist() == [1, 1]


@pytest.mark.parametrize("value", ["né", ["né", "né"], [110, 195, 169], torch.tensor([[110, 195, 169]] * 2)])
def test_captions_become_bytes(value):
    assert fitted(caption=value).tolist() == [[110, 195, 169, -1, -1, -1, -1, -1]] * 2
    assert fitted(caption=value).dtype == torch.int64


def test_captions_may_differ_and_be_empty():
    assert (fitted(caption=["", "abcdefgh"]) >= 0).sum(1).tolist() == [0, 8]


def test_vectors_are_in_the_units_of_the_column():
    assert fitted(age=[15, 4]).tolist() == [[1.0, 2.0]] * 2
    assert fitted(age=[torch.tensor([15.0, 4.0]), torch.tensor([10.0, 0.0])]).tolist() == [[1.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    "given", [[[1.0, 2.0]], torch.ones(1, 2), np.ones((1, 2)), [torch.ones(1, 2), torch.ones(1, 2)]]
)
def test_embeddings_are_filled_up_with_zeros(given):
    rows = fitted(clip=given)
    assert rows.shape == (2, 3, 2) and (rows[:, 0] != 0).all() and (rows[:, 1:] == 0).all()


def test_embeddings_may_be_of_different_lengths():
    rows = fitted(clip=[torch.ones(1, 2), torch.ones(3, 2)])
    assert (rows != 0).any(-1).sum(1).tolist() == [1, 3]


def test_maps_are_for_all_or_one_each():
    assert fitted(depth=torch.zeros(1, 4, 6)).shape == (2, 1, 4, 6)
    assert fitted(depth=torch.zeros(2, 1, 4, 6)).shape == (2, 1, 4, 6)
    assert fitted(depth=[np.zeros((1, 4, 6)), np.ones((1, 4, 6))])[1].min() == 1


def test_maps_of_a_video_are_for_all_frames_or_one_each():
    video = DataSpec(kind="video", shape=(5, 3, 4, 6), cond={"depth": ConditionSpec(kind="map", width=1)})
    for shape in ((1, 4, 6), (5, 1, 4, 6), (2, 1, 4, 6), (2, 5, 1, 4, 6)):
        fit = fit_conditions({"depth": torch.zeros(shape)}, 2, video, CPU)["depth"]
        assert fit.shape == (2, *((5,) if 5 in shape else ()), 1, 4, 6)


def test_what_was_fitted_stays_as_it_is():
    once = fit_conditions({"age": [15, 4], "caption": "a"}, 4, SPEC, CPU)
    again = fit_conditions(once.rows(1, 3), 2, SPEC, CPU)
    assert again["age"].tolist() == [[1.0, 2.0]] * 2
    assert fit_conditions({"age": None}, 2, SPEC, CPU) == {}


@pytest.mark.parametrize(
    ("cond", "parts"),
    [
        ({"captoin": "a cat"}, ("'captoin' is unknown", "Did you mean 'caption'")),
        ({"colour": "gren"}, ("colour 'gren' does not exist", "Did you mean 'green'")),
        ({"colour": 3}, ("colour 3 does not exist", "0 to 2")),
        ({"colour": [0.5, 1]}, ("colour 0.5 is no class", "0 to 2")),
        ({"colour": [None, 1]}, ("colour None is no class",)),
        ({"caption": "a red square"}, ("'caption' is 12 bytes long", "at most 8")),
        ({"caption": ["a", 3]}, ("holds 3", "expected a string")),
        ({"caption": ["a", "b", "c"]}, ("3 rows", "1 or 2")),
        ({"caption": torch.zeros(9, dtype=torch.int64)}, ("(1, 9)", "int64 bytes (8,)")),
        ({"age": [1.0]}, ("(1, 1)", "(2,) or (2, 2)")),
        ({"age": "old"}, ("holds 'old'", "expected numbers")),
        ({"clip": torch.zeros(4, 2)}, ("(4, 2)", "up to 3, 2")),
        ({"clip": torch.zeros(2)}, ("(2,)",)),
        ({"depth": torch.zeros(1, 4, 4)}, ("(1, 4, 4)", "(1, 4, 6)")),
        ({"depth": torch.zeros(3, 1, 4, 6)}, ("3 rows", "1 or 2")),
        ({"depth": torch.zeros(1, 4, 6, dtype=torch.uint8)}, ("uint8", "[-1, 1]")),
    ],
)
def test_misfits_are_refused(cond, parts):
    with pytest.raises(ValueError) as caught:
        fit_conditions(cond, 2, SPEC, CPU)
    for part in parts:
        assert part in str(caught.value)


def test_classes_of_several_labels_take_turns_until_all_combinations_came():
    turns = class_turns(SPEC, 8)
    assert turns == {"label": [0, 1, 0, 1, 0, 1, 0, 1], "colour": [0, 0, 1, 1, 2, 2, 0, 0]}
    assert len({*zip(*turns.values(), strict=True)}) == 6
    assert class_turns(DataSpec(kind="vector", shape=(2,)), 3) == {}


def conditional_model() -> Model:
    cond = SPEC.cond | {"pose": ConditionSpec(kind="vector", width=1, null="zero")}
    spec = DataSpec(kind="image", shape=(3, 4, 6), range=(0, 255), classes=SPEC.classes, cond=cond)
    options = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2)
    denoiser = NetworkDenoiser(stirred(build_network(options, spec)), process_of("rf"), "velocity", spec=spec)
    return Model(denoiser, spec, {"steps": 2, "guidance": 2.0})


ALL: dict[str, Any] = {
    "label": ["cat", "dog", "cat"],
    "colour": "red",
    "caption": ["abc", "", "a dog"],
    "clip": torch.ones(2, 2),
    "age": [12, 1],
    "depth": torch.linspace(-1, 1, 24).reshape(1, 4, 6),
    "pose": [0.5],
}


def test_guided_samples_do_not_depend_on_the_batch_and_every_condition_matters():
    model = conditional_model()
    whole = model.sample(3, cond=ALL)
    torch.testing.assert_close(model.sample(3, cond=ALL, batch_size=2), whole, rtol=0, atol=0.01)  # of 255 levels
    for name in ALL:
        rest = {other: value for other, value in ALL.items() if other != name}
        assert not torch.allclose(model.sample(3, cond=rest), whole, atol=0.05), name


def test_a_map_is_of_the_size_that_is_asked_for():
    model = conditional_model()
    assert model.sample(2, cond={"depth": torch.zeros(1, 6, 8)}, size=(6, 8)).shape == (2, 3, 6, 8)
    assert model.sample(2, cond={"caption": "a"}, size=(6, 8)).shape == (2, 3, 6, 8)
    with pytest.raises(ValueError, match=r"expected \(1, 6, 8\)"):
        model.sample(2, cond={"depth": torch.zeros(1, 4, 6)}, size=(6, 8))


def test_the_default_guidance_needs_something_to_guide_by():
    model = conditional_model()
    assert model.sample_result(1, cond={"caption": "a", "pose": [1.0]}).nfe == 2 * model.sample_result(1).nfe
    assert model.sample_result(1, cond={"pose": [1.0]}).nfe == model.sample_result(1).nfe


def test_a_conditional_model_comes_back_from_disk(tmp_path):
    model = conditional_model()
    model.save(tmp_path / "m")
    assert torch.equal(load(tmp_path / "m").sample(3, cond=ALL), model.sample(3, cond=ALL))
