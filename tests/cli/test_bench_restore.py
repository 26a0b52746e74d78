"""`undiffuse bench-restore`: rows, files, going on, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undiffuse.cli.main import run
from undiffuse.metrics.classifier import ClassifierConfig, build_classifier, save_classifier

_WORDS = ("digits-mixture", "--operators", "inpaint50,sr2", "-n", "3", "--samples", "2", "--out", "there")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run(["bench-restore", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_rows_are_written_and_the_same_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = asked(capsys, *_WORDS, "--methods", "ddrm,repaint", "--steps", "3", "--json")
    assert code == 0, err
    found = json.loads(out)
    rows = {(row["operator"], row["method"]): row for row in found["rows"]}
    assert rows["sr2", "exact posterior"]["energy"] is not None
    assert rows["inpaint50", "ddrm"]["nfe"] == 3
    assert "repaint" in rows["sr2", "repaint"]["failure"] or "mask" in rows["sr2", "repaint"]["failure"]
    assert found["settings"]["noise, model units"] == pytest.approx(0.05)
    page = Path(found["report"]).read_text()
    assert "Not done" in page and page.count("data:image/png") == 2
    assert "| inpaint50 | ddrm | 3 |" in Path(found["table"]).read_text()
    code, out, err = asked(capsys, *_WORDS, "--methods", "ddrm", "--steps", "3,4", "--json")
    assert code == 0, err
    assert "rows are there already" in err
    again = {(row["operator"], row["method"], row["steps"]): row for row in json.loads(out)["rows"]}
    assert again["inpaint50", "ddrm", 3] == rows["inpaint50", "ddrm"]
    assert ("sr2", "ddrm", 4) in again
    code, _, err = asked(capsys, *_WORDS, "--methods", "ddrm", "--seed", "5")
    assert code == 1 and "another seed" in err


def test_a_trained_model_is_measured_on_what_it_never_saw(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("digits", "--operators", "sr2", "--methods", "ddrm", "--steps", "2", "-n", "2", "--samples", "1")
    code, out, err = asked(capsys, *words, "--json")
    assert code == 0, err
    assert "held out of training" in err
    (row,) = json.loads(out)["rows"]
    assert row["spread"] is None and row["energy"] is None and row["psnr"] > 5


def test_a_classifier_says_what_it_sees(capsys: pytest.CaptureFixture[str]) -> None:
    for folder, classes in (("named", tuple("0123456789")), ("other", ("cat", "dog"))):
        config = ClassifierConfig(shape=(1, 8, 8), classes=classes, widths=(4,), blocks=(1,))
        save_classifier(build_classifier(config), folder)
    words = ("digits", "--operators", "sr2", "--methods", "ddrm", "--steps", "2", "-n", "5", "--samples", "1")
    code, out, err = asked(capsys, *words, "--classifier", "named", "--json", "--out", "one")
    assert code == 0, err
    found = json.loads(out)
    (row,) = found["rows"]
    assert row["top1_items"] == 5 and 0 <= row["top1"] <= 1 and row["top1_true"] is not None
    assert "Wilson" in Path(found["report"]).read_text()
    code, out, err = asked(capsys, *words, "--classifier", "other", "--json", "--out", "two")
    assert code == 0 and "has other classes than other" in err
    assert json.loads(out)["rows"][0]["top1_true"] is None
    code, _, err = asked(capsys, *words, "--classifier", "cifar10-classifier", "--out", "three")
    assert code == 1 and "sees pictures of shape (3, 32, 32)" in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("digits-mixture", "--methods", "ddrn"), "Did you mean 'ddrm'"),
        (("digits-mixture", "--operators", "sharpen"), "operator 'sharpen' is unknown"),
        (("digits-mixture", "--steps", "few"), "write 20,100"),
        (("digits-mixture", "--noise-std", "-1"), "in image units"),
        (("digits-mixture", "--operators", "colourise"), "3"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(capsys, words, message) -> None:
    code, _, err = asked(capsys, *words)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
