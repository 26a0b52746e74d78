"""`undiffuse inpaint`: files, figures, and one line for what cannot be completed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tasks.test_completion import LETTERS, ROW, continuous, network, pictures
from undiffuse.cli.main import run
from undiffuse.images import read_recipe
from undiffuse.models import Model
from undiffuse.process.categorical import CategoricalProcess


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pictures().save(folder / "codes")
    Model(network(LETTERS, CategoricalProcess("absorbing", 3), unet=False), LETTERS).save(folder / "text")
    process = CategoricalProcess("absorbing", 5, blocks=(2, 3))
    Model(network(ROW, process, unet=False), ROW).save(folder / "table")
    continuous().save(folder / "pixels")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:4] = 255
    for name, pixels in {
        "photo": photo,
        "mask": mask,
        "grey": mask // 2 + 60,
        "small": mask[:6, :6],
        "black": 0 * mask,
    }.items():
        Image.fromarray(pixels).save(f"{name}.png")


def asked(capsys: pytest.CaptureFixture[str], models: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run(["inpaint", str(models / words[0]), *words[1:]])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_picture_is_completed_beside_a_strip(capsys, models):
    words = (
        "codes",
        "photo.png",
        "--mask",
        "mask.png",
        "--samples",
        "3",
        "--steps",
        "2",
        "--resample",
        "2",
        "--out",
        "there",
    )
    code, out, err = asked(capsys, models, *words, "--label", "x", "--rank", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["method"], found["samples"], found["known"], found["unknown"]) == ("replacement", 3, 4, 12)
    assert found["nfe"] == 3 and "may be replaced" in found["why"]
    assert len(found["log_prob"]) == 3 and found["log_prob"] == sorted(found["log_prob"], reverse=True)
    photo = np.asarray(Image.open("photo.png"))
    made = [np.asarray(Image.open(name)) for name in found["files"] if "/seed0-" in name or name.startswith("seed0-")]
    assert len(made) == 3 and all(np.array_equal(image[:4], photo[:4]) for image in made)
    assert any(not np.array_equal(made[0][4:], other[4:]) for other in made[1:])
    assert Path(found["strip"]).is_file() and found["main"] == found["strip"]
    recipe = read_recipe(Path(found["strip"]))
    assert recipe["inpaint"]["resample"] == 2 and recipe["inpaint"]["label"] == "x"


def test_a_text_and_a_row_are_completed(capsys, models):
    code, out, err = asked(capsys, models, "text", "--text", "a?c", "--placeholder", "?", "--samples", "2", "--json")
    assert code == 0, err
    texts = json.loads(out)["texts"]
    assert len(texts) == 2 and all(text[0] == "a" and text[2] == "c" for text in texts)
    code, out, err = asked(capsys, models, "table", "--set", "size=9", "--samples", "2", "--out", "rows")
    assert code == 0 and "size=9" in out
    assert next(Path("rows").glob("*.csv")).read_text().splitlines()[0] == "colour,size"


PHOTO = ("photo.png", "--mask", "mask.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("codes", "photo.png"), "a picture needs --mask FILE"),
        (("codes",), "nothing to complete; give one of"),
        (("codes", *PHOTO, "--text", "a_"), "an image and --text to complete"),
        (("codes", "--text", "a_"), "the model makes image data"),
        (("codes", "--mask", "mask.png", "--text", "a_"), "--mask is for pictures"),
        (("codes", "photo.png", "--mask", "small.png"), "the mask has shape (6, 6)"),
        (("codes", "photo.png", "--mask", "black.png"), "no pixel is known"),
        (("codes", "small.png", "--mask", "small.png"), "completes pictures of (1, 8, 8)"),
        (("codes", "gone.png", "--mask", "mask.png"), "cannot read the picture gone.png"),
        (("codes", *PHOTO, "--resample", "0"), "resample=0 must be at least 1"),
        (("codes", *PHOTO, "--method", "clamp"), "exact for absorbing processes alone"),
        (("codes", *PHOTO, "--label", "x,y"), "label has several values"),
        (("codes", *PHOTO, "--label", "z"), "label 'z' does not exist"),
        (("pixels", *PHOTO), "undiffuse restore MODEL IMAGE --mask M.png"),
        (("text", *PHOTO), "a picture was given, but this model makes tokens;"),
        (("text", "--text", "a_", "--resample", "2"), "belongs to method=replacement"),
        (("table", "--set", "size"), "--set 'size' says nothing"),
        (("table", "--set", "weight=1"), "column 'weight' is unknown"),
    ],
)
def test_what_cannot_be_completed_is_one_line(capsys, models, words, message):
    code, _, err = asked(capsys, models, *words)
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], err


def test_a_grey_mask_is_cut_with_a_warning(capsys, models):
    code, _, err = asked(
        capsys, models, "codes", "photo.png", "--mask", "grey.png", "--samples", "1", "--steps", "1", "--json"
    )
    assert code == 0
    assert "warning" in err and "from 127.5 on are taken as known" in err


def test_a_codec_with_another_codebook_is_refused(capsys, models, tmp_path):
    """Tokens of a rebuilt codebook mean something else than those that the denoiser knows."""
    import shutil

    shutil.copytree(models / "codes", tmp_path / "mixed")
    other = pictures()
    assert other.codec is not None
    other.codec.codebook.data.add_(1.0)  # type: ignore[operator, union-attr]
    other.codec.seal()  # type: ignore[operator]
    Model(network(other.codec.latent, other.process), other.spec, codec=other.codec).save(tmp_path / "other")  # type: ignore[arg-type]
    shutil.copy(tmp_path / "other" / "codec.safetensors", tmp_path / "mixed")
    code, _, err = asked(capsys, tmp_path, "mixed", *PHOTO)
    assert code == 1 and "tokens changed their meaning" in err
