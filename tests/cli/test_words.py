"""One word for one thing: options that several commands have are those of the table in CONTRIBUTING.md."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from undiffuse.cli.main import COMMANDS, _load, run

TAKES: dict[str, set[Any]] = {
    "flag": {bool},
    "whole number": {int},
    "whole numbers": {int, str},
    "number": {float},
    "numbers": {float, str, list[float]},
    "word": {str},
    "words": {str, list[str]},
    "file": {Path},
}
_ROW = re.compile(r"^\| `(-[\w-]+)` \| ([\w ]+) \| (.+) \|$", re.MULTILINE)


def options(command: str) -> dict[str, Any]:
    """Return the options of a command by name, with their types."""
    found = {}
    for name, hint in get_type_hints(_load(COMMANDS[command][0]), include_extras=True).items():
        told = next(iter(getattr(hint, "__metadata__", ())), None)
        if type(told).__name__ == "OptionInfo":
            written = [*([told.default] if isinstance(told.default, str) else []), *(told.param_decls or ())]
            kinds = [kind for kind in get_args(hint.__origin__) if kind is not NoneType]
            is_union = kinds and get_origin(hint.__origin__) is not list
            key = written[0].split("/")[0] if written else f"--{name.replace('_', '-')}"
            found[key] = kinds[0] if is_union else hint.__origin__
    return found


def test_options_of_several_commands_are_those_of_the_table_and_take_what_it_says():
    table = {
        name: kind for name, kind, _ in _ROW.findall(Path(__file__).parents[2].joinpath("CONTRIBUTING.md").read_text())
    }
    used: dict[str, dict[str, Any]] = defaultdict(dict)
    for command in COMMANDS:
        for name, kind in options(command).items():
            used[name][command] = kind
    shared = {name for name, commands in used.items() if len(commands) > 1}
    assert shared <= table.keys(), "say in CONTRIBUTING.md what these mean in every command"
    assert not table.keys() - shared, "these are no longer shared"
    for name in shared:
        wrong = {command: kind for command, kind in used[name].items() if kind not in TAKES[table[name]]}
        assert not wrong, f"{name} takes {table[name]}"


@pytest.mark.parametrize(
    "words",
    [
        ("info", "digits"),
        ("solvers", "--on", "digits"),
        ("self-bench", "digits"),
        ("bench-compose", "digits", "labelled:digits"),
        ("bench-restore", "digits"),
        ("cka", "digits", "--data", "digits"),
        ("inpaint", "digits", "one.png", "--mask", "mask.png"),
        ("interpolate", "digits", "one.png", "other.png"),
        ("restore", "digits", "one.png", "--mask", "mask.png"),
    ],
)
def test_commands_load_models_as_they_are_asked_to(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert run([*words, "--load", "size=8"]) == 1
    assert "size is an option of pretrained pipelines; digits is none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("info", "data:digits"), "data:digits is no model"),
        (("solvers",), "--load needs --on MODEL"),
        (("bench-restore", "digits-mixture"), "digits-mixture is none"),
    ],
)
def test_options_of_loading_are_refused_where_nothing_is_loaded(words, said, capsys: pytest.CaptureFixture[str]):
    assert run([*words, "--load", "size=8"]) == 1
    assert said in capsys.readouterr().err
