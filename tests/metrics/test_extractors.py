from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from undiffuse.metrics import ClassifierFeatures, MotionFeatures, NetworkFeatures, PCAFeatures, extractors
from undiffuse.metrics.extractors import RealFeatures, kind_of, make_extractor
from undiffuse.metrics.items import Items
from undiffuse.spec import DataSpec

IMAGE = DataSpec(kind="image", shape=(3, 8, 8), range=(0.0, 255.0))
VIDEO = DataSpec(kind="video", shape=(4, 1, 6, 6))
CIFAR = DataSpec(kind="image", shape=(3, 32, 32), range=(0.0, 255.0))


@pytest.mark.parametrize(
    ("spec", "labelled", "kind"),
    [
        (IMAGE, True, "perceptron"),
        (IMAGE, False, "pca"),
        (VIDEO, True, "motion"),
        (DataSpec(kind="video", shape=(1, 1, 6, 6)), False, "pca"),
        (DataSpec(kind="volume", shape=(1, 4, 4, 4)), False, "pca"),
        (DataSpec(kind="signal", shape=(1, 40)), True, "perceptron"),
        (CIFAR, False, "classifier"),
        (DataSpec(kind="image", shape=(3, 32, 32)), False, "pca"),
    ],
)
def test_features_suit_the_data(spec, labelled, kind, monkeypatch):
    monkeypatch.setattr(extractors, "_is_shipped", lambda name: True)
    assert kind_of("auto", spec, labelled=labelled) == kind
    assert kind_of("dinov2:x", spec, labelled=labelled) == "dinov2"


@pytest.mark.parametrize(
    ("name", "made"), [("pca", PCAFeatures), ("perceptron", ClassifierFeatures), ("auto", ClassifierFeatures)]
)
def test_names_make_extractors(name, made):
    assert type(make_extractor(name, IMAGE, labelled=True)) is made
    assert type(make_extractor("auto", VIDEO, labelled=False)) is MotionFeatures


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("pac", IMAGE, "Did you mean 'pca'"),
        ("dinov2", IMAGE, "write dinov2:facebook/dinov2-small"),
        ("inception", IMAGE, r"write inception:inception\.safetensors"),
        ("pca:place", IMAGE, "has no use for"),
        ("classifier:", IMAGE, "name no place"),
        ("classifier", VIDEO, "of bounded images, and the data are video items"),
        ("dinov2:x", DataSpec(kind="image", shape=(3, 8, 8)), "image items without bounds"),
        ("motion", IMAGE, "those of video"),
        ("perceptron", IMAGE, "need labels"),
    ],
)
def test_names_that_do_not_suit_are_refused(name, spec, words):
    with pytest.raises(ValueError, match=words):
        make_extractor(name, spec, labelled=False)


def _counting(calls: list[int], weight: float = 1.0) -> NetworkFeatures:
    def network(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return weight * x.mean(dim=(2, 3))

    weights = {"w": torch.tensor(weight)}
    return NetworkFeatures(network, weights=weights, settings={"kind": "mean"}, note="means", bounds=(0.0, 255.0))


def test_features_of_real_items_by_networks_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    rng = np.random.default_rng(0)
    train, held_out = (Items(rng.uniform(0, 255, size=(n, 3, 8, 8))) for n in (20, 10))
    calls: list[int] = []

    def look(weight: float = 1.0, items: Items = train, cache: bool = True) -> np.ndarray:
        real = RealFeatures.of(_counting(calls, weight), IMAGE, items, held_out, cache=cache)
        return np.concatenate([real.train, real.held_out])

    first = look()
    assert calls == [20, 10]
    np.testing.assert_array_equal(look(), first)
    assert calls == [20, 10]
    look(weight=2.0)  # another network
    assert calls == [20, 10, 20, 10]
    look(items=Items(train.x + 1.0))  # other items, the same held-out ones
    assert calls == [20, 10, 20, 10, 20]
    np.testing.assert_array_equal(look(cache=False), first)
    assert calls == [20, 10, 20, 10, 20, 20, 10]
    assert len(list((tmp_path / "features").iterdir())) == 5


def test_features_of_fitted_extractors_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    items = Items(np.random.default_rng(0).normal(size=(20, 3, 8, 8)))
    real = RealFeatures.of("pca", IMAGE, items, items)
    assert real.train.shape == (20, 20) and real.name == "pca features"
    assert list(tmp_path.iterdir()) == []


def test_motion_features_see_the_order_of_frames():
    rng = np.random.default_rng(0)
    start, speed = rng.normal(size=(300, 1, 1, 4, 4)), rng.normal(size=(300, 1, 1, 1, 1)) * 0.1
    clips = start + speed * np.arange(4).reshape(1, 4, 1, 1, 1)
    extractor = MotionFeatures(components=3).fit(clips)
    features = extractor.features(clips)
    assert features.shape == (300, 6)
    assert features[:, :3].var(axis=0).sum() == pytest.approx(features[:, 3:].var(axis=0).sum())
    backwards = extractor.features(clips[:, ::-1])
    assert np.corrcoef(features[:, 3], backwards[:, 3])[0, 1] == pytest.approx(-1.0, abs=1e-6)
    assert np.corrcoef(features[:, 0], backwards[:, 0])[0, 1] > 0.9
    with pytest.raises(ValueError, match="no motion"):
        MotionFeatures().fit(clips[:, :1])
