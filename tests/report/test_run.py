from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from undiffuse.errors import DataError
from undiffuse.images import write_image
from undiffuse.metrics import Evaluation, Row
from undiffuse.report import evaluation_section, run_report, run_sections
from undiffuse.spec import DataSpec


def _row(step: int, loss: float | None) -> dict[str, object]:
    return {
        "step": step,
        "images": 64 * step,
        "loss": loss,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "bad_steps": 2,
        "seconds": step / 10,
    }


def _levels(step: int) -> dict[str, object]:
    return {"step": step, "levels": {"edges": [-1.0, 0.0, 1.0], "loss": [1.0, None, 0.5, 0.25], "count": [3, 0, 4, 5]}}


def _evaluation() -> Evaluation:
    rows = (
        Row(name="label agreement", value=0.995, error=0.002, floor=0.99, better="higher", scale=1.0, note="<judge>"),
        Row(name="Frechet distance / floor", value=1.08, floor=1.0, unit="x"),
    )
    guidance = {"scale": [1.0, 2.0], "agreement": [0.9, 1.0], "frechet_ratio": [1.0, 1.5]}
    nearest = {"to_train": [1.0, 2.0, 3.0], "to_held_out": [1.5, 2.5, 3.5]}
    scatter = {name: [0.0, 1.0] for name in ("samples_x", "samples_y", "data_x", "data_y")}
    series = {"guidance": guidance, "nearest": nearest, "scatter": scatter}
    return Evaluation(kind="image", n=1000, seed=4, rows=rows, series=series, texts=("to be",), settings={"steps": 20})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with everything in it."""
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("train:\n  steps: 200\n")
    spec = DataSpec(kind="image", shape=(1, 8, 8), range=(0.0, 16.0), classes=tuple("0123456789"))
    (folder / "config.json").write_text(json.dumps({"schema": 1, "spec": spec.to_json()}))
    facts = {
        "items": 1397,
        "device": "cpu",
        "versions": {"torch": "2.x"},
        "data": ["1397 images", "warning: 2 were bad"],
    }
    (folder / "run.json").write_text(json.dumps(facts))
    log = [_row(50, 1.0), _levels(50), _row(100, None), _row(200, 0.25), _levels(200)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log) + '{"step": 250, "lo')
    for step in (900, 1000, 20, 3):
        write_image(folder / "samples" / f"step-{step}.png", np.full((10, 10), step % 255, np.uint8))
    (folder / "metrics.json").write_text(json.dumps(_evaluation().to_json()))
    return folder


def test_the_report_shows_the_whole_run(run):
    path = run_report(run)
    html = path.read_text(encoding="utf-8")
    assert path == run / "report.html"
    for words in ("Run digits", "200 steps in 20 s", "Samples", "Evaluation", "Training", "How it was made"):
        assert words in html
    for words in ("steps: 200", "12,800", "0.995", "1.08x", "&lt;judge&gt;", "1 x 8 x 8", "0 to 16", "to be", "1,397"):
        assert words in html
    assert "2 step(s) had a loss or gradient that was not finite" in html
    assert f"undiffuse train {run / 'recipe.yaml'} --out {run}" in html
    assert html.count("data:image/png") == 4 + 3 + 2  # previews, figures of the evaluation, figures of the training


def test_the_last_preview_comes_first_and_the_others_in_order_of_their_step(run):
    captions = [element.caption for element in run_sections(run)[0].elements]
    assert captions == ["step-1000, the last preview", "step-3", "step-20", "step-900"]


def test_held_out_losses_and_a_sweep_of_widths_are_shown(run):
    levels = _levels(0)["levels"]
    measured = [
        {"step": step, "validation": {"loss": loss, "train_loss": loss / 2, "items": 12, "levels": levels}}
        for step, loss in ((50, 1.0), (100, 0.5), (200, 0.75))
    ]
    with (run / "log.jsonl").open("a") as log:
        log.write("\n" + "".join(json.dumps(row) + "\n" for row in measured))
    text = (run / "log.jsonl").read_text().replace('{"step": 250, "lo\n', "")
    (run / "log.jsonl").write_text(text)
    (run / "ema").mkdir()
    rows = [{"width": width, "loss": 1.0, "misfit": 0.01} for width in (0.03, 0.05)]
    (run / "ema" / "sweep.json").write_text(json.dumps({"step": 200, "rows": rows}))
    html = run_report(run).read_text(encoding="utf-8")
    for words in (
        "held-out loss",
        "0.75",
        "0.5 at step 100",
        "learns its data by heart",
        "by the width of the average",
    ):
        assert words in html
    assert html.count("data:image/png") == 4 + 3 + 4


def test_a_given_command_and_evaluation_take_precedence(run):
    mine = Evaluation(kind="image", n=7, seed=0, rows=(), pictures={"mine": np.zeros((4, 4), np.uint8)})
    html = run_report(run, evaluation=mine, command="make demo").read_text(encoding="utf-8")
    assert "make demo" in html and "samples 7, seed 0" in html and 'alt="mine"' in html
    assert "0.995" not in html


@pytest.mark.parametrize("missing", ["recipe.yaml", "run.json", "config.json", "log.jsonl", "metrics.json", "samples"])
def test_missing_parts_are_left_out(run, missing):
    (run / missing).rename(run.parent / missing)
    assert run_report(run).stat().st_size > 3000


def test_damaged_parts_are_named_or_left_out(run):
    (run / "samples" / "step-2000.png").write_bytes(b"\x89PNG broken")
    (run / "metrics.json").write_text("{")
    html = run_report(run).read_text(encoding="utf-8")
    assert "step-2000.png cannot be read" in html and "Evaluation" not in html


def test_samples_of_text_are_shown(tmp_path):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-10.txt").write_text("old <text>")
    (tmp_path / "samples" / "step-200.txt").write_text("To be & <not>\n\n----\n\nor\n")
    html = run_report(tmp_path).read_text(encoding="utf-8")
    assert "<blockquote>To be &amp; &lt;not&gt;</blockquote><blockquote>or</blockquote>" in html
    assert "old" not in html.split("<body>")[1]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        run_report(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no recipe\.yaml"):
        run_report(tmp_path)


def test_an_evaluation_of_another_making_is_refused():
    with pytest.raises(DataError, match="no evaluation written by undiffuse"):
        evaluation_section({"rows": [{"value": 1.0}]})
