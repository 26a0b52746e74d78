from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.cli.sample import folder_name, read_conditions
from undiffuse.cli.saving import save_samples
from undiffuse.images import read_recipe
from undiffuse.spec import DataSpec

ANIMALS = DataSpec(kind="image", shape=(3, 4, 4), range=(0, 255), classes=("cat", "dog", "7"), cond={"pose": 2})
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
