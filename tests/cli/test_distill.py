"""`undiffuse distill`: a model becomes a student, and every command knows what that is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undiffuse.cli.main import run
from undiffuse.training.run import train


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = ["model.width=16", "model.depth=1", "data.limit=200"]
    folder = tmp_path_factory.mktemp("distill") / "run"
    return train("moons", out=folder, overrides=small, steps=20, batch_size=16, preview_every=0).folder


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_model_becomes_a_student_on_its_own_data(teacher, tmp_path, capsys):
    out = tmp_path / "fast"
    words = [
        "distill",
        teacher,
        "--method",
        "progressive",
        "objective.last_steps=2",
        "--train-steps",
        9,
        "--out",
        out,
        "--json",
    ]
    code, said, _ = answer(capsys, *words)
    found = json.loads(said)
    assert code == 0 and found["steps"] == 9 and found["evaluations"] == 2 and Path(found["model"]).is_file()
    code, said, _ = answer(capsys, "info", out, "--json")
    facts = json.loads(said)
    assert code == 0 and facts["flow map"] == "jumps: the steps of a grid" and facts["trained on"] == "moons"
    assert facts["defaults"] | {"solver": "flow-map", "steps": 2, "grid": "t"} == facts["defaults"]
    code, said, _ = answer(capsys, "sample", out, "-n", 8, "--out", tmp_path / "samples")
    assert code == 0 and "2 network evaluations each" in said
    code, said, _ = answer(capsys, "evaluate", out, "-n", 64, "--json")
    assert code == 0
    code, said, _ = answer(capsys, *words)  # done already: the same model once more
    assert code == 0 and json.loads(said)["steps"] == 9


def test_the_methods_are_listed(teacher, capsys):
    code, said, _ = answer(capsys, "distill", teacher, "--method", "help")
    assert code == 0 and "consistency-training" in said


def test_what_does_not_fit_is_said_in_one_line(teacher, tmp_path, capsys):
    for words, problem in (
        (["--method", "magic"], "method 'magic' is unknown"),
        (["moons"], "write KEY=VALUE, and data as --data moons"),
        (["objective.first_steps=3", "--method", "progressive"], "times a power of 2"),
    ):
        code, _, said = answer(capsys, "distill", teacher, *words, "--train-steps", 1, "--out", tmp_path / "x")
        assert code != 0 and problem in said and "Traceback" not in said
