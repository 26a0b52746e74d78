from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from undiffuse.data import TensorDataset
from undiffuse.errors import CheckpointError, DataError
from undiffuse.metrics import CLASSIFIERS, ClassifierConfig, load_classifier, save_classifier, train_classifier
from undiffuse.metrics.classifier import build_classifier
from undiffuse.metrics.classifier_training import accuracy, augment
from undiffuse.noise import KeyedNoise
from undiffuse.spec import DataSpec

SMALL = {"widths": (4, 8), "blocks": (0, 1), "batch": 16, "flip": False, "rate": 0.1}


def stripes(n: int = 128, side: int = 8) -> TensorDataset:
    """Rows or columns, with noise: two classes that a small network learns in seconds."""
    labels = torch.arange(n) % 2
    lines = (torch.arange(side) % 2).float().expand(side, side)
    x = torch.where(labels.view(-1, 1, 1, 1) == 0, lines, lines.T) * 160 + 48
    noise = torch.randn(n, 1, side, side, generator=torch.Generator().manual_seed(0))
    spec = DataSpec(kind="image", shape=(1, side, side), range=(0.0, 255.0), classes=("columns", "rows"))
    return TensorDataset(data=(x + 20 * noise).clamp(0, 255).round().to(torch.uint8), spec=spec, labels=labels)


def test_a_classifier_learns_and_says_how_well(tmp_path: Path):
    data = stripes()
    network = train_classifier(data, stripes(40), epochs=4, **SMALL)
    info = network.config.info
    assert info["accuracy"] == 1.0 and info["images"] == 128 and info["held_out_images"] == 40
    assert network.config.classes == ("columns", "rows")
    again = load_classifier(save_classifier(network, tmp_path / "stripes"))
    assert again.config == network.config and not again.training
    x = data.batch(torch.arange(8))["x"]
    assert torch.equal(again(x), network(x))  # what is stated is true of the file
    assert again.features(x).shape == (8, 8)
    assert torch.equal(again.head(again.features(x)), again(x))
    assert accuracy(again, data) == 1.0


def test_training_goes_on_bit_for_bit_from_its_checkpoint(tmp_path: Path):
    data = stripes(64)
    whole = train_classifier(data, data, epochs=3, **SMALL)

    class Stop(Exception):
        pass

    def stop(event):
        if getattr(event, "info", None) and event.done == 8:  # the accuracy of the second epoch
            raise Stop

    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Stop):
        train_classifier(data, data, epochs=3, checkpoint=path, listener=stop, **SMALL)
    resumed = train_classifier(data, data, epochs=3, checkpoint=path, **SMALL)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_weights_depend_on_the_seed_alone():
    config = ClassifierConfig(shape=(3, 9, 9), classes=("a", "b"), widths=(4, 8), blocks=(1, 2))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = build_classifier(config, 1), build_classifier(config, 1), build_classifier(config, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.head.weight, second.head.weight) and not torch.equal(first.head.weight, other.head.weight)
    assert first(torch.zeros(2, 3, 9, 9)).shape == (2, 2)  # odd sides


def test_augmentation_shifts_and_mirrors_and_loses_nothing_else():
    x = torch.arange(64.0).view(1, 1, 8, 8).repeat(400, 1, 1, 1)
    moved = augment(x, KeyedNoise(0, range(400)), 3, flip=True)
    assert moved.shape == x.shape and torch.equal(moved, augment(x, KeyedNoise(0, range(400)), 3, flip=True))
    inner = moved[:, 0, 2:6, 2:6]
    assert set((inner[:, 0, 0] // 8 - 2).tolist()) == {-1.0, 0.0, 1.0}
    assert set((augment(x, KeyedNoise(0, range(400)), 3, flip=False)[:, 0, 2, 2] % 8 - 2).tolist()) == {-1.0, 0.0, 1.0}
    mirrored = inner[:, 0, 1] < inner[:, 0, 0]
    assert mirrored.float().mean() == pytest.approx(0.5, abs=4 * 0.5 / 20)
    straight = augment(x, KeyedNoise(0, range(400)), 3, flip=False)[:, 0, 2:6, 2:6]
    assert (straight[:, :, 1:] == straight[:, :, :-1] + 1).all()
    assert not torch.equal(moved, augment(x, KeyedNoise(0, range(400)), 4, flip=True))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shipped_classifiers_load_and_state_their_accuracy(name):
    try:
        network = load_classifier(name)
    except CheckpointError as error:
        pytest.skip(str(error))
    assert network.config.shape == (3, 32, 32) and len(network.config.classes) == 10
    assert 0.8 < network.config.info["accuracy"] < 1.0 and network.config.info["held_out_images"] == 10_000
    assert torch.isfinite(network(torch.zeros(1, 3, 32, 32))).all()


def test_what_is_no_classifier_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="Did you mean 'cifar10-classifier'"):
        load_classifier("cifar10-clasifier")
    config = ClassifierConfig(shape=(1, 8, 8), classes=("a", "b"), widths=(4,), blocks=(1,))
    folder = save_classifier(build_classifier(config), tmp_path / "x")
    good = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**good, "widths": [5]}))
    with pytest.raises(CheckpointError, match="of another network"):
        load_classifier(folder)
    for bad in ({**good, "schema": 2}, {**good, "wdths": [4]}, [], {**good, "blocks": [1, 1]}):
        (folder / "config.json").write_text(json.dumps(bad))
        with pytest.raises(CheckpointError, match="describes no classifier"):
            load_classifier(folder)


def test_bad_requests_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="vector items"):
        train_classifier(TensorDataset(data=torch.zeros(4, 2), spec=DataSpec(kind="vector", shape=(2,))))
    with pytest.raises(ValueError, match="epochs=0"):
        train_classifier(stripes(), epochs=0)
    (tmp_path / "c").write_text("nothing")
    with pytest.raises(CheckpointError, match="remove it"):
        train_classifier(stripes(32), stripes(8), checkpoint=tmp_path / "c", **SMALL)
