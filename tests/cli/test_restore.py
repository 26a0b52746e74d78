"""`undiffuse restore`: from a picture and a mask to an answer and a map of how sure it is; one line for what fails."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.tasks.test_completion import continuous
from tests.tasks.test_completion import pictures as tokens
from undiffuse.cli.main import run
from undiffuse.images.read import read_image
from undiffuse.images.write import write_image


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    grey = np.random.default_rng(0).integers(0, 256, (8, 8, 1)).astype(np.uint8)
    mask = np.full((8, 8, 1), 255, np.uint8)
    mask[3:5] = 0
    write_image("photo.png", grey)
    write_image("mask.png", mask)
    write_image("wide.png", np.full((8, 9, 1), 255, np.uint8))
    write_image("grey-mask.png", np.full((8, 8, 1), 128, np.uint8))
    write_image("clear.png", np.dstack([grey] * 3 + [mask]))
    write_image("black.png", 0 * mask)
    Path("broken.png").write_bytes(b"\x89PNG no")
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_scratched_picture_and_its_mask_give_an_answer_and_a_map(capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "restore",
        "digits",
        "photo.png",
        "--mask",
        "mask.png",
        "--method",
        "ddnm",
        "--steps",
        "4",
        "--samples",
        "3",
    )
    code, out, err = asked(capsys, *words, "--json")
    assert code == 0, err
    (item,) = json.loads(out)["items"]
    assert item["method"] == "ddnm"
    assert item["nfe"] == 4
    before, after = read_image("photo.png"), read_image(item["files"]["mean"])
    assert np.abs(before - after)[[0, 1, 2, 5, 6, 7]].max() <= 1  # rounding to bytes, twice
    unsure = read_image(item["files"]["std"])
    assert unsure[3:5].mean() > 10
    assert unsure[[0, 1, 2, 5, 6, 7]].max() == 0
    assert np.load(item["files"]["array"], allow_pickle=False).shape == (3, 1, 8, 8)
    assert Path("restored/restored.html").read_text().count("data:image/png") == 2
    assert json.loads(Path("restored/result.json").read_text())["items"][0]["residual_rms"] == item["residual_rms"]
    again = json.loads(asked(capsys, *words, "--json", "--out", "there")[1])["items"][0]
    assert np.array_equal(read_image(again["files"]["samples"]), read_image(item["files"]["samples"]))


def test_an_unknown_kernel_is_written_beside_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("restore", "digits", "photo.png", "--operator", "blur:uniform,3", "--noise-std", "0.02")
    code, out, err = asked(capsys, *words, "--method", "blind-dps", "--steps", "2", "--samples", "2", "--json")
    assert code == 0, err
    (item,) = json.loads(out)["items"]
    kernel = load_file(item["files"]["learned"])["kernel"]
    assert kernel.shape == (2, 3, 3)
    assert kernel.sum((1, 2)).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert min(read_image(item["files"]["kernel"]).shape[:2]) >= 48  # enlarged, as samples are
    assert min(read_image(item["files"]["samples"]).shape[:2]) >= 48
    assert Path("restored/restored.html").read_text().count("data:image/png") == 3


def test_a_prior_of_kernels_is_named_by_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("restore", "digits", "photo.png", "--operator", "blur:uniform,3", "--method", "blind-dps", "--steps", "2")
    code, _, err = asked(capsys, *words, "--method-option", "prior=runs/none")
    assert code == 1 and "runs/none" in err and len(err.strip().splitlines()) == 1
    code, _, err = asked(capsys, *words, "--method-option", "prior=digits")
    assert code == 1 and "expected grey pictures (1, 3, 3)" in err and len(err.strip().splitlines()) == 1


def test_uneven_light_is_written_beside_the_picture(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("restore", "digits", "photo.png", "--operator", "denoise", "--noise-std", "0.02", "--method", "gdp")
    words = (*words, "--method-option", "light=pixel", "--steps", "2", "--samples", "2", "--json")
    code, out, err = asked(capsys, *words)
    assert code == 0, err
    (item,) = json.loads(out)["items"]
    assert load_file(item["files"]["learned"])["offset"].shape == (2, 1, 8, 8)
    assert len(item["learned"]["factor"]) == 1 and read_image(item["files"]["offset"]).shape[0] >= 48


def test_what_degrade_wrote_is_restored(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(capsys, "degrade", "photo.png", "--operator", "downsample:2", "--noise", "gaussian:0.05")[0] == 0
    code, out, err = asked(
        capsys, "restore", "digits", "degraded/photo.safetensors", "--method", "diffpir", "--steps", "3", "--json"
    )
    assert code == 0, err
    (item,) = json.loads(out)["items"]
    assert item["noise_std"] == pytest.approx(0.1)  # model units: a picture's range is 2 wide
    by_hand = asked(
        capsys,
        *("restore", "digits", "degraded/photo.png", "--operator", "downsample:2", "--noise-std", "0.05"),
        *("--steps", "3", "--samples", "2", "--method-option", "lam=0.5", "--method", "diffpir", "--json"),
    )
    assert by_hand[0] == 0, by_hand[2]
    assert read_image(json.loads(by_hand[1])["items"][0]["files"]["mean"]).shape == (8, 8, 1)


def test_folders_are_restored_and_no_result_overwrites_another(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/photo.png", "b/photo.png", "b/deep/photo.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(Path("photo.png").read_bytes())
    few = ("--method", "ddnm", "--steps", "1", "--samples", "1", "--json")
    code, out, err = asked(capsys, "restore", "digits", "a/photo.png", "b", "--mask", "mask.png", *few)
    assert code == 0, err
    items = json.loads(out)["items"]
    assert [item["image"] for item in items] == ["photo", "deep/photo", "photo-2"]
    assert len({path for item in items for path in item["files"].values()}) == 5 * 3
    assert all(Path(path).is_file() for item in items for path in item["files"].values())
    assert asked(capsys, "degrade", "b", "--operator", "downsample:2")[0] == 0
    code, out, err = asked(capsys, "restore", "digits", "degraded", *few)  # the measurements, not their pictures
    assert code == 0, err
    assert [item["image"] for item in json.loads(out)["items"]] == ["deep/photo", "photo"]
    Path("empty").mkdir()
    assert "the folder empty has no pictures" in asked(capsys, "restore", "digits", "empty")[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("photo.png",), "say what was done to the picture: --mask FILE, or --operator"),
        (("photo.png", "--mask", "wide.png"), "is 9 x 8 pixels and the picture 8 x 8"),
        (("photo.png", "--mask", "grey-mask.png"), "neither 0 (missing) nor 1 (known)"),
        (("photo.png", "--mask", "photo.png", "--operator", "denoise"), "give one of them"),
        (("photo.png", "--mask", "mask.png", "--noise-std", "5"), "a noise of 5 in 0..255 is 0.02"),
        (("photo.png", "--mask", "mask.png", "--noise-std", "-0.1"), "outside [0, 1]"),
        (("photo.png", "--mask", "mask.png", "--method", "resample"), "methods that work: mmps"),
        (("photo.png", "--operator", "blur:gaussain"), "gaussian"),
        (("photo.png", "--mask", "mask.png", "--method-option", "lam"), "NAME=VALUE"),
        (("clear.png", "--mask", "mask.png"), "has an alpha channel"),
        (("mask.txt", "--mask", "mask.png"), "mask.txt"),
        (("broken.png", "--mask", "mask.png"), "cannot read the picture broken.png"),
        (("photo.png", "--mask", "black.png"), "nothing is known; --invert-mask"),
        (("photo.png", "--operator", "colourise"), "RGB pictures (3, H, W); an item has shape (1, 8, 8)"),
        (("photo.png", "--operator", "blur:gaussian,4"), "kernel (25 x 25) is larger than the picture (8 x 8)"),
        (("photo.png", "--operator", "cs:dct"), "the .safetensors file that undiffuse degrade writes"),
        (("photo.png", "--operator", "jpeg:20", "--method", "ddrm"), "methods that work: pigdm, pigdm-step, dps, daps"),
        (("photo.png", "--operator", "denoise", "--noise", "gaussian:5"), "5 in 0..255 is 0.02"),
        (("photo.png", "--mask", "mask.png", "--method", "dds", "--method-option", "gamma=much"), "expected float"),
        (("photo.png", "--mask", "mask.png", "--budget", "0"), "budget=0 must be at least 1"),
        (("photo.png", "--mask", "mask.png", "--threshold", "hard"), "choose 'static' or 'dynamic'"),
    ],
)
def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    code, _, err = asked(capsys, "restore", "digits", *words, "--steps", "2")
    assert code != 0
    assert message in err
    assert "Traceback" not in err


def test_models_of_another_kind_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens, and latents with a method of pixels; the remedy is part of the line."""
    tokens().save(Path("tokens"))
    continuous(codec=True).save(Path("latent"))
    few = ("photo.png", "--mask", "mask.png", "--steps", "2")
    for words, said in (
        (("tokens", *few), "`undiffuse inpaint`"),
        (("latent", *few, "--method", "ddrm"), "(of a latent model, so pixels are seen through its decoder)"),
    ):
        code, _, err = asked(capsys, "restore", *words)
        assert code == 1
        assert said in err and len(err.strip().splitlines()) == 1


