"""`undiffuse degrade`: pictures in, measurements out, and one line for what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from undiffuse import operators as ops
from undiffuse.cli.main import run
from undiffuse.images import read_image, read_recipe
from undiffuse.noise import KeyedNoise


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    levels = np.random.default_rng(0).integers(0, 256, (16, 12, 3)).astype(np.uint8)
    Path("photos/deep").mkdir(parents=True)
    Image.fromarray(levels).save("photos/a.png")
    Image.fromarray(levels[..., 0]).save("photos/deep/b.png")
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run(["degrade", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_folder_is_measured_exactly(capsys: pytest.CaptureFixture[str]) -> None:
    text = "blur:gaussian,1,5|downsample:2"
    words = ("photos", "--operator", text, "--noise", "gaussian:0.05", "--seed", "3", "--json")
    code, out, err = asked(capsys, *words)
    assert code == 0, err
    found = json.loads(out)
    assert [Path(item["measurement"]).name for item in found["items"]] == ["a.safetensors", "b.safetensors"]
    measured = ops.Measurement.load("degraded/a.safetensors")
    x = torch.from_numpy(read_image("photos/a.png")).permute(2, 0, 1)[None] / 127.5 - 1
    clean = ops.parse_operator(text, (3, 16, 12))(x)
    torch.testing.assert_close(measured.operator(x), clean)
    drawn = KeyedNoise(3, [0]).normal("measure", 0, (3, 8, 6))
    torch.testing.assert_close(measured.y, clean + 0.1 * drawn)  # 0.05 of [0, 1] is 0.1 of [-1, 1]
    assert measured.noise == ops.GaussianNoise(0.1)
    assert measured.about["range"] == [0.0, 255.0]
    picture = read_image("degraded/a.png")
    assert np.abs(picture - ((measured.y[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()).max() <= 0.51
    assert read_recipe("degraded/deep/b.png")["measurement"] == "b.safetensors"
    again = json.loads(asked(capsys, *words, "--out", "again")[1])
    assert torch.equal(ops.Measurement.load(again["items"][0]["measurement"]).y, measured.y)


def test_masks_are_shared_drawn_anew_or_given(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("many.npy", np.random.default_rng(0).random((2, 1, 8, 8)).astype(np.float32))
    for words, alike in ((("--out", "shared"), True), (("--per-image", "--out", "anew"), False)):
        assert asked(capsys, "many.npy", "--operator", "inpaint:random", *words)[0] == 0
        one, two = (ops.Measurement.load(f"{words[-1]}/many-0000{k}.safetensors").operator for k in (0, 1))
        assert torch.equal(one.singulars(), two.singulars()) == alike
    mask = np.zeros((16, 12), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save("m.png")
    assert asked(capsys, "photos/a.png", "--mask", "m.png", "--out", "given")[0] == 0
    measured = ops.Measurement.load("given/a.safetensors")
    assert bool((measured.y[:, :, :4] == 0).all()) and isinstance(measured.operator, ops.Mask)


def test_measurements_without_a_picture_of_their_own_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("scan.npy", np.random.default_rng(0).random((2, 16, 16)))
    for operator, count in (
        ("mri:radial,coils=2", 1),
        ("ct:8", 1),
        ("downsample:2 & blur:uniform,3", 2),
        ("cs:dct", 0),
    ):
        code, out, err = asked(capsys, "scan.npy", "--operator", operator, "--json")
        assert code == 0, err
        assert len(json.loads(out)["items"][0]["pictures"]) == count


def test_deep_grey_pictures_are_scaled_by_their_own_maximum(capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.array([[0, 65535], [32768, 256]], np.uint16)).save("deep.png")
    assert asked(capsys, "deep.png")[0] == 0
    y = ops.Measurement.load("degraded/deep.safetensors").y
    torch.testing.assert_close(
        (y[0, 0] + 1) / 2 * 65535, torch.tensor([[0.0, 65535.0], [32768.0, 256.0]]), atol=0.02, rtol=0
    )


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(asked(capsys, "--list", "--json")[1])
    assert {row["operator"] for row in found["operators"]} == set(ops.OPERATORS)
    assert {row["noise"] for row in found["noises"]} == set(ops.NOISES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give pictures"),
        (("nothing.png",), "there is no file or folder nothing.png"),
        (("photos/a.png", "--operator", "downsample:5"), "does not divide 16 x 12"),
        (("photos/a.png", "--operator", "blur:gaussian,3"), "is larger than the picture (16 x 12)"),
        (("photos/a.png", "--operator", "jpeg:200"), "whole number from 1 to 100"),
        (("photos/a.png", "--mask", "photos/deep/b.png"), "neither 0 (missing) nor 1 (known)"),
        (("photos/a.png", "--mask", "m.png", "--operator", "downsample:2"), "--mask has no use"),
        (("photos/a.png", "--noise", "gaussian:-1"), "std=-1.0 of gaussian noise must be above 0"),
        (("photos/a.png", "--noise", "laplace:7"), "b=7 of laplace noise is more than the whole range"),
        (("alpha.png",), "has an alpha channel; --channels rgb"),
        (("nan.npy",), "has 3 values that are not finite"),
        (("big.npy",), "say their range, for example --range 0,"),
        (("photos/a.png", "--range", "1,0"), "is empty"),
        (("empty",), "no pictures and no .npy arrays"),
        (("broken.png",), "cannot read the picture broken.png"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    Path("empty").mkdir()
    Image.new("1", (12, 16)).save("m.png")
    Path("broken.png").write_bytes(b"\x89PNG no")
    Image.new("RGBA", (4, 4), (1, 2, 3, 4)).save("alpha.png")
    array = np.zeros((8, 8))
    array[0, :3] = np.nan
    np.save("nan.npy", array)
    np.save("big.npy", np.full((8, 8), 700.0))
    code, _, err = asked(capsys, *words)
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_photographs_to_try_it_on(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    code, out, err = asked(
        capsys, "photographs/coffee", "photographs/camera.png", "--operator", "downsample:4", "--json"
    )
    assert code == 0, err
    coffee, camera = json.loads(out)["items"]
    assert coffee["shape"] == [3, 100, 150] and camera["shape"] == [1, 128, 128]
    assert Path("degraded/coffee.safetensors").exists() and Path("degraded/camera.png").exists()
    code, _, err = asked(capsys, "photographs/chelsae")
    assert code == 1 and "did you mean chelsea?" in err and "\n" not in err.strip()
    assert (
        asked(capsys, "photographs/cats/chelsea")[2].strip()
        == "error: there is no file or folder photographs/cats/chelsea."
    )


def test_a_folder_called_photographs_is_that_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos").rename("photographs")
    found = json.loads(asked(capsys, "photographs", "--operator", "downsample:2", "--json")[1])
    assert [item["source"] for item in found["items"]] == ["photographs/a.png", "photographs/deep/b.png"]
    assert "no file or folder photographs/chelsea" in asked(capsys, "photographs/chelsea")[2]
