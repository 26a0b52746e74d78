from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tests.config.recipes import Data, Guidance, Recipe, Required, Train, Transformer, UNet
from undiffuse.config import resolve
from undiffuse.errors import ConfigError


def test_no_layers_give_the_defaults():
    assert resolve(Recipe) == Recipe()


def test_nested_mappings_dotted_keys_and_arguments_say_the_same():
    expected = Recipe(train=Train(steps=5, lr=0.5))
    assert resolve(Recipe, {"train": {"steps": 5, "lr": 0.5}}) == expected
    assert resolve(Recipe, {"train.steps": 5, "train.lr": 0.5}) == expected
    assert resolve(Recipe, ["train.steps=5", "train.lr=0.5"]) == expected


def test_later_layers_win_and_keep_what_they_do_not_name():
    recipe = resolve(Recipe, {"train": {"steps": 5, "lr": 0.5}}, ["train.steps=6"], {"train": {"steps": 7}})
    assert recipe.train == Train(steps=7, lr=0.5)


def test_within_a_layer_the_last_entry_wins():
    assert resolve(Recipe, ["train.steps=5", "train.steps=6"]).train.steps == 6


# --- leaves as text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.steps=20_000", Train(steps=20_000)),
        ("train.steps=2e4", Train(steps=20_000)),
        ("train.lr=1e-4", Train(lr=1e-4)),
        ("train.lr=3", Train(lr=3.0)),
        ("train.lr=inf", Train(lr=float("inf"))),
        ("train.seed=none", Train(seed=None)),
        ("train.seed=7", Train(seed=7)),
        ("train.decay=none", Train(decay="none")),
        ("train.resume=true", Train(resume=True)),
        ("train.resume=No", Train(resume=False)),
        ("train.max_norm=off", Train(max_norm="off")),
        ("train.max_norm=2", Train(max_norm=2.0)),
        ("train.betas=0.8,0.9", Train(betas=(0.8, 0.9))),
        ("train.betas=(0.8, 9e-1)", Train(betas=(0.8, 0.9))),
        ("train.betas=[0.8, 9e-1]", Train(betas=(0.8, 0.9))),
    ],
)
def test_text_is_read_by_the_type_of_the_field(text: str, expected: Train):
    train = resolve(Recipe, [text]).train
    assert train == expected
    assert [type(value) for value in vars(train).values()] == [type(value) for value in vars(expected).values()]


@pytest.mark.parametrize("text", ["123", "1e-4", "true", "none", "[1, 2]", "a=b", "", " padded "])
def test_text_for_a_string_is_kept_letter_by_letter(text: str):
    assert resolve(Recipe, [f"name={text}"]).name == text


@pytest.mark.parametrize(
    ("text", "names"), [("a,b", ("a", "b")), ("1,2", ("1", "2")), ("[]", ()), ("one", ("one",)), ("", ())]
)
def test_lists_of_strings_keep_numbers_as_text(text: str, names: tuple[str, ...]):
    assert resolve(Recipe, [f"data.names={text}"]).data.names == names


def test_paths_and_mappings_are_leaves():
    data = resolve(Recipe, ["data.folder=a/b", "data.widths={a: 3, b: 2e1}"]).data
    assert data == Data(folder=Path("a/b"), widths={"a": 3, "b": 20})


# --- leaves as plain data


def test_yaml_numbers_read_as_text_are_numbers():
    train = resolve(Recipe, {"train": {"lr": "1e-4", "steps": 2e4, "betas": ["8e-1", 0.9]}}).train
    assert train == Train(lr=1e-4, steps=20_000, betas=(0.8, 0.9))
    assert type(train.steps) is int


