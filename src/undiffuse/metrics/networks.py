"""Features of images by frozen networks: a classifier of ours, DINOv2, Inception.

Images go through 8 bits per channel first, as a file would hold them, so that samples and real pictures are treated
alike. Grey images are shown to a network of colours as three equal channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from undiffuse.cache import content_hash
from undiffuse.errors import CheckpointError
from undiffuse.metrics.classifier import ImageClassifier, load_classifier
from undiffuse.metrics.distances import Array, Matrix
from undiffuse.metrics.inception import SIDE, load_inception
from undiffuse.metrics.vision import load_vision

_BATCH = 64
_VERSION = 1  # of the preprocessing below: part of the name of cached features
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class NetworkFeatures:
    """Features of images by a network that is not fitted to the data at hand.

    Args:
        network: Takes images (B, 3, H, W), or of the channels it knows, in [0, 1], and returns features (B, D).
        weights: The network's tensors, which with `settings` make its `identity`.
        settings: What the network does to an image first, as plain JSON types.
        note: How to name it beside a figure.
        bounds: Values of the data that are black and white.
        colours: Channels that the network wants; 0 takes images as they are.
        device: Where it runs.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        *,
        weights: dict[str, Tensor],
        settings: dict[str, Any],
        note: str,
        bounds: tuple[float, float],
        colours: int = 3,
        device: torch.device | str = "cpu",
    ) -> None:
        self.network, self.note, self.bounds, self.colours, self.device = network, note, bounds, colours, device
        self.name = str(settings.get("kind", "network"))
        self.classifier: ImageClassifier | None = None
        """The whole classifier, where the features are those of one."""
        self.identity = content_hash(weights, {"settings": settings, "bounds": list(bounds), "version": _VERSION})
        """A name for this extractor: another one wherever features could differ."""

    def fit(self, x: Array, labels: Array | None = None) -> NetworkFeatures:
        """Do nothing: the network is as it is."""
        return self

    def features(self, x: Array) -> Matrix:
        """Return float64 features (N, D) of images (N, C, H, W) in data units.

        Raises:
            ValueError: The images have other channels than the network can see.
        """
        images = torch.as_tensor(x)
        self._check(images)
        with torch.inference_mode():
            parts = [self.network(self._shown(part)).double().cpu() for part in images.split(_BATCH)]
        return torch.cat(parts).numpy()

    def _shown(self, x: Tensor) -> Tensor:
        return self.coloured(quantise(x, self.bounds).to(self.device).float() / 255.0)

    def coloured(self, pixels: Tensor) -> Tensor:
        """Return images (B, C, H, W) with the channels that the network wants: grey ones as three equal channels."""
        return pixels.expand(-1, 3, -1, -1) if self.colours == 3 and pixels.shape[1] == 1 else pixels

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or (self.colours and x.shape[1] not in (1, self.colours)):
            raise ValueError(
                f"items of shape {tuple(x.shape[1:])} are no images of 1 or {self.colours} channels (C, H, W)."
            )


class NetworkJudge:
    """The class that an `ImageClassifier` gives an image, in the numbers of the data.

    Args:
        network: The classifier.
        classes: Names of the data's classes, those of the network in any order.
        bounds: Values of the data that are black and white.
    """

    def __init__(self, network: ImageClassifier, classes: tuple[str, ...], bounds: tuple[float, float]) -> None:
        self.numbers = np.array([classes.index(name) for name in network.config.classes])
        device = next(network.parameters()).device
        self._logits = NetworkFeatures(
            lambda x: network(x * 2.0 - 1.0),
            weights={},
            settings={},
            note="",
            bounds=bounds,
            colours=0,
            device=device,
        )

    def predict(self, x: Array) -> NDArray[np.int64]:
        """Return the most likely labels (N,) of images (N, C, H, W) in data units."""
        return self.numbers[self._logits.features(x).argmax(axis=1)]


