"""The sizes of the studies on tokens: their keys are keys, large is larger, and the command hands them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse.cli import main
from undiffuse.config import resolve
from undiffuse.data import DataOptions, open_data
from undiffuse.data.dataset import Dataset
from undiffuse.papers import catalogue, vq_ddm
from undiffuse.papers.sizes import CODEBOOKS, COMPLETIONS, CROPS, PICTURES, TEXTS, of_size
from undiffuse.papers.study import Part, run_parts
from undiffuse.papers.vq_codebook import crops
from undiffuse.papers.vq_digits import Digits
from undiffuse.training.recipe import Recipe, recipe_layer

CAUSAL = ["model.causal=true", "objective=autoregressive"]


def test_the_keys_of_all_sizes_are_keys_and_large_is_larger() -> None:
    for size in ("small", "large"):
        for more in ([], CAUSAL):
            resolve(Recipe, recipe_layer("text"), [*TEXTS[size].keys, *more])
        pictures = PICTURES[size]
        resolve(Recipe, recipe_layer("vq-diffusion"), [*pictures.codec, *pictures.network])
        resolve(Recipe, recipe_layer("vq-image"), [*pictures.network, *CAUSAL])
    assert TEXTS["large"].rows > TEXTS["small"].rows and TEXTS["large"].steps
    assert PICTURES["large"].steps > PICTURES["small"].steps and PICTURES["large"].width > PICTURES["small"].width
    for table in (CODEBOOKS, CROPS):
        assert table["large"].codec.steps > table["small"].codec.steps and table["large"].more > table["small"].more
        assert all(asked.codec.codes in asked.rebuilt for asked in table.values())  # what the figures are about
    assert COMPLETIONS["large"].steps > COMPLETIONS["small"].steps
    assert of_size(TEXTS, True) is TEXTS["large"] and of_size(TEXTS, False) is TEXTS["small"]


@pytest.fixture
def photos(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / kind / f"{number}.png")
    return str(tmp_path / "photos")


def test_crops_are_the_pictures_cut_up(photos: str) -> None:
    data = open_data(photos, DataOptions(source=photos))
    cut = crops(data, 16, seed=1)
    assert len(cut) == 80 and cut.spec.shape == (3, 16, 16)

    def values(of: Dataset) -> torch.Tensor:
        return of.spec.from_model(of.batch(torch.arange(len(of)))["x"]).round().to(torch.uint8)

    x = values(data)
    corners = [x[:, :, top : top + 16, left : left + 16] for top in (0, 16) for left in (0, 16)]
    whole = {row.numpy().tobytes() for corner in corners for row in corner}
    assert {row.numpy().tobytes() for row in values(cut)} == whole and len(whole) == 80
    with pytest.raises(ValueError, match="cannot be cut into crops of 12 x 12"):
        crops(data, 12)


@pytest.mark.slow
def test_codebooks_of_given_pictures_are_of_their_crops(photos: str) -> None:
    part = vq_ddm.codebooks(True, 0, photos, "cpu", False)
    assert [row[:2] for row in part.rows][-1] == ("N(mean, std), 32 codes, refit", "32") and len(part.rows) == 6


def test_pictures_without_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="moons are no pictures with labels"):
        Digits(quick=True, data="moons")


def test_the_command_hands_on_device_and_size(tmp_path, monkeypatch, capsys) -> None:
    heard = {}

    def reproduce(*, quick, seed, listener, keep, device="auto", large=False):
        heard.update(device=device, large=large)
        return run_parts("x", [("a", lambda: Part(title="a", text="How."))], {}, listener, keep)

    monkeypatch.setattr(catalogue, "load_reproduction", lambda paper: reproduce)
    out = ["--out", str(tmp_path / "out")]
    assert main.run(["papers", "vq-ddm", "--large", "--device", "cpu", *out]) == 0
    assert heard == {"device": "cpu", "large": True} and "minutes on two cores" not in capsys.readouterr().out
    assert main.run(["papers", "vq-ddm", *out]) == 0 and heard == {"device": "auto", "large": False}


def test_papers_that_choose_their_device_say_so(tmp_path, capsys) -> None:
    assert main.run(["papers", "red-diff", "--device", "cuda", "--out", str(tmp_path)]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert "--device cuda has no use for red-diff, which chooses for itself where to compute" in said
    assert main.run(["papers", "red-diff", "--large", "--out", str(tmp_path)]) != 0
    assert "--large has no use for red-diff, which has one size" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked-diffusion", "vq-diffusion", "vq-ddm"])
def test_the_large_version_runs_on_a_processor(name: str) -> None:
    study = catalogue.load_reproduction(catalogue.find_paper(name))(quick=True, large=True, device="cpu")
    assert len(study.parts) >= 4 and study.settings["large"] is True
