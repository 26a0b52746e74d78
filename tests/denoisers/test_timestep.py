"""Which processes a network that counts training steps can be trained on."""

from __future__ import annotations

from typing import Any

import pytest

from tests.pretrained.trained import UNET, recipe
from undiffuse.errors import ConfigError
from undiffuse.spec import DataSpec
from undiffuse.training.build import build_denoiser

pytest.importorskip("diffusers")


@pytest.mark.parametrize(
    ("process", "words"),
    [
        ({"schedule": "cosine"}, "process.schedule to ddpm, scaled-linear, cosine-table or rf"),
        ({"schedule": "ddpm", "prediction": "velocity"}, "process.prediction to noise or data or v"),
        ({"schedule": "ddpm", "prediction": "noise", "zero_snr": True}, "process.prediction to data or v"),
        ({"schedule": "rf", "prediction": "v"}, "process.prediction to velocity"),
        ({"schedule": "rf", "prediction": "velocity", "shift": 3.0}, "process.shift=1 instead of 3"),
        ({"schedule": "ddpm", "start": "source"}, "walks from noise only"),
        ({"schedule": "ddpm", "data_std": 0.5}, "process.data_std=0.5 scales what our networks see"),
    ],
)
def test_processes_that_no_scheduler_knows_are_refused_before_training(process: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=words):
        build_denoiser(recipe(UNET, **process), DataSpec(kind="image", shape=(3, 8, 8)))
