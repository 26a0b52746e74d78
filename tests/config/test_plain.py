from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.config.recipes import Data, Guidance, Recipe, Train, Transformer, UNet
from undiffuse.config import dump_yaml, load_yaml, resolve, to_dict
from undiffuse.errors import ConfigError

numbers = st.floats(allow_nan=False)  # NaN is unequal to itself; it has a test of its own
counts = st.integers(min_value=1, max_value=10**12)
unets = st.builds(UNet, channels=counts, multipliers=st.lists(st.integers()).map(tuple), dropout=numbers)
transformers = st.builds(lambda heads, size: Transformer(channels=heads * size, heads=heads), counts, counts)
networks = st.one_of(unets, transformers)
# A surrogate is no character: neither YAML nor JSON can carry one.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
recipes = st.builds(
    Recipe,
    name=st.one_of(texts, st.sampled_from(["1e-4", "20_000", "null", "true", "on", "~", "2024-01-01", "1:30", "{}"])),
    model=networks,
    data=st.builds(
        Data,
        source=texts,
        kind=st.sampled_from(["image", "text"]),
        folder=st.none() | st.sampled_from([Path("a/b"), Path("1")]),
        names=st.lists(texts, max_size=3).map(tuple),
        widths=st.dictionaries(texts, st.integers(), max_size=3),
    ),
    train=st.builds(
        Train,
        steps=st.integers(),
        lr=numbers,
        seed=st.none() | st.integers(),
        decay=st.sampled_from(["cosine", "none", "linear"]),
        resume=st.booleans(),
        max_norm=numbers | st.just("off"),
        betas=st.tuples(numbers, numbers),
    ),
    guidance=st.none() | st.builds(Guidance, scale=numbers, interval=st.none() | st.tuples(numbers, numbers)),
    student=st.none() | networks,
)


@given(recipes, recipes)
def test_a_dict_of_all_options_gives_them_back_whatever_lies_below(recipe: Recipe, below: Recipe):
    assert resolve(Recipe, to_dict(below), to_dict(recipe)) == recipe


@given(recipes)
def test_yaml_gives_the_options_back(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe):
    path = tmp_path_factory.mktemp("yaml") / "recipe.yaml"
    path.write_text(dump_yaml(recipe), encoding="utf-8")
    assert resolve(Recipe, load_yaml(path)) == recipe


@given(recipes)
def test_plain_data_holds_plain_types_only(recipe: Recipe):
    def check(value: object) -> None:
        assert type(value) in (dict, list, str, int, float, bool, type(None))
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(item)

    check(to_dict(recipe))


def test_yaml_keeps_the_order_of_the_fields_and_nan():
    text = dump_yaml(Train(lr=float("nan")))
    assert [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()] == list(vars(Train()))
    assert "lr: .nan" in text


def test_yaml_files_spell_numbers_as_people_do(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("train:\n  lr: 1e-4\n  steps: 20_000\n  betas: [0.9, 99e-2]\nname: 1e-4\n")
    recipe = resolve(Recipe, load_yaml(path))
    assert recipe.train == Train(lr=1e-4, steps=20_000, betas=(0.9, 0.99))
    assert recipe.name == "1e-4"


def test_an_empty_yaml_file_is_an_empty_layer(tmp_path: Path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    "content",
    [b"a: [1", b"- 1\n- 2\n", b"just words", b"\xff\xfe\x00", b"a: !!python/object/apply:os.getcwd []", b"a: b: c"],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_yaml(path)


def test_a_missing_file_stays_an_os_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize("value", [Train, {"steps": 1}, None])
def test_only_option_objects_become_dicts(value: object):
    with pytest.raises(TypeError, match="option object"):
        to_dict(value)
