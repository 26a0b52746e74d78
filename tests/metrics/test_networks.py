from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from undiffuse.errors import CheckpointError
from undiffuse.metrics import (
    ClassifierConfig,
    NetworkFeatures,
    classifier_features,
    dinov2_features,
    inception_features,
    save_classifier,
)
from undiffuse.metrics.classifier import build_classifier, load_classifier
from undiffuse.metrics.inception import Inception, load_inception
from undiffuse.metrics.networks import NetworkJudge, quantise

BOUNDS = (0.0, 255.0)


def _images(n: int = 3, channels: int = 3, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, size=(n, channels, side, side))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ClassifierConfig(shape=(3, 8, 8), classes=("b", "a"), widths=(4, 6), blocks=(0, 1), info={"accuracy": 0.5})
    return save_classifier(build_classifier(config), tmp_path_factory.mktemp("classifier") / "mine")


def test_values_are_rounded_to_eight_bits_as_in_a_file():
    x = torch.tensor([-1.2, -1.0, 0.0, 1 / 255 + 1e-4, 0.999, 1.0, 3.0])
    assert quantise(x, (-1.0, 1.0)).tolist() == [0, 0, 128, 128, 255, 255, 255]  # 127.5 is rounded to even
    every = torch.arange(256.0)
    assert torch.equal(quantise(every, BOUNDS).float(), every)


def test_classifier_features_are_those_of_the_network_on_quantised_images(folder):
    x = _images()
    extractor = classifier_features(folder, bounds=BOUNDS, shape=(3, 8, 8))
    network = load_classifier(folder)
    expected = network.features(torch.from_numpy(x.round() / 255.0 * 2.0 - 1.0).float())
    np.testing.assert_allclose(extractor.fit(x).features(x), expected.double().numpy(), atol=1e-6)
    np.testing.assert_array_equal(extractor.features(x), extractor.features(x.round()))
    assert extractor.note == "features of the classifier mine, right for 0.5000 of its held-out images"
    with pytest.raises(ValueError, match="sees images of shape"):
        classifier_features(folder, bounds=BOUNDS, shape=(3, 9, 9))
    with pytest.raises(ValueError, match="no images"):
        extractor.features(x[0])


def test_a_judge_names_classes_in_the_numbers_of_the_data(folder):
    network = load_classifier(folder)
    x = _images(20)
    own = network(torch.from_numpy(x.round() / 255.0 * 2.0 - 1.0).float()).argmax(dim=1).numpy()
    np.testing.assert_array_equal(NetworkJudge(network, ("b", "a"), BOUNDS).predict(x), own)
    np.testing.assert_array_equal(NetworkJudge(network, ("a", "b"), BOUNDS).predict(x), 1 - own)


def test_an_identity_tells_weights_and_settings_apart():
    def make(weight: float = 1.0, setting: int = 1, bounds: tuple[float, float] = BOUNDS) -> str:
        weights = {"w": torch.tensor([weight])}
        return NetworkFeatures(
            lambda x: x.flatten(1), weights=weights, settings={"s": setting}, note="", bounds=bounds
        ).identity

    assert make() == make()
    assert len({make(), make(weight=2.0), make(setting=2), make(bounds=(0.0, 1.0))}) == 4


def test_grey_images_are_shown_in_three_equal_channels():
    extractor = NetworkFeatures(lambda x: x.mean(dim=(2, 3)), weights={}, settings={}, note="", bounds=BOUNDS)
    found = extractor.features(_images(channels=1))
    assert found.shape == (3, 3) and (found == found[:, :1]).all()
    with pytest.raises(ValueError, match="1 or 3 channels"):
        extractor.features(_images(channels=4))


def test_inception_has_the_shapes_and_the_number_of_parameters_that_were_published():
    network = Inception().eval()
    # Keras states 21 802 784 without the last layer: its norms have mean and variance among the weights, no factor.
    norms = sum(len(module.bias) for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norms == 17_216
    assert sum(p.numel() for p in network.parameters()) == 21_802_784 - 2 * norms + norms
    with torch.device("meta"):
        x = torch.empty(1, 3, 299, 299)
    assert network.to("meta").maps(x).shape == (1, 2048, 8, 8)


def test_inception_reads_safetensors_and_nothing_else(tmp_path: Path):
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Inception().eval()
    state = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "inception.safetensors"
    save_file({**state, "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    extractor = inception_features(path, bounds=BOUNDS)
    x = _images(1, side=32)
    large = F.interpolate(
        torch.from_numpy(x.round() / 255).float(), size=(299, 299), mode="bilinear", align_corners=False
    )
    with torch.inference_mode():
        expected = network(large * 2 - 1).double().numpy()
    np.testing.assert_allclose(extractor.features(x), expected, rtol=1e-4, atol=1e-6)
    state.pop("Mixed_7c.branch_pool.bn.bias")
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"such as Mixed_7c\.branch_pool\.bn\.bias"):
        load_inception(path)
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match="pickle"):
        load_inception(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"there is no Inception file .*inception\.safetensors; make it of"):
        load_inception(path)


def test_average_pools_of_inception_do_not_count_their_padding():
    from undiffuse.metrics.inception import _average

    assert torch.equal(_average(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("dino")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.Dinov2Model(config).save_pretrained(folder)
    settings = {"crop_size": {"height": 28, "width": 28}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.slow
def test_dinov2_gives_the_class_token_of_images_prepared_as_it_asks(dino):
    from transformers import Dinov2Model

    extractor = dinov2_features(dino, bounds=BOUNDS)
    x = _images(side=32)
    pixels = torch.from_numpy(x.round() / 255).float()
    small = F.interpolate(pixels, size=(28, 28), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    with torch.inference_mode():
        expected = Dinov2Model.from_pretrained(dino).eval()(pixel_values=(small - mean) / std).pooler_output
    np.testing.assert_allclose(extractor.features(x), expected.double().numpy(), atol=1e-5)
    before = extractor.identity
    (dino / "preprocessor_config.json").unlink()
    assert dinov2_features(dino, bounds=BOUNDS).identity != before  # another size and mean: other features


@pytest.mark.slow
def test_what_is_no_dinov2_is_refused(tmp_path: Path):
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match="cannot read DINOv2"):
        dinov2_features(tmp_path, bounds=BOUNDS)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r"DINOv2|dinov2"):
        dinov2_features(tmp_path, bounds=BOUNDS)
