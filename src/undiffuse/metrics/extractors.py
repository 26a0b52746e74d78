"""Choosing the features that sets are compared in, and the features of the real items, kept in a cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import torch

from undiffuse.cache import cache_folder, content_hash, load_or_make
from undiffuse.metrics.agreement import label_agreement
from undiffuse.metrics.classifier import CLASSIFIERS
from undiffuse.metrics.distances import Matrix
from undiffuse.metrics.features import ClassifierFeatures, FeatureExtractor, MotionFeatures, PCAFeatures
from undiffuse.metrics.items import Items
from undiffuse.metrics.networks import (
    NetworkFeatures,
    classifier_features,
    clip_features,
    dinov2_features,
    inception_features,
)
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean

FEATURES = ("auto", "classifier", "perceptron", "pca", "motion", "dinov2", "inception", "clip")
"""Names of extractors; dinov2, inception and clip need a place after a colon, classifier may have one."""

_NATURAL = (3, 32, 32)


@dataclass
class RealFeatures:
    """Features of the real items by one extractor.

    Args:
        extractor: The extractor, fitted.
        note: How to name it beside a figure.
        train_items: Real items that the model learned from.
        held_out_items: Real items that it did not.
        cache: Whether features are kept on disk; those of fitted extractors never are.
    """

    extractor: FeatureExtractor
    note: str
    train_items: Items
    held_out_items: Items
    cache: bool = True

    @classmethod
    def of(
        cls,
        extractor: str | FeatureExtractor,
        spec: DataSpec,
        train: Items,
        held_out: Items,
        *,
        seed: int = 0,
        cache: bool = True,
        device: torch.device | str = "cpu",
    ) -> RealFeatures:
        """Make the extractor of that name and fit it to the training items.

        Raises:
            ValueError: See `make_extractor`.
        """
        labelled = train.labels is not None and held_out.labels is not None
        if isinstance(extractor, str):
            extractor = make_extractor(extractor, spec, labelled=labelled, seed=seed, device=device)
            extractor.fit(train.x, train.labels)
        return cls(extractor, _note(extractor, held_out), train, held_out, cache)

    @property
    def name(self) -> str:
        """A short name: "pca features", "classifier features", ..."""
        return f"{getattr(self.extractor, 'name', type(self.extractor).__name__)} features"

    @cached_property
    def train(self) -> Matrix:
        """Features of the training items, float64 (N, D)."""
        return self._features(self.train_items)

    @cached_property
    def held_out(self) -> Matrix:
        """Features of the held-out items, float64 (M, D)."""
        return self._features(self.held_out_items)

    def _features(self, items: Items) -> Matrix:
        identity = getattr(self.extractor, "identity", None)
        if identity is None or not self.cache:
            return self.extractor.features(items.x)

        def make() -> dict[str, torch.Tensor]:
            return {"features": torch.from_numpy(self.extractor.features(items.x))}

        name = content_hash({"items": items.x}, {"extractor": identity})
        return load_or_make(cache_folder() / "features" / f"{name}.safetensors", make)["features"].numpy()


def make_extractor(
    name: str, spec: DataSpec, *, labelled: bool, seed: int = 0, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """Return the extractor of a name.

    Args:
        name: "pca" (principal components), "motion" (those of clips and of their changes, for video), "perceptron" (a
            small one fitted to the labels), "classifier" (the shipped one), "classifier:FOLDER" (one that
            `save_classifier` wrote), "dinov2:FOLDER or name on the hub", "inception:FILE.safetensors", "clip:FOLDER or
            name on the hub"; or "auto": for images of 32 x 32 pixels in colour the shipped classifier, for video
            motion, for data with labels the perceptron, else pca.
        spec: What the items are.
        labelled: Whether the real items have labels.
        seed: Seed of extractors that are fitted.
        device: Where networks run.

    Raises:
        ValueError: The name is unknown, lacks its place, or does not suit the data.
        CheckpointError: There is no such network.
    """
    kind, place = kind_of(name, spec, labelled=labelled), name.partition(":")[2]
    _check(name, kind, place, spec, labelled)
    if kind == "pca":
        return PCAFeatures(seed=seed)
    if kind == "motion":
        return MotionFeatures(seed=seed)
    if kind == "perceptron":
        return ClassifierFeatures(seed=seed)
    assert spec.range is not None
    if kind == "classifier":
        return classifier_features(place or CLASSIFIERS[0], bounds=spec.range, shape=spec.shape, device=device)
    make = {"dinov2": dinov2_features, "inception": inception_features, "clip": clip_features}[kind]
    return make(place, bounds=spec.range, device=device)


def kind_of(name: str, spec: DataSpec, *, labelled: bool) -> str:
    """Return the part of an extractor's name before the colon, or what "auto" stands for."""
    kind = name.partition(":")[0]
    return _suitable(spec, labelled) if name == "auto" else kind


def _suitable(spec: DataSpec, labelled: bool) -> str:
    if spec.kind == "video":
        return "motion" if spec.shape[0] > 1 else "pca"
    if spec.kind == "image" and spec.shape == _NATURAL and spec.range is not None and _is_shipped(CLASSIFIERS[0]):
        return "classifier"
    return "perceptron" if labelled else "pca"


def _is_shipped(name: str) -> bool:
    return (resources.files("undiffuse") / "builtin" / name / "config.json").is_file()


def _check(name: str, kind: str, place: str, spec: DataSpec, labelled: bool) -> None:
    if kind not in FEATURES:
        raise ValueError(
            f"features {name!r} are unknown; choose among {', '.join(FEATURES)}.{did_you_mean(kind, FEATURES)}"
        )
    examples = {
        "dinov2": "dinov2:facebook/dinov2-small",
        "inception": "inception:inception.safetensors",
        "clip": "clip:openai/clip-vit-base-patch32",
    }
    if kind in examples and not place:
        example = examples[kind]
        raise ValueError(f"features {name!r} need a place; write {example}.")
    if ":" in name and (not place or kind in ("auto", "pca", "motion", "perceptron")):
        raise ValueError(f"features {name!r} name no place, or one that {kind} has no use for; write {kind}.")
    if kind in ("classifier", *examples) and (spec.kind != "image" or spec.range is None):
        units = "" if spec.range is not None else " without bounds"
        raise ValueError(
            f"features {name!r} are of bounded images, and the data are {spec.kind} items{units}; use pca."
        )
    if kind == "motion" and spec.kind != "video":
        raise ValueError(f"features {name!r} are those of video, and the data are {spec.kind} items; use pca.")
    if kind == "perceptron" and not labelled:
        raise ValueError(f"features {name!r} need labels, and the data have none; use pca.")


def _note(extractor: Any, held_out: Items) -> str:
    if isinstance(extractor, NetworkFeatures):
        return extractor.note
    if isinstance(extractor, ClassifierFeatures) and held_out.labels is not None:
        own = label_agreement(extractor, held_out.x, held_out.labels)
        return f"features of a perceptron fitted on real items, right for {own.share:.4f} of held-out ones"
    if isinstance(extractor, MotionFeatures):
        return "features are principal components of real clips and of the changes between their frames"
    if isinstance(extractor, PCAFeatures):
        return "features are principal components of real items"
    return f"features of {type(extractor).__name__}"
