from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.cli import places
from undiffuse.cli.asking import given, read_grid, read_interval, read_options, read_tol
from undiffuse.cli.main import run
from undiffuse.cli.sample import folder_name, read_conditions, state_dtype, weight_dtype
from undiffuse.cli.saving import save_samples
from undiffuse.images import read_recipe
from undiffuse.sampling.loop import SampleResult
from undiffuse.spec import ConditionSpec, DataSpec

POSE = ConditionSpec(kind="vector", width=2)
ANIMALS = DataSpec(kind="image", shape=(3, 4, 4), range=(0, 255), classes=("cat", "dog", "7"), cond={"pose": POSE})
PLAIN = DataSpec(kind="vector", shape=(2,))
MADE_BY = {"seed": 5, "n": 3, "cond": None}


def test_classes_take_turns_where_none_is_named():
    assert read_conditions([], [], 4, ANIMALS) == {"label": [0, 1, 2, 0]}
    assert read_conditions([], [], 4, PLAIN) is None


def test_named_classes_take_turns():
    assert read_conditions(["cat,dog"], [], 3, ANIMALS) == {"label": ["cat", "dog", "cat"]}
    assert read_conditions(["cat", "dog"], [], 2, ANIMALS) == {"label": ["cat", "dog"]}


def test_the_name_of_a_class_goes_before_its_number():
    assert read_conditions(["7", "1"], [], 2, ANIMALS) == {"label": ["7", 1]}


def test_none_leaves_the_label_out():
    assert read_conditions(["none"], [], 2, ANIMALS) is None


def test_a_vector_is_read_as_numbers_and_a_label_also_by_cond():
    assert read_conditions([], ["pose=0.5,-1", "label=dog"], 1, ANIMALS) == {"pose": [0.5, -1.0], "label": ["dog"]}


@pytest.mark.parametrize("text", ["pose", "pose=", "pose=high"])
def test_a_condition_without_a_value_is_refused(text: str):
    with pytest.raises(ValueError, match="--cond"):
        read_conditions([], [text], 1, ANIMALS)


def test_other_settings_go_to_another_folder():
    settings = {"guidance": 2.0, "solver": "ddim", "steps": None, "grid": None, "prefix": None}
    assert folder_name(3, ["cat"], [], settings) == "samples-seed3-labelcat-guidance2-solverddim"
    assert folder_name(3, [], ["pose=1,2"], {"prefix": "a/../b"}) == "samples-seed3-pose-1-2-prefixa-..-b"


def test_pictures_keep_their_grey_levels_and_carry_their_number(tmp_path: Path):
    x = torch.arange(3 * 48).reshape(3, 3, 4, 4).float()
    saved = save_samples(x, ANIMALS, tmp_path, MADE_BY | {"cond": {"label": [0, 1, 2]}})
    assert saved.main.name == "grid-seed5-n3.png"
    assert [path.name for path in saved.files[1:]] == [f"seed5-0000{number}.png" for number in range(3)]
    from PIL import Image

    pixels = np.asarray(Image.open(saved.files[2])).transpose(2, 0, 1)
    assert np.array_equal(pixels, x[1].numpy())
    recipe = read_recipe(saved.files[2])
    assert recipe is not None
    assert (recipe["number"], recipe["label"]) == (1, 1)


