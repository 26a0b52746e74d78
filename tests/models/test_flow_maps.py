"""A model that holds a flow map: on disk, as a few-step generator, and as the denoiser on its diagonal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.oracles.continuous import process_of
from undiffuse.analysis import log_likelihood
from undiffuse.denoisers.flow_map import Spans
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.errors import UndiffuseError
from undiffuse.models import Model, load
from undiffuse.networks.build import build_network
from undiffuse.networks.options import UNetOptions
from undiffuse.spec import DataSpec

SPEC = DataSpec(kind="image", shape=(1, 4, 4), range=(0, 1), classes=("a", "b"))


def held() -> NetworkFlowMap:
    network = build_network(UNetOptions(channels=8, multipliers=(1,), blocks=1), SPEC)
    made = NetworkFlowMap(NetworkDenoiser(network, process_of("cosine"), "v", spec=SPEC), start=0.99, guided=1.5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return made


def test_what_comes_back_is_what_was_saved(tmp_path: Path) -> None:
    model = Model(held(), SPEC, {"solver": "flow-map", "steps": 2})
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["kind"] == "flow-map" and config["flow_map"]["spans"] == "any" and config["flow_map"]["start"] == 0.99
    again = load(tmp_path)
    assert isinstance(again.module, NetworkFlowMap) and again.module.guided == 1.5 and "flow map" in repr(again)
    for settings in ({}, {"steps": 4}, {"solver": "consistency"}, {"solver": "dpm++2m", "steps": 3}):
        cond = {"label": "b"}
        torch.testing.assert_close(again.sample(3, cond=cond, **settings), model.sample(3, cond=cond, **settings))
    assert again.sample_result(3).nfe == 2


def test_jumps_have_no_published_grid() -> None:
    with pytest.raises(ValueError, match="a flow map jumps and has no published grid"):
        Model(held(), SPEC).sample(1, steps=2, grid="published")


@pytest.mark.parametrize("steps", [0, -5])
def test_fewer_jumps_than_one_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps} must be at least 1"):
        Model(held(), SPEC).sample(1, steps=steps)


def test_sample_i_is_the_same_in_any_batch() -> None:
    model = Model(held(), SPEC)
    whole = model.sample(5, seed=3, solver="consistency", steps=3, cond={"label": [0, 1, 0, 1, 0]})
    parts = model.sample(5, seed=3, solver="consistency", steps=3, cond={"label": [0, 1, 0, 1, 0]}, batch_size=2)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)


def test_its_denoiser_is_sampled_as_any_other() -> None:
    """With an embedding of 0 for the second time, the diagonal is the network's own denoiser."""
    made = held()
    torch.nn.init.zeros_(made.jump.second.weight)
    torch.nn.init.zeros_(made.jump.second.bias)
    settings = {"seed": 1, "solver": "dpm++2m", "steps": 4, "guidance": 2.0, "cond": {"label": "a"}}
    ours, theirs = (Model(part, SPEC).sample(3, **settings) for part in (made, made.denoiser))  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("option", [{"guidance_interval": (0.1, 1.0)}, {"guidance_rescale": 0.5}])
def test_options_of_guidance_that_jumps_cannot_follow_are_refused(option: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} needs a denoiser"):
        Model(held(), SPEC).sample(2, solver="flow-map", **option)


def test_samples_that_are_no_numbers_are_an_error() -> None:
    made = held()
    torch.nn.init.constant_(made.jump.second.weight, float("nan"))
    with pytest.raises(UndiffuseError, match="2 of 2 samples are not finite"):
        Model(made, SPEC).sample(2, solver="flow-map")


def test_a_map_of_jumps_alone_has_no_denoiser() -> None:
    made = held()
    made.spans = "steps"
    with pytest.raises(ValueError, match=r"trained for the jumps of a few steps only.*solver=flow-map"):
        _ = Model(made, SPEC).denoiser
    assert Model(made, SPEC).process is made.process


@pytest.mark.parametrize(
    ("spans", "more"), [("any", r" \(in Python diagonal\(\) of the map is a denoiser too\)"), ("clean", "")]
)
def test_a_likelihood_of_a_student_asks_for_its_teacher(spans: Spans, more: str) -> None:
    made = held()
    made.spans = spans
    with pytest.raises(ValueError, match=rf"name the model it was distilled from{more}\.$"):
        log_likelihood(Model(made, SPEC), torch.zeros(1, *SPEC.shape))
