"""Sampling images of other sizes than the spec's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.models import Model, load
from undiffuse.networks.build import build_network
from undiffuse.networks.options import DiTOptions, UNetOptions
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.spec import DataSpec

SPEC = DataSpec(kind="image", shape=(1, 8, 8), range=(0.0, 255.0), sizes=((12, 4), (8, 8), (4, 12)))
UNET = UNetOptions(channels=8, multipliers=(1, 1), blocks=1, attention=(-1,))


def model(options: Any = UNET, spec: DataSpec = SPEC) -> Model:
    network = build_network(options, spec)
    return Model(NetworkDenoiser(network, GaussianProcess(make_schedule("cosine")), "v", spec=spec), spec)


def dit(positions: str) -> DiTOptions:
    return DiTOptions(width=16, depth=1, heads=2, patch=4, positions=positions)  # type: ignore[arg-type]


def test_samples_have_the_size_asked_for_and_the_default_is_that_of_the_spec():
    drawn = model()
    assert drawn.sample(2, steps=2).shape == (2, 1, 8, 8)
    assert drawn.sample(2, steps=2, size=(5, 7)).shape == (2, 1, 5, 7)
    assert torch.equal(drawn.sample(2, steps=2, size=(8, 8)), drawn.sample(2, steps=2))
    parts = drawn.sample(3, steps=2, size=(4, 12), batch_size=2)
    torch.testing.assert_close(parts, drawn.sample(3, steps=2, size=(4, 12)), rtol=3e-5, atol=3e-3)


def test_patches_divide_the_size():
    drawn = model(dit("rope"))
    assert drawn.sample(1, steps=2, size=(4, 12)).shape == (1, 1, 4, 12)
    with pytest.raises(ValueError, match=r"size=\(6, 12\) does not fit; .* multiple of 4 pixels.* 12x4, 8x8, 4x12"):
        drawn.sample(1, steps=2, size=(6, 12))


def test_learned_positions_keep_to_their_size():
    with pytest.raises(ValueError, match="learned"):
        model(dit("learned")).sample(1, steps=2, size=(4, 12))


@pytest.mark.parametrize("size", [(8,), (0, 8), (8, 8, 8)])
def test_what_is_no_size_is_refused(size: tuple[int, ...]):
    with pytest.raises(ValueError, match="give height and width"):
        model().sample(1, steps=2, size=size)


def test_other_data_have_no_size():
    spec = DataSpec(kind="signal", shape=(1, 8))
    with pytest.raises(ValueError, match="is for images; this model makes signal data"):
        model(replace(UNET, attention=()), spec).sample(1, steps=2, size=(8, 8))


def test_sizes_and_rate_travel_with_the_model(tmp_path: Path):
    assert load(model().save(tmp_path / "image")).spec == SPEC
    spec = DataSpec(kind="signal", shape=(1, 8), range=(-1.0, 1.0), rate=8000.0)
    assert load(model(UNET, spec).save(tmp_path / "signal")).spec.rate == 8000.0


@pytest.mark.parametrize("fields", [{"kind": "image", "rate": 5.0}, {"kind": "image", "sizes": ((8, 8, 8),)}])
def test_rate_and_sizes_belong_to_their_kinds(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=r"rate=5|sizes="):
        DataSpec(shape=(1, 8, 8), **fields)
    old = {name: value for name, value in SPEC.to_json().items() if name not in ("rate", "sizes")}
    assert DataSpec.from_json(old) == replace(SPEC, sizes=())
