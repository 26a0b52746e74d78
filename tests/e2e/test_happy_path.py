"""Train, sample, evaluate, look: the whole way of a user, at the smallest size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.e2e.command import TINY, Command
from undiffuse.images import read_image, read_recipe


def one_object(text: str) -> dict:
    """Return the only line of stdout as JSON."""
    (line,) = text.splitlines()
    return json.loads(line)


def test_training_prints_the_plan_writes_the_run_and_says_where(undiffuse: Command):
    answer = undiffuse("train", "digits", *TINY)
    assert answer.code == 0, answer
    assert answer.err == ""
    for said in ("1397 images of 8 x 8 pixels", "parameters", "3 of 8 items", "memory"):
        assert said in answer.out
    assert answer.out.splitlines()[-1] == "The model is in runs/digits"
    names = {path.name for path in Path("runs/digits").iterdir()}
    assert {"model.safetensors", "config.json", "recipe.yaml", "log.jsonl", "checkpoints", "report.html"} <= names


def test_training_again_with_the_same_words_finds_the_work_done(undiffuse: Command):
    words = ("train", "moons", "train.steps=2", "train.batch_size=8", "model.width=16")
    assert undiffuse(*words).code == 0
    again = undiffuse(*words)
    assert again.code == 0
    assert "resuming at step 2 of 2" in again.out


def test_training_on_a_folder_of_pictures_needs_no_other_word(undiffuse: Command):
    colours = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    for number, pixels in enumerate(colours):
        folder = Path("photos", "cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    answer = undiffuse("train", "photos/", *TINY)
    assert answer.code == 0, answer
    assert "images of 16 x 16 pixels, RGB" in answer.out
    labelled = one_object(undiffuse("sample", "runs/photos", "-n", 3, "--steps", 2, "--label", "cat", "--json").out)
    assert read_recipe(labelled["files"][1])["label"] == "cat"


def test_a_run_on_the_current_folder_has_the_name_of_the_folder(undiffuse: Command, monkeypatch: pytest.MonkeyPatch):
    Path("photos").mkdir()
    monkeypatch.chdir("photos")
    for number in range(12):
        Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(f"{number}.png")
    answer = undiffuse("train", ".", *TINY)
    assert answer.out.splitlines()[-1] == "The model is in runs/photos"


def test_a_json_training_keeps_stdout_for_one_object(undiffuse: Command):
    answer = undiffuse("train", "moons", "train.steps=2", "train.batch_size=8", "model.width=16", "--json")
    result = one_object(answer.out)
    assert result["finished"] is True
    assert result["steps"] == 2
    assert Path(result["model"]).is_file()
    assert "points" in answer.err or "vectors" in answer.err


def test_samples_are_a_grid_and_single_pictures_that_carry_their_recipe(undiffuse: Command, digits_run: Path):
    answer = undiffuse("sample", digits_run, "-n", 4, "--steps", 2, "--seed", 7, "--out", "here")
    assert answer.code == 0, answer
    assert answer.out.splitlines()[-1] == "The result is here/grid-seed7-n4.png"
    assert sorted(path.name for path in Path("here").iterdir()) == [
        "grid-seed7-n4.png",
        *(f"seed7-0000{number}.png" for number in range(4)),
    ]
    assert read_image("here/seed7-00002.png").shape[:2] == (8, 8)
    recipe = read_recipe("here/seed7-00002.png")
    assert (recipe["seed"], recipe["number"], recipe["sampling"]["steps"]) == (7, 2, 2)
    assert recipe["recipe"]["data"]["source"] == "digits"


def test_a_sample_is_the_same_whatever_the_batch(undiffuse: Command, digits_run: Path):
    for batch in (1, 4):
        undiffuse("sample", digits_run, "-n", 3, "--steps", 2, "--batch-size", batch, "--out", f"by{batch}")
    for number in range(3):
        first, second = (read_image(f"by{batch}/seed0-0000{number}.png") for batch in (1, 4))
        assert np.abs(first.astype(float) - second.astype(float)).max() <= 1  # one grey level: float32 rounding


def test_samples_lie_in_the_run_unless_told_otherwise(undiffuse: Command, digits_run: Path):
    shutil.copytree(digits_run, "mine")
    answer = undiffuse("sample", "mine", "-n", 1, "--steps", 2, "--label", 3, "--guidance", 2, "--json")
    result = one_object(answer.out)
    assert result["folder"] == "mine/samples-seed0-label3-guidance2-steps2"
    assert result["evaluations"] == 4  # guidance costs two evaluations a step


def test_texts_are_written_as_text_and_begin_with_the_prefix(undiffuse: Command, text_run: Path):
    answer = undiffuse("sample", text_run, "-n", 3, "--prefix", "The ", "--out", "texts")
    assert answer.code == 0, answer
    texts = Path("texts/samples-seed0-n3.txt").read_text().split("\n\n----\n\n")
    assert len(texts) == 3
    assert all(text.startswith("The ") for text in texts)


def test_points_are_written_as_an_array(undiffuse: Command):
    assert undiffuse("train", "moons", "train.steps=2", "train.batch_size=8", "model.width=16").code == 0
    result = one_object(undiffuse("sample", "runs/moons", "-n", 5, "--steps", 2, "--json").out)
    assert np.load(result["main"]).shape == (5, 2)


def test_an_evaluation_prints_floors_and_writes_figures_and_report(undiffuse: Command, digits_run: Path):
    answer = undiffuse("evaluate", digits_run, "-n", 20, "--steps", 2, "--metrics", "agreement", "--out", "judged")
    assert answer.code == 0, answer
    assert "real data" in answer.out
    assert answer.out.splitlines()[-1] == "The report is judged/report.html"
    figures = json.loads(Path("judged/metrics.json").read_text())
    assert figures["n"] == 20
    assert figures["rows"][0]["floor"] > 0.9


def test_an_evaluation_as_json_compares_guidance_scales(undiffuse: Command, digits_run: Path):
    words = ("evaluate", digits_run, "digits", "-n", 12, "--steps", 2, "--metrics", "agreement", "--out", "judged")
    result = one_object(undiffuse(*words, "--guidance", "1,2", "--json").out)
    assert [row["scale"] for row in result["rows"]] == [1.0, 2.0]


def test_an_evaluation_takes_features_and_held_out_data_and_warns_of_few_images(undiffuse: Command, digits_run: Path):
    words = ("evaluate", digits_run, "digits", "--held-out", "digits", "-n", 20, "--steps", 2, "--no-cache")
    answer = undiffuse(*words, "--features", "pca", "--metrics", "frechet,kid,precision-recall", "--out", "judged")
    assert answer.code == 0, answer
    assert "principal components" in answer.out and "warning: 20 samples, 1797 training" in answer.out
    figures = json.loads(Path("judged/metrics.json").read_text())
    rows = {row["name"]: row for row in figures["rows"]}
    assert list(rows) == ["Frechet distance / floor", "Frechet distance", "KID", "precision", "recall"]
    low, high = rows["Frechet distance"]["interval"]
    assert low < rows["Frechet distance"]["value"] < high


def test_info_knows_models_data_and_recipes(undiffuse: Command, digits_run: Path):
    model = one_object(undiffuse("info", digits_run, "--json").out)
    assert model["spec"]["shape"] == [1, 8, 8]
    assert model["recipe"]["model"]["channels"] == 8
    data = one_object(undiffuse("info", "data:digits", "--json").out)
    assert data["items"] == 1797
    recipe = one_object(undiffuse("info", "recipe:text", "--json").out)
    assert recipe["sets"]["model.kind"] == "transformer"
    for name in (digits_run, "moons", "recipe:image"):
        assert undiffuse("info", name).code == 0


def test_doctor_finds_that_this_machine_computes_right(undiffuse: Command):
    result = one_object(undiffuse("doctor", "--json").out)
    assert result["healthy"] is True
    assert result["torch"] != "not installed"
    assert undiffuse("doctor").code == 0


def test_report_writes_one_page_that_fetches_nothing(undiffuse: Command, digits_run: Path):
    shutil.copytree(digits_run, "mine", ignore=shutil.ignore_patterns("report.html"))
    answer = undiffuse("report", "mine")
    assert answer.out == "The report is mine/report.html\n"
    page = Path("mine/report.html").read_text()
    assert 'src="http' not in page
    assert "model.channels" in page or "channels: 8" in page


def test_all_keys_are_listed_with_their_help(undiffuse: Command):
    result = one_object(undiffuse("train", "--keys", "--json").out)
    keys = {row["key"]: row for row in result["keys"]}
    assert keys["train.steps"]["help"]
    assert undiffuse("train", "--keys").code == 0


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), (), ("train", "-h")])
def test_help_and_version_exit_with_0(undiffuse: Command, arguments: tuple[str, ...]):
    answer = undiffuse(*arguments)
    assert answer.code == 0
    assert "undiffuse" in answer.out


def test_guidance_solver_options_and_dtype_reach_the_samples(undiffuse: Command, digits_run: Path):
    words = ["sample", digits_run, "-n", 2, "--steps", 2, "--guidance", 2, "--solver", "ddim", "--json", "--out"]
    more = ["--guidance-interval", "0.3,3", "--guidance-rescale", 0.5, "--solver-option", "eta=0.5"]
    told = one_object(undiffuse(*words, "a", *more, "--dtype", "bfloat16").out)["sampling"]
    assert told["guidance_interval"] == [0.3, 3.0] and told["guidance_rescale"] == 0.5
    assert told["solver_options"] == {"eta": 0.5} and told["dtype"] == "bfloat16"
    everywhere, inside = (
        one_object(undiffuse(*words, *rest).out)["evaluations"]
        for rest in (["b"], ["c", "--guidance-interval", "0.3,3"])
    )
    assert inside < everywhere == 4  # outside the interval a step costs one evaluation


def test_the_demo_makes_one_page_of_both_models(undiffuse: Command, monkeypatch: pytest.MonkeyPatch):
    from undiffuse.cli import demo
    from undiffuse.training import pace

    monkeypatch.setattr(pace, "_PROBE_STEPS", 3)
    monkeypatch.setattr(demo, "_TEXTS", 2)
    monkeypatch.setattr(demo, "_ROWS", 1)
    result = one_object(undiffuse("demo", "--digits-seconds", 0.001, "--text-seconds", 0.001, "-n", 20, "--json").out)
    page = Path(result["report"]).read_text()
    for title in ("Digits: samples of each class", "Digits: figures", "Text (prose)"):
        assert title in page
    assert page.count("data:image/png") >= 4
