"""`undiffuse train-codec` and `undiffuse codec`: from pictures to tokens, figures, files; one line for bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from undiffuse.cli.main import run

CODEC = ("codec.width=4", "codec.halvings=1", "codec.channels=3", "codec.codes=12", "codec.batch_size=8")
QUICK = ("codec.steps=4", "train.checkpoint_every=4", "train.preview_every=2", "train.log_every=2")
MODEL = ("model.width=16", "model.depth=1", "model.heads=2", "train.steps=3", "train.batch_size=8", "train.previews=4")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    np.save("pictures.npy", (np.random.default_rng(0).random((40, 8, 8, 3)) * 255).astype(np.uint8))
    return tmp_path


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = run(list(words))
    said = capsys.readouterr()
    return code, said.out, said.err


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, out, err = asked(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    code, out, err = asked(capsys, *words)
    assert code != 0
    lines = [line for line in (out + err).splitlines() if "error" in line.lower()]
    assert len(lines) == 1, out + err
    return lines[0]


def trained(capsys: pytest.CaptureFixture[str], out: str = "codec") -> dict[str, Any]:
    return answer(capsys, "train-codec", "pictures.npy", *CODEC, *QUICK, "--out", out)


def test_a_codec_is_trained_reported_rebuilt_and_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    made = trained(capsys)
    assert made["codebook"]["codes"] == 12 and 0 < made["codebook"]["usage"] <= 1
    assert sorted(path.name for path in Path("codec/samples").iterdir()) == ["step-00000002.png", "step-00000004.png"]
    page = Path(made["report"]).read_text()
    assert "perplexity" in page and page.count("data:image/png") >= 2
    logged = [json.loads(line) for line in Path("codec/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "codebook" in row] == [2, 4]

    told = answer(capsys, "codec", "report", "codec", "pictures.npy")
    assert {key: told[key] for key in made["codebook"]} == made["codebook"]
    assert told["items"] == 4  # what its training held out
    assert "How often each code vector occurs" in Path(told["report"]).read_text()
    assert "numbers of 12 code vectors" in answer(capsys, "info", "codec")["codec"]

    new = answer(
        capsys,
        "codec",
        "refit",
        "codec",
        "pictures.npy",
        "--codes",
        "9",
        "--train-steps",
        "3",
        "--train-batch-size",
        "8",
    )
    assert new["before"]["codes"] == 12 and new["after"]["codes"] == new["rebuilt"]["codes"] == 9
    before, after = (load_file(f"{name}/codec.safetensors") for name in ("codec", "codec-refit"))
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("encoder."))
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith("decoder."))

    words = ("train", "pictures.npy", "recipe=vq-image", "codec=codec-refit", *MODEL)
    run_folder = answer(capsys, *words, "--out", "run")["folder"]
    assert answer(capsys, "sample", run_folder, "-n", "2", "--out", "drawn")
    assert list(Path("drawn").rglob("*.png"))
    assert "9 code vectors" in answer(capsys, "info", "run")["codec"]
    assert answer(capsys, "likelihood", "run", "pictures.npy", "-n", "2", "--draws", "2")["dims"] == 16
    assert "one size" in refusal(capsys, "sample", "run", "--size", "16x16")
    judged = answer(capsys, "evaluate", "run", "pictures.npy", "-n", "4", "--metrics", "energy,frechet")
    assert judged
    line = refusal(capsys, "train-codec", "pictures.npy", *CODEC, *QUICK, "codec.codes=13", "--out", "codec")
    assert "codec.codes: 12 -> 13" in line


def test_a_stopped_codec_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    trained(capsys)
    again = trained(capsys)  # all is done: nothing changes
    assert again["codebook"] == trained(capsys, "other")["codebook"]
    one, two = (load_file(f"{name}/codec.safetensors") for name in ("codec", "other"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_an_autoencoder_is_trained_alone_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("codec.kind=autoencoder", "codec.width=4", "codec.halvings=1", "codec.batch_size=8", "codec.steps=2")
    made = answer(capsys, "train-codec", "pictures.npy", *words, "--out", "vae")
    assert made["codebook"] is None
    assert "no codebook" in refusal(capsys, "codec", "report", "vae", "pictures.npy")
    assert "no codebook" in refusal(capsys, "codec", "refit", "vae", "pictures.npy")
    line = refusal(capsys, "train", "pictures.npy", "recipe=vq-image", "codec=vae", *MODEL, "--out", "run")
    assert "makes numbers" in line and "gaussian" in line


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    trained(capsys)
    refit = ("codec", "refit", "codec", "pictures.npy", "--train-steps", "0")
    assert "something else" in refusal(capsys, *refit, "--out", "codec")  # would write over it
    assert "577 vectors" in refusal(capsys, *refit, "--codes", "577")  # 36 items of 16 tokens: 576 encodings
    assert "belongs to refit" in refusal(capsys, "codec", "report", "codec", "pictures.npy", "--codes", "4")
    assert "report or refit" in refusal(capsys, "codec", "mend", "codec", "pictures.npy")
    assert "there is no codec 'nowhere'" in refusal(capsys, "codec", "report", "nowhere", "pictures.npy")
    assert "codec.steps" in refusal(capsys, "train-codec", "pictures.npy", "train.steps=5")
    assert "undiffuse train only" in refusal(capsys, "train-codec", "pictures.npy", "model.width=8")
    assert "does not divide 8 x 8" in refusal(capsys, "train-codec", "pictures.npy", "codec.halvings=4", "--out", "x")
    assert "pip install lpips" in refusal(
        capsys, "train-codec", "pictures.npy", *CODEC, *QUICK, "codec.perceptual=1", "--out", "y"
    )
    assert "without a denoiser" in refusal(capsys, "sample", "codec")
    np.save("large.npy", np.zeros((6, 16, 16, 3), dtype=np.uint8))
    assert "shape" in refusal(capsys, "train", "large.npy", "recipe=vq-image", "codec=codec", *MODEL, "--out", "z")


def test_broken_weights_and_other_codebooks_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    trained(capsys)
    answer(capsys, "train", "pictures.npy", "recipe=vq-image", "codec=codec", *MODEL, "--out", "run")
    weights, path = load_file("codec/codec.safetensors"), "run/codec.safetensors"
    save_file(weights | {"vectors": weights["vectors"].flip(0)}, path)
    assert "tokens changed" in refusal(capsys, "sample", "run", "-n", "1")
    config = json.loads(Path("run/config.json").read_text())
    config["codec"]["options"]["codes"] = 9
    Path("run/config.json").write_text(json.dumps(config))
    assert "9 code vectors" in refusal(capsys, "sample", "run", "-n", "1")
    save_file(weights | {"encoder.enter.bias": weights["encoder.enter.bias"] * float("nan")}, "codec/codec.safetensors")
    for words in (("report",), ("refit", "--train-steps", "0")):
        assert "not finite" in refusal(capsys, "codec", words[0], "codec", "pictures.npy", *words[1:])
