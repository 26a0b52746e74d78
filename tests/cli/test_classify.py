"""`undiffuse classify`: tables, files, classes of folders, and one line for what cannot be answered."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.cli.main import run
from undiffuse.data import open_data, split
from undiffuse.tasks.classify import TimeWeights


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run(["classify", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def write_digits(folder: Path, count: int = 4) -> list[int]:
    """Write held-out digits into a folder for each class, and return their labels in the order of the names."""
    held_out = split(open_data("digits"))[1]
    batch = held_out.batch(torch.arange(count))
    named = []
    for number, (x, label) in enumerate(zip(batch["x"], batch["cond"]["label"].tolist(), strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(((x[0].numpy() + 1) * 127.5).round().astype(np.uint8)).save(place / f"{number}.png")
        named.append((f"{label}/{number}", label))
    return [label for _, label in sorted(named)]


def test_class_folders_have_an_accuracy_a_report_and_a_row_each(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    labels = write_digits(here / "sorted")
    words = ("digits", "sorted", "--times", "2,4", "--keep", "3,1")
    code, out, err = asked(capsys, *words, "--json", "--out", "there")
    assert code == 0, err
    found = json.loads(out)
    assert found["given"] == [str(label) for label in labels]
    assert found["evaluations"] == found["promised"] == 2 * 10 + 2 * 3
    assert found["accuracy"] == sum(a == b for a, b in zip(found["label"], labels, strict=True)) / 4
    assert sum(map(sum, found["confusion"])) == 4
    assert "accuracy" in err
    rows = list(csv.DictReader(Path(found["csv"]).read_text().splitlines()))
    assert [row["class"] for row in rows] == found["names"]
    assert sum(float(rows[0][f"p({c})"]) for c in range(10)) == pytest.approx(1, abs=1e-4)
    kept = json.loads(Path(found["classify"]).read_text())
    assert len(kept["table"]["errors"][0]) == 10 and kept["table"]["errors"][0][0][2] is not None
    page = Path(found["report"]).read_text()
    assert f"{rows[0]['item']} as {rows[0]['class']}" in page and "confusion" not in err
    assert page.count("data:image/png") >= 3
    again = json.loads(asked(capsys, *words, "--json", "--batch-size", "7")[1])
    assert again["label"] == found["label"]
    np.testing.assert_allclose(again["probabilities"], found["probabilities"], atol=1e-5)


def test_labels_weights_and_held_out_data(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "labels.txt").write_text("3\n1 | 7\n\n")
    TimeWeights(half_logsnr=(-3.0, 3.0), values=(1.0, 0.2), loss="l1").save(here / "w.json")
    words = ("--labels", "labels.txt", "--times", "2", "--loss", "l1", "--weight", "w.json")
    code, out, err = asked(capsys, "digits", "-n", "3", *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["classes"], found["candidates"]) == (["3", "1"], ["3", "1", "7"])
    assert "are not those that competed" in err and "accuracy" not in found
    code, out, err = asked(capsys, "digits", "-n", "2", "--labels", "4,5", "--times", "2", "--guidance", "2", "--json")
    assert code == 0 and json.loads(out)["evaluations"] == 2 * 2 * 2, err


def test_a_broken_picture_is_listed_and_left_out(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    write_digits(here / "sorted")
    (here / "sorted" / "9").mkdir(exist_ok=True)
    (here / "sorted" / "9" / "broken.png").write_text("no picture")
    Image.new("L", (9, 8)).save(here / "sorted" / "9" / "wide.png")
    code, out, err = asked(capsys, "digits", "sorted", "--times", "2", "--max-bad", "0.2", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["items"]) == 5 and list(found["unreadable"]) == [str(Path("sorted/9/broken.png"))]
    assert "1 of 6 files cannot be read and are left out: sorted" in err and "other proportions" in err
    code, _, err = asked(capsys, "digits", "sorted")
    assert code == 1 and "1 of 6 file(s) in sorted cannot be read, more than --max-bad=0.05 allows" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((".", "--times", "2"), "has no pictures"),
        (("gone.png",), "no file or folder"),
        (("note.png",), "none of the 1 file(s) in note.png can be read"),
        (("--max-bad", "2"), "--max-bad 2 must be a share from 0 to 1"),
        (("--labels", "gone.txt"), "there is no file gone.txt"),
        (("--labels", "empty.txt"), "names no classes"),
        (("--labels", "0,eleven"), "'eleven' does not exist"),
        (("--labels", "0,12"), "12"),
        (("--template", "a {}"), "reads no words"),
        (("--times", "four"), "whole numbers with commas"),
        (("--times", "9,4", "--keep", "2,1"), "rise from round to round"),
        (("--times", "4,9", "--keep", "2,2"), "end in 1"),
        (("--loss", "l3"), "choose one of l2"),
        (("--weight", "elbo", "--loss", "l1"), "squared errors"),
        (("--weight", "gone.json"), "cannot read time weights"),
        (("--resize", "squeeze"), "crop, pad or stretch"),
        (("--temperature", "0"), "above 0"),
        (("--method", "ode", "--times", "4"), "does not belong to method='ode'"),
        (("--cond", "hue=1"), "unknown to this model"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    capsys: pytest.CaptureFixture[str], here: Path, words: tuple[str, ...], message: str
) -> None:
    (here / "note.png").write_text("no picture")
    (here / "empty.txt").write_text("\n")
    (here / "w.json").write_text("{}")
    folder = here / "none"
    folder.mkdir()
    code, _, err = asked(capsys, "digits", *(str(folder) if word == "." else word for word in words), "-n", "1")
    assert code != 0 and message in err
    assert len(err.strip().splitlines()) == 1
