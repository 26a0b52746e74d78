"""`undiffuse solvers`, and the guidance of `undiffuse sample`, from words to files."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import undiffuse as ud
from undiffuse.cli.guides import GuidanceWords, read_guides
from undiffuse.cli.main import run
from undiffuse.metrics.classifier import ClassifierConfig, build_classifier, save_classifier
from undiffuse.models.bundle import save_defaults
from undiffuse.sampling.registry import SOLVERS

QUICK = ["--evaluations", "3", "--solver", "ddim,dpm++2m", "--grid", "t", "-n", "2", "--set-size", "0", "--no-tune"]


def test_the_table_lists_every_solver(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["solvers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["solvers"]
    assert [row["name"] for row in found] == list(SOLVERS)
    assert run(["solvers"]) == 0
    said = capsys.readouterr().out
    assert all(f" {name} " in said for name in SOLVERS)


def test_the_table_comes_without_torch() -> None:
    code = "import sys; from undiffuse.cli.main import run; run(['solvers']); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the built-in model, which may be changed."""
    return ud.load("digits").save(tmp_path / "copy")


def short_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    from undiffuse.analysis import solver_choice

    whole = solver_choice.choose_solver
    monkeypatch.setattr(solver_choice, "choose_solver", lambda model, **o: whole(model, **o, reference_steps=15))


def test_a_model_is_tried_and_keeps_what_is_recommended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short_choice(monkeypatch)
    assert run(["solvers", "--on", str(folder), *QUICK, "--save", "3", "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    best = result["recommended"]["3"]
    assert best["words"] in shown.err and best["command"] in shown.err
    assert best["command"] == f"undiffuse sample {folder} --solver {best['solver']} --steps 3 --grid=t"
    assert json.loads((folder / "solvers.json").read_text())["recommended"]["3"] == best
    page = (folder / "solvers.html").read_text()
    assert "data:image/png" in page and best["words"] in page
    model = ud.load(folder)
    assert {key: model.defaults[key] for key in ("solver", "steps", "grid")} == {
        "solver": best["solver"],
        "steps": 3,
        "grid": "t",
    }
    assert model.defaults["guidance"] == 1.0  # as before


@pytest.mark.parametrize(
    ("asked", "words", "kept"),
    [
        (["--guidance", "2", "--label", "3"], "--guidance 2 --cond label=3", {"guidance": 2.0}),
        (["--guidance", "2"], "--guidance 2", {"guidance": 2.0}),
        (["--label", "none", "--threshold", "static"], "--threshold static --cond label=none", {"threshold": "static"}),
    ],
)
def test_a_recommendation_tells_what_the_trials_shared(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: list[str],
    words: str,
    kept: dict[str, Any],
) -> None:
    short_choice(monkeypatch)
    assert run(["solvers", "--on", str(folder), *QUICK, *asked, "--save", "3", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["recommended"]["3"]
    assert best["command"].endswith(f" --grid=t {words}")
    assert run([*shlex.split(best["command"])[1:], "-n", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["evaluations"] == best["nfe"] == (2 if "--guidance" in asked else 3)
    defaults = ud.load(folder).defaults
    assert best["defaults"].items() <= defaults.items() and kept.items() <= best["defaults"].items()


def test_a_fitted_grid_can_be_kept_and_used(folder: Path) -> None:
    save_defaults(folder, {"solver": "unipc", "steps": 4, "grid": "logsnr:-4:3:0.2"})
    model = ud.load(folder)
    kept = model.sample(2)
    given = ud.load("digits").sample(2, solver="unipc", steps=4, grid="logsnr:-4:3:0.2")
    assert bool((kept == given).all())


def test_wrong_words_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--save", "3"], "--save needs --on MODEL"),
        (["--guidance", "2"], "--guidance needs --on MODEL"),
        (["--evaluations", "5"], "--evaluations needs --on MODEL"),
        (["--restore", "-n", "3"], "--count needs --on MODEL"),
        (["--set-size", "0"], "--set-size needs --on MODEL"),
        (["--on", "digits", "--solver", "ddpm", "--set-size", "0"], "take random steps"),
        (["--on", "digits", "--evaluations", "5,x"], "holds something else than whole numbers"),
        (["--on", "digits", "--save", "7"], "--save 7 was not measured"),
        (["--on", "digits", "--save", "10"], "digits is built in"),
        (["--on", str(folder), "--solver", "ddimm"], "Did you mean 'ddim'?"),
        (["--on", "digits", "--label", "3,4"], "label has several values; all items share one"),
        (["--on", "digits", "--grid", "nope"], "grid 'nope' is unknown"),
    ):
        assert run(["solvers", *words]) != 0
        assert message in capsys.readouterr().err


def words(**changes: Any) -> GuidanceWords:
    return GuidanceWords(**{"negative": [], **changes})


def test_words_of_guidance_become_arguments(tmp_path: Path) -> None:
    import torch

    model = ud.load("digits")
    judge = save_classifier(build_classifier(ClassifierConfig(shape=(1, 8, 8), classes=model.spec.classes)), tmp_path)
    asked = words(
        negative=["label=3,8"], autoguide="digits", classifier=str(judge), classifier_scale=0.5, threshold="none"
    )
    found = read_guides(asked, model, 4, {"label": [1, 2, 1, 2]}, "cpu", torch.float32)
    assert found["negative"] == {"label": ["3", "8", "3", "8"]}
    assert found["threshold"] == "none" and isinstance(found["autoguide"], ud.Model)
    assert found["classifier"].label.tolist() == [1, 2, 1, 2] and found["classifier"].scale == 0.5
    named = read_guides(words(classifier=str(judge), classifier_label=["7"]), model, 2, None, "cpu", torch.float32)
    assert named["classifier"].label.tolist() == [7, 7]
    with pytest.raises(ValueError, match="needs --classifier-label here"):
        read_guides(words(classifier=str(judge)), model, 2, None, "cpu", torch.float32)
    assert read_guides(words(), model, 2, None, "cpu", torch.float32) == {}
    samples = model.sample(2, cond={"label": 1}, guidance=2.0, steps=2, classifier=found["classifier"].rows(0, 2))
    assert samples.shape == (2, 1, 8, 8)
