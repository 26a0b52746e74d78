"""A small residual network that names the class of an image: its last features are what metrics compare images in.

Its weights depend on real images alone, so it is independent of the generative model that it judges. One is shipped
(`load_classifier("cifar10-classifier")`); `train_classifier` makes one for any labelled images.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse.errors import CheckpointError, ConfigError
from undiffuse.files import write_whole
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean

CLASSIFIERS = ("cifar10-classifier",)
"""Classifiers shipped with the package, in its `builtin` folder."""

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_FORMAT, _SCHEMA = "undiffuse-classifier", 1


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Shape of an `ImageClassifier`, and what is known about it.

    Args:
        shape: Shape of an image, (C, H, W).
        classes: Names of the classes, in order of their number.
        widths: Channels of each stage; every stage after the first halves height and width. The last is the number
            of features.
        blocks: Residual blocks of each stage.
        info: Facts about the training: data, epochs, seed, accuracy on held-out images.

    Raises:
        ValueError: A number does not make a network.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    widths: tuple[int, ...] = (32, 64, 128)
    blocks: tuple[int, ...] = (1, 1, 2)
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1 or len(self.classes) < 2:
            raise ValueError(
                f"shape={self.shape} and {len(self.classes)} class(es); expected (C, H, W) and at least two classes."
            )
        if len(self.widths) != len(self.blocks) or not self.widths or min(self.widths) < 1 or min(self.blocks) < 0:
            raise ValueError(f"widths={self.widths}, blocks={self.blocks}; expected as many of each, all 1 or more.")


class ImageClassifier(nn.Module):
    """Residual network with batch normalisation; maps images (B, C, H, W) in [-1, 1] to logits (B, K).

    Source: He et al. 2016, "Deep Residual Learning for Image Recognition", arXiv:1512.03385, in the variant for small
        images (section 4.2), with average pooling in the shortcuts.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.widths[0], *config.widths)
        self.stem = nn.Sequential(*_normalised(config.shape[0], widths[0], stride=1), nn.ReLU())
        blocks = []
        for stage, count in enumerate(config.blocks):
            for block in range(count):
                first = block == 0
                width = widths[stage] if first else widths[stage + 1]
                blocks.append(_Block(width, widths[stage + 1], stride=2 if first and stage > 0 else 1))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], len(config.classes))

    def features(self, x: Tensor) -> Tensor:
        """Return the mean of the last feature maps, (B, D); x is (B, C, H, W) in [-1, 1]."""
        return self.blocks(self.stem(x)).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K) of images (B, C, H, W) in [-1, 1]."""
        return self.head(self.features(x))


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_normalised(width_in, width, stride), nn.ReLU(), *_normalised(width, width, stride=1)
        )
        self.stride = stride
        self.skip = nn.Identity() if width_in == width else nn.Conv2d(width_in, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        short = F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
        return F.relu(self.skip(short) + self.residual(x))


def _normalised(width_in: int, width: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)


def build_classifier(config: ClassifierConfig, seed: int = 0) -> ImageClassifier:
    """Return a classifier with fresh weights that depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return ImageClassifier(config)


def save_classifier(classifier: ImageClassifier, folder: str | Path, info: dict[str, Any] | None = None) -> Path:
    """Write config.json and model.safetensors into `folder`: convolutions in float16, the rest in float32.

    Args:
        classifier: What to write.
        folder: Where; made where it does not exist.
        info: Replaces the facts in the config.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    config = classifier.config if info is None else replace(classifier.config, info=info)
    text = json.dumps({"format": _FORMAT, "schema": _SCHEMA, **asdict(config)}, indent=2) + "\n"
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_whole(target / _WEIGHTS, lambda path: save_file(stored_tensors(classifier), path))
        write_whole(target / _CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot write a classifier to {target}: {error.strerror or error}.") from error
    return target


def stored_tensors(classifier: ImageClassifier) -> dict[str, Tensor]:
    """Return the tensors as they are written; batch normalisation keeps float32, as its variances span many scales."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in classifier.state_dict().items()}
    return {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in state.items()}


def load_classifier(name: str | Path) -> ImageClassifier:
    """Load a classifier, ready to judge: a shipped name (see `CLASSIFIERS`) or a folder by `save_classifier`.

    Raises:
        CheckpointError: Nothing there, no classifier, damaged, or of a newer schema.
    """
    if str(name) in CLASSIFIERS and not Path(name).is_dir():
        with resources.as_file(resources.files("undiffuse") / "builtin" / str(name)) as folder:
            return load_classifier(folder)
    folder = Path(name)
    config = _read_config(folder)
    classifier = ImageClassifier(config)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        tensors = load_file(folder / _WEIGHTS)
        classifier.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder / _WEIGHTS} is damaged or of another network ({reason}); write it again."
        ) from error
    return classifier.eval().requires_grad_(False)


def classifier_for(name: str | Path, data: DataSpec) -> ImageClassifier:
    """Load a classifier of the pictures, or of the frames of videos, that `data` describes.

    Raises:
        CheckpointError: See `load_classifier`.
        ConfigError: It sees pictures of another shape.
    """
    network, shape = load_classifier(name), tuple(data.shape[data.channel_axis :])
    if tuple(network.config.shape) != shape:
        raise ConfigError(
            f"classifier {name} sees pictures of shape {tuple(network.config.shape)}, these have {shape}; train one "
            "with undiffuse.metrics.train_classifier."
        )
    return network


def _read_config(folder: Path) -> ClassifierConfig:
    path = folder / _CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"there is no classifier {str(folder)!r}; give a folder that save_classifier wrote, or one of "
            f"{', '.join(CLASSIFIERS)}.{did_you_mean(str(folder), CLASSIFIERS)}"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.pop("format") != _FORMAT or fields.pop("schema") != _SCHEMA:
            raise ValueError(f'expected "format": "{_FORMAT}" and "schema": {_SCHEMA}')
        lists: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
        }
        return ClassifierConfig(**lists)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes no classifier ({error}); write it again.") from error
