"""Features of networks of diffusers: maps of U-Nets, and tokens of transformers as maps of the picture alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse.models import load
from undiffuse.networks.hooks import capture
from undiffuse.tasks.features import FeatureEncoder
from undiffuse.tasks.match import match

Pipelines = Callable[[str], tuple[Any, Path]]


@pytest.mark.parametrize(
    ("name", "layer", "cell"), [("ddim", "mid", 2), ("stable", "up0", 1), ("dit", "block0", 4), ("flux", "single0", 2)]
)
def test_blocks_of_diffusers_give_maps_of_the_picture(pipelines: Pipelines, name: str, layer: str, cell: int):
    model = load(pipelines(name)[1], **({"size": 16} if name == "flux" else {}))
    x = torch.rand(3, *model.spec.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoder = FeatureEncoder(model, layer, 0.1, batch_size=2)
    found = encoder.maps(x)[layer]
    side = model.state_spec.shape[-1] // cell
    assert found.shape[2:] == (side, side) and encoder.layers[layer] == found.shape[1:]
    assert torch.equal(found, encoder.maps(x)[layer])
    assert FeatureEncoder(model, "auto", 0.1, pool=1).names


def test_tokens_become_the_cells_they_stand_for(pipelines: Pipelines):
    model = load(pipelines("dit")[1])
    x = torch.zeros(1, *model.spec.shape)
    with capture(model.denoiser.backbone, ["block0"]) as taken:
        encoder = FeatureEncoder(model, "block0", 0.1)
        found = encoder.maps(x)["block0"]
        tokens = taken["block0"]  # (1, L, C), row by row
    wide = found.shape[3]
    assert tokens.shape[1] == wide**2
    torch.testing.assert_close(found[0, :, 1, 0], tokens[0, wide].float())


def test_points_are_matched_by_blocks_of_diffusers(pipelines: Pipelines):
    """Of a picture and itself; a cell is a latent, 2 pixels wide."""
    model = load(pipelines("stable")[1], size=16)
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = match(model, picture, [(6.5, 8.5)], picture, layers=["up1"], size=16, draws=2)
    torch.testing.assert_close(found.positions, found.points, rtol=0, atol=1.0)
    assert found.grid == (8, 8)
