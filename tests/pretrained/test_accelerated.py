"""Few steps for pipelines of diffusers: `accelerate` begins with their network, and what it makes is a run of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pretrained import tiny
from undiffuse.distillation.acceleration import accelerate
from undiffuse.errors import CheckpointError
from undiffuse.models import load
from undiffuse.pretrained.convert import write_diffusers
from undiffuse.training.fine_tuning import tunable

diffusers = pytest.importorskip("diffusers")
QUICK: dict[str, Any] = {"steps": 2, "train_steps": 2, "batch_size": 4, "samples": 0, "checkpoint_every": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pipeline of grey pictures without classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = tiny.unet(diffusers, in_channels=1, out_channels=1)
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def weights(model: Any) -> list[torch.Tensor]:
    return list(model.module.parameters())


def test_a_pipeline_is_tuned_and_written_as_one_again(folder: Path, tmp_path: Path) -> None:
    whole = accelerate(folder, "digits", out=tmp_path / "whole", lr=1e-2, **QUICK).model
    asked: dict[str, Any] = {"steps": 2, "seed": 3, "solver": "ddim", "grid": "t"}
    before, after = load(folder).sample(4, **asked), whole.sample(4, **asked)
    assert (before - after).abs().max() > 1.0
    assert whole.defaults["steps"] == 2 and torch.equal(whole.sample(4, seed=3), after)
    again = load(write_diffusers(whole, tmp_path / "out"))
    torch.testing.assert_close(again.sample(4, **asked), after, rtol=0, atol=1e-4 * 255)


def test_what_is_tuned_begins_with_the_answers_of_the_pipeline(folder: Path) -> None:
    theirs = load(folder)
    ours = tunable(theirs, str(folder))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.denoiser(x, 0.5).mean, theirs.denoiser(x, 0.5).mean, rtol=0, atol=1e-5)
    assert all(part.requires_grad for part in weights(ours)) and ours.spec == theirs.spec
    digits = load("digits")
    assert tunable(digits, "digits") is digits and tunable(digits, "") is digits


@pytest.mark.filterwarnings("ignore:Frechet distance of")  # of 40 pictures
def test_a_transformer_with_classes_and_a_codec_is_tuned_on_pictures_without_labels(tmp_path: Path) -> None:
    tiny.dit(tmp_path / "theirs", diffusers, None).save_pretrained(tmp_path / "theirs")
    pictures = np.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=np.uint8)
    model = accelerate(tmp_path / "theirs", pictures, out=tmp_path / "run", **QUICK).model
    assert model.sample(2, cond={"label": 7}).shape == (2, 3, 16, 16)


def test_pipelines_with_prompts_are_refused_in_one_line(tmp_path: Path) -> None:
    tiny.build("stable", tmp_path / "theirs").save_pretrained(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=r"reads prompts, and its sampler is not tuned here; train a LoRA"):
        accelerate(tmp_path / "theirs", "digits", out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()