def quantise(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return values between `bounds` as 8-bit ones, rounded to the nearest and clipped, uint8."""
    low, high = bounds
    return ((x - low) * (255.0 / (high - low))).round().clamp(0.0, 255.0).to(torch.uint8)


def classifier_features(
    name: str | Path, *, bounds: tuple[float, float], shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> NetworkFeatures:
    """Return the last features of an `ImageClassifier`: a shipped one by its name, or one in a folder.

    Raises:
        CheckpointError: See `load_classifier`.
        ValueError: It was made for images of another shape.
    """
    network = load_classifier(name).to(device)
    if tuple(network.config.shape) != tuple(shape):
        raise ValueError(
            f"the classifier {str(name)!r} sees images of shape {tuple(network.config.shape)} and these have "
            f"{tuple(shape)}; train one with undiffuse.metrics.train_classifier, or choose other features."
        )
    share = network.config.info.get("accuracy")
    right = f", right for {share:.4f} of its held-out images" if isinstance(share, float) else ""
    extractor = NetworkFeatures(
        lambda x: network.features(x * 2.0 - 1.0),
        weights=network.state_dict(),
        settings={"kind": "classifier"},
        note=f"features of the classifier {Path(name).name}{right}",
        bounds=bounds,
        colours=0,
        device=device,
    )
    extractor.classifier = network
    return extractor


def dinov2_features(
    name: str | Path, *, bounds: tuple[float, float], device: torch.device | str = "cpu"
) -> NetworkFeatures:
    """Return the class token of a DINOv2 network, read by transformers from a folder or by its name on the hub.

    Images are resized to the crop size in preprocessor_config.json (224 x 224 pixels where it names none) by bicubic
    interpolation with antialiasing, whole, not cropped; then its mean and standard deviation apply.

    Raises:
        CheckpointError: transformers is not installed, or there is no such network in safetensors.

    Source: Oquab et al. 2023, "DINOv2", arXiv:2304.07193; Stein et al. 2023, arXiv:2306.04675, for its use in Frechet
        distances.
    """
    network, side, mean, std = _load_dinov2(name)
    network = network.to(device)
    centre, scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))

    def see(x: Tensor) -> Tensor:
        x = _clipped(F.interpolate(x, size=side, mode="bicubic", antialias=True, align_corners=False))
        return network(pixel_values=(x - centre) / scale).last_hidden_state[:, 0]

    return NetworkFeatures(
        see,
        weights=network.state_dict(),
        settings={"kind": "dinov2", "side": side, "mean": mean, "std": std},
        note=f"features of {name}",
        bounds=bounds,
        device=device,
    )


def inception_features(
    path: str | Path, *, bounds: tuple[float, float], device: torch.device | str = "cpu"
) -> NetworkFeatures:
    """Return the last pooling layer of the Inception network, (N, 2048), with weights from a safetensors file.

    Images are resized to 299 x 299 pixels by bilinear interpolation without antialiasing, as the PyTorch port does.

    Raises:
        CheckpointError: See `load_inception`.
    """
    network = load_inception(path).to(device)

    def see(x: Tensor) -> Tensor:
        return network(F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False) * 2.0 - 1.0)

    return NetworkFeatures(
        see,
        weights=network.state_dict(),
        settings={"kind": "inception", "side": SIDE},
        note="features of the Inception network of FID",
        bounds=bounds,
        device=device,
    )


def clip_features(
    name: str | Path, *, bounds: tuple[float, float], device: torch.device | str = "cpu"
) -> NetworkFeatures:
    """Return the image embedding of a CLIP network, read by transformers from a folder or by its name on the hub.

    Images are resized whole to the network's size by bicubic interpolation with antialiasing; then CLIP's mean and
    standard deviation apply.

    Raises:
        CheckpointError: transformers is not installed, or there is no such network in safetensors.

    Source: Radford et al. 2021, "Learning transferable visual models from natural language supervision",
        arXiv:2103.00020.
    """
    network = _load_clip(name).to(device)
    side = network.config.image_size
    centre, scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in _CLIP)

    def see(x: Tensor) -> Tensor:
        x = _clipped(F.interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False))
        return network(pixel_values=(x - centre) / scale).image_embeds

    return NetworkFeatures(
        see,
        weights=network.state_dict(),
        settings={"kind": "clip", "side": side},
        note=f"features of {name}",
        bounds=bounds,
        device=device,
    )


class _Clip(torch.autograd.Function):
    """Clipping to [0, 1] whose gradient passes: values out of range are those that most need one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0.0, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _clipped(x: Tensor) -> Tensor:
    return _Clip.apply(x)  # type: ignore[no-any-return]


def _load_clip(name: str | Path) -> Any:
    return load_vision(name, "CLIP", "openai/clip-vit-base-patch32", loader="CLIPVisionModelWithProjection")


def _load_dinov2(name: str | Path) -> tuple[nn.Module, list[int], list[float], list[float]]:
    network = load_vision(name, "DINOv2", "facebook/dinov2-small", kinds=("dinov2", "dinov2_with_registers"))
    try:
        settings = _preprocessing(str(name), Path(name).is_dir())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read preprocessor_config.json of {str(name)!r} ({error}).") from error
    crop = settings.get("crop_size") or {}
    side = [int(crop.get("height", 224)), int(crop.get("width", 224))]
    mean, std = (
        list(settings.get(key, default)) for key, default in zip(("image_mean", "image_std"), IMAGENET, strict=True)
    )
    return network, side, mean, std


def _preprocessing(name: str, local: bool) -> dict[str, Any]:
    """Return preprocessor_config.json as it stands, from the folder or the hub; nothing where there is none."""
    import json

    from transformers.utils import cached_file

    path = cached_file(
        name, "preprocessor_config.json", local_files_only=local, _raise_exceptions_for_missing_entries=False
    )
    return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))