def test_arrays_and_texts_have_their_recipe_beside_them(tmp_path: Path):
    saved = save_samples(torch.ones(3, 2), PLAIN, tmp_path, MADE_BY)
    assert np.array_equal(np.load(saved.main), np.ones((3, 2), dtype=np.float32))
    assert json.loads(saved.files[1].read_text()) == MADE_BY
    letters = DataSpec(kind="tokens", shape=(2,), vocabulary=("a", "b"))
    saved = save_samples(torch.tensor([[0, 1], [1, 1]]), letters, tmp_path, MADE_BY)
    assert saved.main.read_text() == "ab\n\n----\n\nbb\n"


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(file: object, array: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_samples(torch.ones(3, 2), PLAIN, tmp_path, MADE_BY)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


def test_guidance_and_solver_settings_are_read_and_left_out_where_not_given():
    assert given(interval=read_interval(None), options=read_options([]), tol=read_tol(None, None), zero=0) == {
        "zero": 0
    }
    assert read_interval("0.3,3") == (0.3, 3.0)
    found = read_options(["eta=0.5", "order=2", "corrected=true", "rule=fresh", "floor=1e-3"])
    assert found == {"eta": 0.5, "order": 2, "corrected": True, "rule": "fresh", "floor": 1e-3}
    with pytest.raises(ValueError, match="belongs to --parallel"):
        read_tol(0.1, None)


@pytest.mark.parametrize("text", ["1", "1,2,3", "low,high", ""])
def test_an_interval_is_two_numbers(text: str):
    with pytest.raises(ValueError, match="write LOW,HIGH"):
        read_interval(text)


def test_a_grid_is_a_name_or_times():
    assert [read_grid(text) for text in (None, "karras", "logsnr:-4:3", "1,0.5,0")] == [
        None, "karras", "logsnr:-4:3", [1.0, 0.5, 0.0]
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no list of times"):
        read_grid("1,half,0")
    assert folder_name(0, [], [], {"grid": [1.0, 0.5, 0.0]}) == "samples-seed0-grid1-0.5-0"


@pytest.mark.parametrize("text", ["eta", "eta=", "=1"])
def test_a_solver_option_has_a_name_and_a_value(text: str):
    with pytest.raises(ValueError, match="NAME=VALUE"):
        read_options([text])


def test_the_state_stays_float32_below_half_precision_weights():
    dtypes = {name: (weight_dtype(name), state_dtype(weight_dtype(name))) for name in ("bfloat16", "float64")}
    assert dtypes == {"bfloat16": (torch.bfloat16, torch.float32), "float64": (torch.float64, torch.float64)}
    with pytest.raises(ValueError, match="float32, float64, bfloat16"):
        weight_dtype("int8")


class Recorder:
    """A model that remembers how it was asked."""

    spec = state_spec = PLAIN
    codec = None
    defaults, device = {"solver": "ddim"}, torch.device("cpu")

    def state_spec_at(self, size: object) -> DataSpec:
        return self.spec

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def sample_result(self, n: int, **asked: object) -> SampleResult:
        self.asked = asked
        return SampleResult(torch.zeros(n, 2), 1)


def test_the_options_of_the_command_reach_the_model_and_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = Recorder()
    found = []
    monkeypatch.setattr(
        places, "find_model", lambda *words: found.append(words) or places.Found("m", model, tmp_path, None)
    )
    words = ["--guidance-interval", "0.3,3", "--guidance-rescale", "0.7", "--solver-option", "eta=0.5"]
    assert run(["sample", "m", "-n", "2", "--dtype", "bfloat16", *words, "--out", str(tmp_path / "a")]) == 0
    assert found == [("m", "auto", torch.bfloat16, None)]
    assert model.asked["guidance_interval"] == (0.3, 3.0) and model.asked["guidance_rescale"] == 0.7
    assert model.asked["solver_options"] == {"eta": 0.5}
    assert model.asked["dtype"] == torch.float32
    told = json.loads((tmp_path / "a" / "samples-seed0.json").read_text())["sampling"]
    assert (
        told["solver_options"] == {"eta": 0.5}
        and told["dtype"] == "bfloat16"
        and told["guidance_interval"] == [0.3, 3.0]
    )
    assert run(["sample", "m", "-n", "2", "--out", str(tmp_path / "b")]) == 0
    assert not {"guidance_interval", "guidance_rescale", "solver_options"} & model.asked.keys()


def test_compiling_is_asked_of_the_model_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, compiled = Recorder(), []
    monkeypatch.setattr(model, "compile", lambda: compiled.append(True), raising=False)
    monkeypatch.setattr(places, "find_model", lambda *words: places.Found("m", model, tmp_path, None))
    for words, told in ((["--compile"], True), ([], None)):
        folder = tmp_path / str(told)
        assert run(["sample", "m", "-n", "2", *words, "--out", str(folder)]) == 0
        assert json.loads((folder / "samples-seed0.json").read_text())["sampling"].get("compile") is told
    assert compiled == [True]


def test_a_grid_that_ends_at_noise_is_refused(tmp_path, capsys):
    assert run(["sample", "digits", "-n", "2", "--grid", "1,0.5", "--out", str(tmp_path / "there")]) == 1
    assert "error: the grid ends at t=0.5, where samples are still noisy; let it end at 0" in capsys.readouterr().err
    assert not (tmp_path / "there").exists()
