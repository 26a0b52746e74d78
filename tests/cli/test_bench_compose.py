"""`undiffuse bench-compose`, `self-bench` and `learn-weights`: files, going on, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undiffuse.cli.main import run
from undiffuse.images.write import write_image


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON object if there is one, and stderr."""
    capsys.readouterr()
    code = run([*words, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out.strip() else {}, said.err


def test_a_model_draws_its_own_test_and_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("self-bench", "digits", "--samples", "2", "--steps", "5", "--out", "own")
    code, made, err = asked(capsys, *words)
    assert code == 0, err
    assert made["drawn"] == 20 and made["tasks"] == {"own-classes": 20} and made["passed"] is None
    assert len(list(Path("own").glob("*.png"))) == 20
    verdicts = "file,correct\n" + "".join(f"{i:06d}.png,{int(i < 12)}\n" for i in range(20))
    Path("people.csv").write_text(verdicts)
    code, made, err = asked(capsys, *words, "--filter", "people.csv")
    assert made["tasks"] == {"own-classes": 12} and made["passed"]["value"] == 0.6
    test = ("bench-compose", "digits", "own", "--times", "3", "--out", "found")
    code, found, err = asked(capsys, *test)
    assert code == 0, err
    accuracy, recall = found["rows"]
    assert accuracy["measure"] == "accuracy" and accuracy["n"] == 12 and accuracy["value"] > 0.5
    assert recall["measure"] == "R@5" and recall["chance"] == 0.5
    assert Path("found/results.csv").read_text().startswith("task,group,measure,n,chance,value")
    code, again, err = asked(capsys, *test, "--compare", "found/results.json", "--own", "own")
    gap = again["gaps"]["own-classes"]
    assert gap["error_ratio"] == 1.0 and abs(gap["frechet"]) < 1e-6 and len(gap["accuracy"]) == 3
    assert "2 rows are there already" in err
    assert again["rows"] == found["rows"] and again["compared"]["own-classes, accuracy"]["p"] == 1.0
    code, _, err = asked(capsys, *test, "--weight", "elbo")
    assert code == 1 and "measured with another weight" in err
    code, fewer, err = asked(capsys, *test, "-n", "2")
    assert code == 0 and {row["n"] for row in fewer["rows"]} == {2}  # other items under a name that is there
    code, _, err = asked(capsys, *test[:2], "labelled:digits", *test[3:], "-n", "2")
    table = Path("found/results.csv").read_text()
    assert code == 0 and "digits,object" in table and "own-classes,object" in table  # the rows of other tasks stay


def test_weights_are_learned_and_used(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("learn-weights", "digits", "labelled:digits", "-n", "24", "--times", "3", "--out", "w.json")
    code, learned, err = asked(capsys, *words, "--degree", "free")
    assert code == 0, err
    assert learned["shots"] == learned["held_out"] == 12 and len(learned["values"]) == 3
    assert np.mean(learned["values"]) == pytest.approx(1.0)
    words = ("bench-compose", "digits", "labelled:digits", "-n", "8", "--times", "4", "--weight", "w.json")
    code, found, err = asked(capsys, *words)
    assert code == 0, err
    assert found["rows"][0]["n"] == 8 and Path("bench-compose/digits/results.json").is_file()


def write_task(name: str, **item: Any) -> None:
    Path(name).mkdir()
    write_image(Path(name) / "a.png", np.zeros((8, 8), dtype=np.uint8))
    (Path(name) / "junk.npy").write_text("junk")
    given = {"images": ["a.png"], "texts": ["3", "5"], **item}
    (Path(name) / "task.json").write_text(json.dumps({"name": name, "items": [given, given]}))


@pytest.mark.parametrize(
    ("item", "words", "message"),
    [
        ({"answer": 2}, (), "answer=2 is out of range; the item has 2 candidates"),
        ({"texts": []}, (), "has 1 picture(s) and 0 text(s)"),
        ({"answer": "0"}, (), "answer='0' is out of range"),
        ({"texts": [3, 5]}, (), "3 is no text"),
        ({"images": [{"box": [0, 0, 1, 1]}]}, (), "expected a file name, or an object with file and box"),
        ({"images": [{"file": "a.png", "box": [5, 5, 1, 1]}]}, (), "is not left, top, right and bottom"),
        ({"images": ["junk.npy"]}, (), "cannot be read as an array of numbers"),
        ({"texts": ["3", "x"]}, (), "label 'x' does not exist"),
        ({}, ("--spacing", "even"), "use t, logsnr, shifted"),
        ({}, ("--resize", "bad"), "use crop, pad, stretch"),
        ({}, ("--weight", "elboo"), "Did you mean 'elbo'"),
        ({}, ("--weight", "none.json"), "cannot read time weights from none.json"),
        ({}, ("--compare", "none.json"), "none.json cannot be read as JSON"),
        ({}, ("-n", "0"), "-n 0 must be at least 1"),
    ],
)
def test_bad_items_and_options_are_one_line(
    capsys: pytest.CaptureFixture[str], item: dict[str, Any], words: tuple[str, ...], message: str
) -> None:
    write_task("t", **item)
    code, _, err = asked(capsys, "bench-compose", "digits", "t", "--times", "1", *words)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1
    assert message in errors[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bench-compose", "digits", "sugar:x"), "choose vg-relation, vg-attribution, coco-order"),
        (("bench-compose", "digits", "winoground:gone"), "winoground needs one with: data/examples.jsonl"),
        (("bench-compose", "digits", "gone"), "there is no task at gone"),
        (("bench-compose", "digits", "."), "holds no task.json, so it is no task; say labelled:."),
        (("bench-compose", "digits"), "name a task"),
        (("bench-compose", "digits", "two-digits", "-n", "1", "--times", "1"), "the model takes (1, 8, 8)"),
        (("self-bench", "digits", "--prompts", "gone.txt"), "cannot read prompts from gone.txt"),
        (("self-bench", "digits", "--samples", "0"), "samples=0"),
        (("self-bench", "digits", "--samples", "1", "--filter", "gone"), "gone is no filter (No such file"),
        (("learn-weights", "digits", "two-digits", "-n", "1"), "two-digits holds 10 tasks"),
        (("learn-weights", "digits", "labelled:digits", "--degree", "x"), "give auto, free or a whole number"),
        (("learn-weights", "digits", "labelled:digits", "-n", "9", "--degree", "30"), "below --times 30"),
        (("learn-weights", "digits", "labelled:digits", "-n", "9", "--shots", "9"), "from 1 to the 5 items"),
    ],
)
def test_what_is_not_there_is_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, _, err = asked(capsys, *words)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1
    assert message in errors[0]


def test_layouts_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, found, _ = asked(capsys, "bench-compose", "--list")
    assert code == 0 and len(found["layouts"]) >= 18
