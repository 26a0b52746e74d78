"""Help answers at once: it imports nothing heavy, and what it says is true."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from undiffuse.cli import train
from undiffuse.cli.help import sorted_into
from undiffuse.cli.main import COMMANDS, SECTIONS, _load, run

HEAVY = {"torch", "numpy", "pydantic", "yaml", "rich", "PIL", "matplotlib", "sklearn", "scipy", "accelerate"}


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words: list[str]):
    code = f"import sys; from undiffuse.cli.main import run; assert run({words!r}) == 0; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.splitlines()[-1].split()) & HEAVY


@pytest.mark.parametrize("name", COMMANDS)
def test_every_sub_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]):
    assert run([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"undiffuse {name}" in said
    assert "--json" in said


def test_the_overview_lists_every_sub_command(capsys: pytest.CaptureFixture[str]):
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", said, re.MULTILINE)


def test_the_overview_names_each_command_under_one_title():
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_sections_of_options_name_parameters_once(name: str):
    function = _load(COMMANDS[name][0])
    titled = [each for names in getattr(sys.modules[function.__module__], "SECTIONS", {}).values() for each in names]
    assert len(titled) == len(set(titled))
    assert set(titled) <= set(inspect.signature(function).parameters)


def test_what_no_section_names_comes_last():
    sections = {"A": ("three", "one", "gone"), "B": ("gone",)}
    found = sorted_into(sections, ["one", "two", "three"], "Others")
    assert list(found.items()) == [("A", ["three", "one"]), ("Others", ["two"])]


def test_the_recipes_in_the_help_of_train_are_the_recipes_there_are():
    from undiffuse.training.recipe import RECIPES

    block = train.EPILOG.split("\b")[1]
    assert tuple(re.findall(r"^  ([\w-]+)  ", block, re.MULTILINE)) == RECIPES


def test_the_keys_in_the_help_of_train_can_be_set():
    from undiffuse.config import resolve
    from undiffuse.training.recipe import Recipe

    block = train.EPILOG.split("\b")[2]
    shown = re.findall(r"^  ([\w.]+=\S+)  ", block, re.MULTILINE)
    assert len(shown) >= 8
    recipe = resolve(Recipe, shown)
    assert recipe.train.steps == 20_000
    assert {text.partition(".")[0] for text in shown} <= {field.name for field in fields(Recipe)}
