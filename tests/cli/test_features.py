"""`undiffuse features`, `probe` and `cka`: files, reports, and one line for what cannot be done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import undiffuse as ud
from undiffuse.cli.main import run
from undiffuse.tasks.features import load_probe


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_features_are_listed_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = asked(capsys, "features", "digits", "--list", "--json")
    assert code == 0, err
    assert json.loads(out)["layers"]["mid"] == [64, 4, 4]
    words = ("features", "digits", "digits", "-n", "6", "--layer", "mid", "--layer", "up1.0", "--t", "0", "--t", "0.2")
    code, out, err = asked(capsys, *words, "--pool", "2", "--seed", "4", "--out", "there/f.npz", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["n"], found["features"]) == (6, 4 * 256)
    assert list(found["parts"]) == ["mid@0", "up1.0@0", "mid@0.2", "up1.0@0.2"]
    table = ud.features(ud.load("digits"), "digits", layers=["mid", "up1.0"], t=[0.0, 0.2], pool=2, n=6, seed=4)
    np.testing.assert_array_equal(np.load("there/f.npz")["features"], table.values.numpy())


def test_a_probe_is_searched_for_judged_and_saved(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("probe", "digits", "digits", "-n", "60", "--t", "0.1", "--pool", "2", "--out", "p", "--json")
    words = (*words, "--head-option", "alpha=30")
    code, out, err = asked(capsys, *words)
    assert code == 0, err
    found = json.loads(out)
    assert (found["learned_from"], found["judged_by"]) == (60, 400)
    assert found["search"]["items"] == 60 and found["search"]["best"]["pool"] == 2
    assert [row["name"] for row in found["rows"]][1:] == ["the same of the untrained network", "raw items"]
    assert found["accuracy"] > found["rows"][1]["accuracy"] + 0.1 and found["accuracy"] > 0.8  # with 60 labels
    page = Path(found["report"]).read_text()
    assert ("Which block, time and pooling" in page and "labels of each class" in page) or "Few labels" in page
    assert json.loads(Path(found["results"]).read_text())["rows"] == found["rows"]
    probe = load_probe("p", ud.load("digits"))
    assert probe.classes == tuple("0123456789") and probe.options.alpha == 30
    assert probe.encoder.settings["layers"] == [found["search"]["best"]["layer"]]


def test_layers_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("cka", "digits", "--data", "digits", "-n", "12", "--layer", "mid", "--layer", "up0.0", "--unbiased")
    code, out, err = asked(capsys, *words, "--out", "c", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["first"] == found["second"] == ["mid", "up0.0"]
    assert found["cka"][0][0] == pytest.approx(1) and found["cka"][0][1] == pytest.approx(found["cka"][1][0])
    assert "data:image/png" in Path(found["report"]).read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("features", "digits", "digits", "--layer", "middle"), "'middle', which does not exist"),
        (("features", "digits", "digits", "--t", "2"), "must be in [0, 1]"),
        (("features", "digits", "digits", "--out", "f.pkl"), "end it in .npz, .npy, .parquet"),
        (("features", "digits"), "no data were named"),
        (("features", "digits", "nowhere"), "there is no nowhere"),
        (("probe", "digits", "digits", "--head", "linar"), "head='linar' does not fit"),
        (("probe", "digits", "digits", "--head", "cnn", "--pool", "2"), "pool=2 has no effect"),
        (("probe", "digits", "digits", "--head-option", "neighbors=3"), "nearest known key is 'neighbours'"),
        (("probe", "digits", "digits", "--head-option", "alpha=-1"), "alpha"),
        (("probe", "digits", "one.npy"), "has no labels"),
        (("probe", "digits", "same.npz", "--label-column", "kind", "--holdout", "0.5"), "a probe needs two classes"),
        (
            ("probe", "digits", "rare.npz", "--label-column", "kind", "--holdout", "2"),
            "cross-validation needs 2 of each",
        ),
        (("cka", "digits"), "no data were named"),
        (("cka", "digits", "--data", "digits", "--minibatch", "3", "-n", "9"), "use unbiased=True"),
        (("cka", "digits", "--data", "digits", "--minibatch", "0", "-n", "9", "--unbiased"), "0 items are too few"),
    ],
)
def test_what_cannot_be_done_is_one_line(capsys, here: Path, words: tuple[str, ...], message: str) -> None:
    pictures = np.random.default_rng(0).integers(0, 17, (12, 8, 8)).astype(np.uint8)
    np.save("one.npy", pictures)
    np.savez("same.npz", x=pictures, kind=np.array(["a"] * 12))
    np.savez("rare.npz", x=pictures, kind=np.array(["a"] * 11 + ["b"]))
    code, out, err = asked(capsys, *words)
    said = out + err
    assert code == 1, said
    assert message in said
    assert "Traceback" not in said and "bug" not in said
