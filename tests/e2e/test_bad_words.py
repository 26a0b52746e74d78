"""Words that mean nothing, or the wrong thing: the nearest one is named, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.command import TINY, Command


def test_an_unknown_recipe_names_the_nearest(undiffuse: Command):
    assert undiffuse("train", "digits", "--recipe", "imgae").refuses("imgae", "Did you mean 'image'?")
    assert undiffuse("train", "vectr").refuses("vectr", "did you mean 'vector'?")
    assert undiffuse("train", "my.yaml").refuses("my.yaml", "YAML")
    assert undiffuse("info", "recipe:imgae").refuses("imgae", "Did you mean 'image'?")


def test_a_recipe_without_data_says_how_to_name_them(undiffuse: Command):
    assert undiffuse("train", "image").refuses("no data were named", "data.source")


def test_an_unknown_key_names_the_nearest(undiffuse: Command):
    assert undiffuse("train", "digits", "train.stesp=3").refuses("train.stesp", "'train.steps'")
    assert undiffuse("train", "digits", "data.sise=3").refuses("data.sise", "'data.size'")


def test_a_value_of_the_wrong_type_is_refused(undiffuse: Command):
    assert undiffuse("train", "digits", "train.steps=many").refuses("train.steps", "many", "int")


def test_negative_steps_are_refused(undiffuse: Command, digits_run: Path, text_run: Path):
    assert undiffuse("train", "digits", "train.steps=-5").refuses("steps=-5", "at least 1")
    for run in (digits_run, text_run):
        for steps in ("-2", "0"):
            assert undiffuse("sample", run, "--steps", steps, "--out", "x").refuses(f"steps={steps}", "at least 1")


def test_a_recipe_for_other_data_is_refused(undiffuse: Command):
    assert undiffuse("train", "prose", "--recipe", "image").refuses("tokens", "use recipe text")


@pytest.mark.parametrize("count", ["0", "-3"])
def test_no_samples_are_refused(undiffuse: Command, digits_run: Path, count: str):
    assert undiffuse("sample", digits_run, "-n", count, "--out", "x").refuses(f"n={count}", "at least 1")


def test_a_label_that_does_not_exist_is_refused(undiffuse: Command, digits_run: Path, text_run: Path):
    assert undiffuse("sample", digits_run, "--label", "12").refuses("label 12 does not exist", "0 to 9")
    assert undiffuse("sample", digits_run, "--label", "cat").refuses("'cat' does not exist", "this model knows 0, 1")
    assert undiffuse("sample", digits_run, "--cond", "colour=1").refuses("'colour' is unknown", "label")
    assert undiffuse("sample", digits_run, "--cond", "label").refuses("'label'", "NAME=VALUE")
    assert undiffuse("sample", text_run, "--label", "3").refuses("label", "without conditions")


def test_names_of_solvers_grids_devices_and_dtypes_are_checked(undiffuse: Command, digits_run: Path):
    assert undiffuse("sample", digits_run, "--solver", "dimm").refuses("'dimm'", "ddim")
    assert undiffuse("sample", digits_run, "--grid", "logsnt").refuses("logsnt", "logsnr")
    assert undiffuse("sample", digits_run, "--device", "tpu").refuses("'tpu'", "cpu")
    assert undiffuse("sample", digits_run, "--dtype", "int8").refuses("'int8'", "float32")
    assert undiffuse("train", "digits", *TINY, "--device", "tpu").refuses("tpu", "cpu")
    assert undiffuse("train", "digits", *TINY, "--dtype", "int8").refuses("int8", "bfloat16")


def test_guidance_settings_and_solver_options_are_checked(undiffuse: Command, digits_run: Path):
    guided = ("sample", digits_run, "-n", "2", "--guidance", "2", "--out", "x")
    assert undiffuse(*guided, "--guidance-interval", "3").refuses("'3'", "write LOW,HIGH")
    assert undiffuse(*guided, "--guidance-interval", "3,1").refuses("interval", "low < high")
    assert undiffuse(*guided, "--guidance-rescale", "2").refuses("rescale", "[0, 1]")
    assert undiffuse(*guided, "--solver", "ddim", "--solver-option", "etta=1").refuses("'ddim'", "'etta'")
    assert undiffuse(*guided, "--solver-option", "eta").refuses("'eta'", "NAME=VALUE")


def test_a_solver_of_the_other_world_is_refused(undiffuse: Command, digits_run: Path, text_run: Path):
    assert undiffuse("sample", digits_run, "--solver", "first-hitting").refuses("FirstHitting")
    assert undiffuse("sample", text_run, "--solver", "ddim").refuses("DDIM")


def test_a_prefix_needs_a_token_model(undiffuse: Command, digits_run: Path):
    assert undiffuse("sample", digits_run, "--prefix", "The").refuses("prefix", "token model")


def test_evaluation_options_are_checked(undiffuse: Command, digits_run: Path, text_run: Path):
    assert undiffuse("evaluate", digits_run, "--guidance", "1,high").refuses("1,high", "write 1,2,3")
    assert undiffuse("evaluate", digits_run, "--metrics", "agrement").refuses("agrement", "agreement")
    assert undiffuse("evaluate", digits_run, "-n", "1").refuses("n=1", "at least 2")
    assert undiffuse("evaluate", digits_run, "-n", "8", "--features", "pac").refuses("pac", "pca")
    assert undiffuse("evaluate", digits_run, "-n", "8", "--features", "motion").refuses("motion", "those of video")
    assert undiffuse("evaluate", text_run, "--guidance", "2", "-n", "2").refuses("guidance", "labels")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("sampel",), ("'sampel'", "'sample'")),
        (("sample",), ("MODEL", "sample --help")),
        (("sample", "digits", "-n", "many"), ("'-n'", "integer", "'many'", "sample --help")),
        (("sample", "digits", "--guidance", "high"), ("'--guidance'", "number", "'high'")),
        (("sample", "digits", "--stpes", "3"), ("--stpes", "--steps")),
        (("train",), ("name data or a recipe", "train digits")),
        (("train", "digits", "moons"), ("digits and moons", "KEY=VALUE")),
    ],
)
def test_wrong_usage_exits_with_2_and_points_to_the_help(
    undiffuse: Command, words: tuple[str, ...], parts: tuple[str, ...]
):
    assert undiffuse(*words).refuses(*parts, code=2)
