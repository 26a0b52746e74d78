"""The self-check finds a wrong prediction type or range of a trained network, and says nothing of random ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from undiffuse.data.synthetic import load_digits
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.errors import CheckpointError
from undiffuse.models import Model, load
from undiffuse.models.checks import check_model
from undiffuse.networks.build import build_network
from undiffuse.networks.options import UNetOptions
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.tables import ddpm_schedule
from undiffuse.spec import DataSpec


@pytest.fixture(scope="module")
def digits() -> tuple[Model, Tensor]:
    model = load("digits")
    return model, model.sample(16, cond={"label": [i % 10 for i in range(16)]})


class Recast(nn.Module):
    """A network that says the same in another prediction type; it finds alpha and sigma from what it is told."""

    def __init__(self, denoiser: NetworkDenoiser, kind: str) -> None:
        super().__init__()
        self.denoiser, self.kind, self.conditioners = denoiser, kind, denoiser.backbone.conditioners

    def forward(self, x: Tensor, level: Tensor, cond: object) -> Tensor:
        t = self.denoiser.process.schedule.time(-4 * level.double())
        post = self.denoiser(x, t, cond)
        process = self.denoiser.process
        return {"noise": process.eps(x, post, t), "data": post.mean}[self.kind]


@pytest.mark.parametrize("kind", ["noise", "data"])
def test_a_wrong_type_is_named_with_the_right_one(kind: str, digits: tuple[Model, Tensor]):
    model, data = digits
    recast = NetworkDenoiser(Recast(model.denoiser, kind), model.process, kind, spec=model.spec)
    assert check_model(Model(recast, model.spec), data).likely == kind
    recast.prediction = "v"
    with pytest.raises(CheckpointError, match=f"predicts v .* read as {kind}"):
        check_model(Model(recast, model.spec), data)
    if kind == "noise":  # gives noise back at the far end, whatever the data
        with pytest.raises(CheckpointError, match="of the noise back"):
            check_model(Model(recast, model.spec))


def test_a_right_type_passes_and_a_wrong_range_does_not(digits: tuple[Model, Tensor]):
    model, data = digits
    found = check_model(model, data)
    assert found.stated == found.likely == "v" and found.errors["v"] < 0.5 < found.errors["noise"]
    load("digits", check=True)
    low, high = model.spec.range
    wide = Model(model.denoiser, replace(model.spec, range=(2 * low - high, high)))  # model units are then [0, 1]
    with pytest.raises(CheckpointError, match="correct the range"):
        check_model(wide, data)


@pytest.mark.parametrize("kind", ["noise", "data", "v", "velocity", "edm"])
def test_random_networks_raise_no_alarm(kind: str):
    spec = DataSpec(kind="image", shape=(1, 8, 8), range=(0, 16))
    data = torch.from_numpy(load_digits()[0][:8]).reshape(8, 1, 8, 8) if kind == "v" else None
    for seed in range(4):
        network = build_network(UNetOptions(channels=8, multipliers=(1, 1), blocks=1, heads=1), spec, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weights in network.parameters():  # also the last layer, which starts at zero
                weights.add_(torch.randn(weights.shape, generator=generator), alpha=0.3)
        denoiser = NetworkDenoiser(network, GaussianProcess(ddpm_schedule()), kind, spec=spec)
        assert check_model(Model(denoiser, spec), data).likely in (None, kind)