def test_numpy_numbers_and_paths_pass():
    recipe = resolve(Recipe, {"train": {"steps": np.int64(5), "lr": np.float32(0.5)}, "data.folder": Path("x")})
    assert recipe.train == Train(steps=5, lr=0.5)
    assert recipe.data.folder == Path("x")


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (["train.steps=many"], ("train.steps", "'many'", "expected int")),
        (["train.steps=1.5"], ("train.steps", "'1.5'", "expected int")),
        (["train.resume=1"], ("train.resume", "'1'", "expected true | false")),
        (["train.decay=cosin"], ("train.decay", "'cosin'", "expected 'cosine' | 'none' | 'linear'")),
        (["train.betas=1,2,3"], ("train.betas", "'1,2,3'", "expected tuple[float, float]")),
        (["train.betas=[1,"], ("train.betas", "'[1,'")),
        (["train.seed=x"], ("train.seed", "'x'", "expected int | none")),
        ({"train": {"steps": True}}, ("train.steps=True", "expected int")),
        ({"train": {"steps": None}}, ("train.steps=None", "expected int")),
        ({"train": {"lr": [1.0]}}, ("train.lr=[1.0]", "expected float")),
        ({"train": {"resume": 1}}, ("train.resume=1", "expected true | false")),
        ({"name": 5}, ("name=5", "expected str", "quotes")),
        ({"name": object}, ("name=", "expected str")),
        ({"data": {"widths": {"a": "x"}}}, ("data.widths", "expected dict[str, int]")),
    ],
)
def test_a_wrong_type_names_the_key_the_value_and_the_type(layer, words: tuple[str, ...]):
    with pytest.raises(ConfigError) as caught:
        resolve(Recipe, layer)
    for word in words:
        assert word in str(caught.value)


def test_values_that_contain_themselves_are_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ConfigError, match=r"train\.betas"):
        resolve(Recipe, {"train": {"betas": loop}})


# --- unknown keys


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.stepz", "train.steps"),
        ("steps", "train.steps"),
        ("trian.steps", "train.steps"),
        ("modl.channels", "model.channels"),
        ("train.steps.more", "train.steps"),
        ("guidance.scal", "guidance.scale"),
        ("--train.lr", "train.lr"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest(key: str, nearest: str):
    for layer in ([f"{key}=1"], {key: 1}):
        with pytest.raises(ConfigError) as caught:
            resolve(Recipe, layer)
        assert repr(key) in str(caught.value)
        assert repr(nearest) in str(caught.value)


def test_an_unknown_key_in_a_nested_mapping_is_named_in_full():
    with pytest.raises(ConfigError, match=r"'train\.stepz'.*'train\.steps'"):
        resolve(Recipe, {"train": {"stepz": 1}})


def test_an_option_of_another_kind_says_which_kind_it_belongs_to():
    with pytest.raises(ConfigError, match=r"model\.heads belongs to model=transformer"):
        resolve(Recipe, ["model.heads=2"])


def test_keys_that_are_no_text_are_refused():
    with pytest.raises(ConfigError, match="keys are text"):
        resolve(Recipe, {"train": {1: 2}})


def test_an_argument_without_value_is_refused():
    with pytest.raises(ConfigError, match="key=value"):
        resolve(Recipe, ["train.steps"])


@pytest.mark.parametrize("layer", ["train.steps=1", None, 5])
def test_layers_of_another_type_are_refused(layer):
    with pytest.raises(TypeError, match="layer"):
        resolve(Recipe, layer)


# --- tagged groups


@pytest.mark.parametrize("layer", [["model=unet"], ["model.kind=unet"], {"model": "unet"}, {"model": {"kind": "unet"}}])
def test_naming_a_kind_starts_the_group_from_the_defaults_of_its_class(layer):
    assert Recipe().model == UNet(channels=48)
    assert resolve(Recipe, ["model.dropout=0.5"], layer).model == UNet()


def test_a_kind_can_be_switched_and_its_options_set_in_order():
    assert resolve(Recipe, ["model=transformer", "model.heads=2"]).model == Transformer(heads=2)
    assert resolve(Recipe, ["model.channels=64", "model=transformer"]).model == Transformer()
    assert resolve(Recipe, ["model=transformer"], ["model=unet", "model.channels=8"]).model == UNet(channels=8)


def test_without_a_kind_the_group_keeps_its_values():
    assert resolve(Recipe, {"model": {"dropout": 0.5}}).model == UNet(channels=48, dropout=0.5)


def test_in_one_mapping_the_kind_goes_first():
    assert resolve(Recipe, {"model": {"heads": 2, "kind": "transformer"}}).model == Transformer(heads=2)


def test_a_group_can_be_given_as_a_flow_mapping_or_as_an_option_object():
    assert resolve(Recipe, ["model={kind: transformer, heads: 2}"]).model == Transformer(heads=2)
    assert resolve(Recipe, {"model": Transformer(heads=2)}, ["model.channels=64"]).model == Transformer(
        heads=2, channels=64
    )


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (["model=unett"], ("model='unett'", "unet, transformer")),
        ({"model": {"kind": 5}}, ("model=5", "unet, transformer")),
        ({"model": {"kind": ["unet"]}}, ("model=['unet']", "unet, transformer")),
        ({"model": 5}, ("model=5", "is a group", "unet, transformer")),
        ({"model": Guidance()}, ("model=Guidance", "is a group")),
        (["model=none"], ("model=None", "unet, transformer")),
        (["model={kind: "], ("model", "not valid YAML")),
        (["train=5"], ("train='5'", "is a group", "train.steps")),
    ],
)
def test_a_group_set_wrongly_says_how_to_set_it(layer, words: tuple[str, ...]):
    with pytest.raises(ConfigError) as caught:
        resolve(Recipe, layer)
    for word in words:
        assert word in str(caught.value)