def test_pictures_of_other_sizes_and_depths_are_restored(capsys: pytest.CaptureFixture[str]) -> None:
    levels = np.random.default_rng(1).integers(0, 65536, (13, 10)).astype(np.uint16)
    for name, size in (("large", (13, 10)), ("small", (5, 6))):
        Image.fromarray(levels[: size[0], : size[1]]).save(f"{name}.png")
        mask = np.full((*size, 1), 255, np.uint8)
        mask[2:4] = 0
        write_image(f"{name}-mask.png", mask)
        words = (f"{name}.png", "--mask", f"{name}-mask.png", "--method", "ddnm", "--steps", "2", "--samples", "1")
        code, out, err = asked(capsys, "restore", "digits", *words, "--json")
        assert code == 0, err
        after = read_image(json.loads(out)["items"][0]["files"]["mean"])
        assert after.shape == (*size, 1)
        kept = np.r_[0:2, 4 : size[0]]  # 16-bit levels as bytes
        assert np.abs(after[kept, :, 0] - levels[kept, : size[1]] / 257).max() <= 0.51


def test_latent_models_restore_pictures_of_other_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    continuous(codec=True).save(Path("latent"))
    levels = np.random.default_rng(1).integers(0, 256, (13, 10, 1)).astype(np.uint8)
    few = ("--method", "dps", "--steps", "2", "--samples", "1", "--json")
    for name, size, nfe in (("large", (13, 10), 2 * 6), ("small", (5, 6), 2)):  # of 4 x 3 latents 3 x 2 tiles of 2
        write_image(f"{name}.png", levels[: size[0], : size[1]])
        code, out, err = asked(capsys, "restore", "latent", f"{name}.png", "--operator", "blur:uniform,3", *few)
        assert code == 0, err
        (item,) = json.loads(out)["items"]
        assert (item["nfe"], read_image(item["files"]["mean"]).shape) == (nfe, (*size, 1))
    code, _, err = asked(capsys, "restore", "latent", "large.png", "--operator", "blur:uniform,3", "--tile", "5", *few)
    assert code == 1 and "multiple of" in err and len(err.strip().splitlines()) == 1


def test_the_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, "solvers", "--restore", "--json")
    assert code == 0
    methods = {row["name"]: row for row in json.loads(out)["methods"]}
    assert methods["ddrm"]["needs"] == ["svd"]
    assert asked(capsys, "solvers", "--restore", "--model", "digits")[0] != 0


def test_labels_and_guidance_reach_the_prior(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("restore", "digits", "photo.png", "--mask", "mask.png", "--steps", "4", "--samples", "1", "--json")
    means = []
    for asks in ((), ("--label", "3"), ("--label", "8"), ("--label", "3", "--guidance", "3")):
        code, out, err = asked(capsys, *words, *asks)
        assert code == 0, err
        (item,) = json.loads(out)["items"]
        means.append(read_image(item["files"]["mean"]).tobytes())
    assert len(set(means)) == 4
    for asks, said in ((("--guidance", "2"), "needs a condition"), (("--label", "77"), "label 77 does not exist")):
        code, _, err = asked(capsys, *words, *asks)
        assert code != 0
        assert said in err
