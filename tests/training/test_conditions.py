"""Trained models do what their conditions say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from undiffuse.data import TensorDataset
from undiffuse.denoisers import NetworkDenoiser
from undiffuse.models import Model
from undiffuse.models.conditions import fit_conditions
from undiffuse.networks import DiTOptions, MLPOptions, UNetOptions, build_network
from undiffuse.networks.options import NetworkOptions
from undiffuse.process import GaussianProcess, make_schedule
from undiffuse.spec import ConditionSpec, DataSpec
from undiffuse.training.build import make_objective
from undiffuse.training.options import DenoisingOptions, TrainOptions
from undiffuse.training.trainer import Trainer

COLOURS = {"a red square": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "a blue square": (-1.0, -1.0, 1.0)}
WORDS = list(COLOURS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (UNetOptions(channels=16, multipliers=(1,), blocks=1, heads=2), 60),
        (DiTOptions(width=32, depth=2, heads=2, patch=2), 60),
        (MLPOptions(width=64, depth=2), 300),
    ],
    ids=["unet", "dit", "mlp"],
)
def test_the_caption_decides_the_colour(options: NetworkOptions, steps: int, tmp_path: Path):
    """Where the caption were ignored, the right colour of 48 would come by chance: 16 +- 3.3."""
    shape = (3,) if options.kind == "mlp" else (3, 4, 4)
    kind = "vector" if options.kind == "mlp" else "image"
    spec = DataSpec(kind=kind, shape=shape, cond={"caption": ConditionSpec(kind="text", length=16)})
    asked = [WORDS[i % 3] for i in range(96)]
    colours = torch.tensor([COLOURS[word] for word in asked]).reshape(96, 3, *[1] * (len(shape) - 1))
    shade = torch.rand(96, 1, *shape[1:], generator=torch.Generator().manual_seed(0))
    cond = fit_conditions({"caption": asked}, 96, spec, torch.device("cpu"))
    dataset = TensorDataset(data=colours * (0.6 + 0.4 * shade), spec=spec, cond=dict(cond))
    process = GaussianProcess(make_schedule("rf"))
    denoiser = NetworkDenoiser(build_network(options, spec), process, "velocity", spec=spec)
    train = TrainOptions(steps=steps, batch_size=32, lr=3e-3, warmup=10, checkpoint_every=1000)
    Trainer(denoiser, make_objective(DenoisingOptions(), denoiser), dataset, train, tmp_path).run()
    wanted = colours.flatten(1).reshape(96, 3, -1)[:48, :, 0].argmax(1)
    for guidance in (1.0, 2.0):
        drawn = Model(denoiser, spec).sample(48, cond={"caption": asked[:48]}, steps=10, guidance=guidance)
        right = drawn.reshape(48, 3, -1).mean(2).argmax(1) == wanted
        assert int(right.sum()) >= 46