def test_kind_is_an_ordinary_option_of_a_group_with_one_class():
    assert resolve(Recipe, ["data.source=x", "data.kind=text"]).data == Data(source="x", kind="text")


# --- optional groups


def test_optional_groups_are_started_by_their_options_and_ended_by_none():
    assert resolve(Recipe, ["guidance.scale=3"]).guidance == Guidance(scale=3.0)
    assert resolve(Recipe, ["guidance={}"]).guidance == Guidance()
    assert resolve(Recipe, {"guidance": {"interval": [0.1, 1]}}).guidance == Guidance(interval=(0.1, 1.0))
    assert resolve(Recipe, ["guidance.scale=3", "guidance=none"]).guidance is None
    assert resolve(Recipe, {"guidance": {}}, {"guidance": None}).guidance is None


def test_an_optional_tagged_group_asks_for_its_kind():
    assert resolve(Recipe, ["student=transformer", "student.heads=2"]).student == Transformer(heads=2)
    with pytest.raises(ConfigError, match=r"student is none; choose one of unet, transformer"):
        resolve(Recipe, ["student.channels=2"])


# --- validation by the classes


def test_a_refused_value_names_its_group():
    with pytest.raises(ConfigError, match=r"^model: channels=0 must be at least 1\.$"):
        resolve(Recipe, ["model.channels=0"])


def test_only_the_final_values_are_checked_together():
    # After the first argument 10 channels do not split into 4 heads; after the second they do split into 5.
    layers = ["model=transformer", "model.channels=10", "model.heads=5"]
    assert resolve(Recipe, layers).model == Transformer(channels=10, heads=5)


def test_required_values_are_asked_for():
    given = {"source": "x", "model": "unet"}
    assert resolve(Required, given) == Required(source="x", train=Train(), model=UNet())
    with pytest.raises(ConfigError, match="source is required"):
        resolve(Required, {"model": "unet"})
    with pytest.raises(ConfigError, match="model is required"):
        resolve(Required, {"source": "x"})
    with pytest.raises(ConfigError, match="model is required; choose one of unet, transformer"):
        resolve(Required, ["model.channels=4"])


def test_mutable_defaults_are_not_shared():
    resolve(Recipe).data.widths["a"] = 1
    assert resolve(Recipe).data.widths == {}


# --- option classes that cannot work


@dataclass(frozen=True, kw_only=True)
class NoKind:
    width: int = 1


@dataclass(frozen=True, kw_only=True)
class AlsoUNet:
    kind: Literal["unet"] = "unet"


@dataclass(frozen=True, kw_only=True)
class UntoldUnion:
    model: UNet | NoKind = field(default_factory=UNet)


@dataclass(frozen=True, kw_only=True)
class SameKind:
    model: UNet | AlsoUNet = field(default_factory=UNet)


@dataclass(frozen=True, kw_only=True)
class Mixed:
    model: UNet | int = 3


@pytest.mark.parametrize("recipe", [UntoldUnion, SameKind, Mixed, int])
def test_trees_that_cannot_be_told_apart_are_programming_errors(recipe: type):
    with pytest.raises(TypeError):
        resolve(recipe)
