from __future__ import annotations

from pathlib import Path

import pytest
import typer

from undiffuse.cli.runs import Target, again, read_words
from undiffuse.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_data_and_changes_are_told_apart():
    assert read_words(["photos", "train.steps=3"], None, None) == Target("photos", None, None, ["train.steps=3"])


def test_digits_are_data_although_a_recipe_has_that_name():
    assert read_words(["digits"], None, None).source == "digits"


def test_the_name_of_a_recipe_is_a_recipe_unless_a_folder_has_it():
    assert read_words(["text", "data.source=a.txt"], None, None) == Target(None, "text", None, ["data.source=a.txt"])
    Path("text").mkdir()
    assert read_words(["text"], None, None) == Target("text", None, None, [])


def test_a_yaml_file_is_a_recipe():
    assert read_words(["mine.yaml"], None, Path("x")) == Target(None, "mine.yaml", Path("x"), [])


def test_with_a_recipe_named_the_word_is_data():
    assert read_words(["text"], "text", None) == Target("text", "text", None, [])


def test_the_folder_of_a_run_goes_on_with_it():
    run = Path("runs/photos")
    (run / "checkpoints").mkdir(parents=True)
    (run / "recipe.yaml").touch()
    assert read_words([str(run)], None, None) == Target(None, "runs/photos/recipe.yaml", run, [])


def test_a_folder_whose_name_holds_an_equals_sign_is_data():
    Path("a=b").mkdir()
    assert read_words(["a=b", "train.lr=1"], None, None) == Target("a=b", None, None, ["train.lr=1"])


def test_data_named_by_a_key_alone_are_enough():
    assert read_words(["data.source=moons"], None, None) == Target(None, None, None, ["data.source=moons"])


def test_nothing_and_too_much_are_wrong_usage():
    for words in ([], ["train.steps=3"], ["digits", "moons"]):
        with pytest.raises(typer.BadParameter):
            read_words(words, None, None)


def test_a_near_miss_of_a_recipe_is_not_taken_for_a_file():
    with pytest.raises(ConfigError, match="did you mean 'vector'"):
        read_words(["vectr"], None, None)


def test_the_command_that_does_it_again_names_data_recipe_and_changes():
    target = Target("my photos", "vq-image", None, []).with_settings(seed=3, device=None)
    expected = "undiffuse train-codec 'my photos' --recipe vq-image train.seed=3 --out runs/it"
    assert again("train-codec", target, Path("runs/it")) == expected
    assert again("train", Target(None, "text", None, []), Path("runs/it")) == "undiffuse train text --out runs/it"
