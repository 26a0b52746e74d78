"""Features for tuning: differentiable, frozen, indifferent to the batch, and refused where they are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distillation.tiny import unet_denoiser
from undiffuse.data import TensorDataset
from undiffuse.distillation import mmd_features
from undiffuse.distillation.mmd_features import make_features
from undiffuse.errors import ConfigError
from undiffuse.metrics.networks import clip_features
from undiffuse.models import Model
from undiffuse.spec import DataSpec


def images(n: int = 40, side: int = 8, classes: int = 2) -> TensorDataset:
    """Bright and dark noise, which is easy to tell apart."""
    label = torch.arange(n) % 2
    x = 0.3 * torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(0)) + (
        label[:, None, None, None] - 0.5
    )
    spec = DataSpec(kind="image", shape=(1, side, side), range=(-1.0, 1.0), classes=("dark", "bright")[:classes])
    return TensorDataset(data=x, spec=spec, labels=label if classes else None)


def check(features: Any, side: int = 8) -> None:
    """Gradients reach values out of range too, rows do not depend on each other, and asking twice changes nothing."""
    x = (3.0 * torch.randn(4, 1, side, side, generator=torch.Generator().manual_seed(1))).requires_grad_()
    found = features(x)
    assert found.shape == (4, features.width)
    (slope,) = torch.autograd.grad(found[0].square().sum(), x)
    assert float(slope[0].abs().max()) > 0 and float(slope[1:].abs().max()) == 0
    torch.testing.assert_close(features(x[:2]), found[:2], rtol=1e-4, atol=1e-5)


def test_pixels_are_the_values():
    features = make_features("pixels", images())
    check(features)
    assert features.width == 64


def test_a_random_network_is_a_function_of_its_seed():
    first, again, other = (make_features("random", images(classes=0), seed=seed) for seed in (0, 0, 1))
    check(first)
    x = images().data[:3]
    assert torch.equal(first(x), again(x)) and not torch.allclose(first(x), other(x))
    assert 0.1 < float(first(images().data).std(0).mean()) < 10  # normalised on the data, neither flat nor huge


def test_a_classifier_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mmd_features, "_EPOCHS", 2)
    first = make_features("classifier", images(), folder=tmp_path / "kept")
    check(first)
    monkeypatch.setattr("undiffuse.metrics.classifier_training.train_classifier", None)
    again = make_features("classifier", images(), folder=tmp_path / "kept")
    x = images().data[:3]
    assert torch.equal(first(x), again(x)) and "trained on the labels" in first.note


def test_another_model_gives_its_activations(tmp_path: Path):
    denoiser = unet_denoiser()
    assert denoiser.spec is not None
    Model(denoiser, denoiser.spec).save(tmp_path / "model")
    check(make_features(f"model:{tmp_path / 'model'}", images(side=4)), side=4)


@pytest.mark.slow  # importing transformers takes seconds
def test_clip_gives_its_embedding_and_passes_gradients_out_of_range(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=6,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    features = make_features(f"clip:{tmp_path / 'clip'}", images())
    assert features.width == 6
    check(features)
    measured = clip_features(tmp_path / "clip", bounds=(-1.0, 1.0)).features(images().data)
    levels = ((images().data.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1  # what the metric rounds first
    torch.testing.assert_close(features(levels).double(), torch.from_numpy(measured), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("clasifier", "Did you mean 'classifier'"),
        ("clip", "need a place; write clip:FOLDER"),
        ("inception", "write inception:inception.safetensors"),
        ("random:3", "no use for; write random"),
        ("classifier", "need labels"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, line):
    with pytest.raises(ConfigError, match=line):
        make_features(name, images(classes=0))
