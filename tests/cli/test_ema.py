from __future__ import annotations

import json
from pathlib import Path

import pytest

from undiffuse.cli.ema import _read_widths
from undiffuse.cli.main import run
from undiffuse.models import load
from undiffuse.training.run import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = ["model.width=16", "model.depth=1", "data.limit=200"]
    short = {"steps": 40, "batch_size": 16, "preview_every": 0, "snapshot_every": 4}
    return train("moons", out=tmp_path_factory.mktemp("ema") / "run", overrides=small, **short).folder


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_width_becomes_a_model_that_can_be_evaluated(trained, capsys):
    code, out, _ = answer(capsys, "ema", trained, "--width", "0.07", "--json")
    assert code == 0
    folder = Path(json.loads(out)["model"])
    assert folder == trained / "ema" / "width-0.07"
    assert load(folder).info["ema"] == 0.07
    assert (folder / "recipe.yaml").read_text() == (trained / "recipe.yaml").read_text()


def test_a_width_that_the_snapshots_do_not_reach_is_warned_about(trained, tmp_path, capsys):
    code, out, _ = answer(capsys, "ema", trained, "--width", "0.01", "--out", tmp_path / "model")
    assert code == 0 and "warning: the snapshots miss the profile of width 0.01 by" in out
    assert load(tmp_path / "model").spec.kind == "vector"


def test_a_sweep_says_which_width_is_best_and_the_report_draws_it(trained, capsys):
    code, out, _ = answer(capsys, "ema", trained, "--sweep", "--widths", "0.05,0.1", "-n", "64", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["best"] == min(found["rows"], key=lambda row: row["loss"])["width"]
    assert [row["width"] for row in found["rows"]] == [0.05, 0.1]
    logged = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines() if "validation" in line]
    assert found["rows"][0]["loss"] == pytest.approx(logged[-1]["validation"]["loss"], rel=0.5)
    assert json.loads((trained / "ema" / "sweep.json").read_text())["rows"] == found["rows"]
    assert answer(capsys, "report", trained)[0] == 0
    assert "by the width of the average" in (trained / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [(), ("--width", "0.03", "--sweep")])
def test_one_of_the_two_is_asked_for(trained, capsys, words):
    code, _, err = answer(capsys, "ema", trained, *words)
    assert code == 1 and "either --width 0.03" in err


def test_a_run_without_snapshots_and_words_for_widths_are_refused(tmp_path, capsys):
    code, _, err = answer(capsys, "ema", tmp_path, "--width", "0.03")
    assert code == 1 and "train.snapshot_every" in err
    with pytest.raises(ValueError, match=r"0\.02,0\.05,0\.1"):
        _read_widths("small,large")
