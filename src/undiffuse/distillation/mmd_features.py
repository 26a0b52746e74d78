"""Features for MMD fine-tuning: differentiable, frozen, of states in the model's own units.

Unlike the features that metrics measure in, nothing here is rounded to 8 bits or clipped: a clipped value has no
gradient, and it is the values out of range that most need one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.codecs.codec import Codec
from undiffuse.data import Dataset
from undiffuse.data.memory import free_bytes
from undiffuse.errors import ConfigError, TrainingError
from undiffuse.events import Listener, Message, silent
from undiffuse.metrics.classifier import (
    CLASSIFIERS,
    ClassifierConfig,
    ImageClassifier,
    build_classifier,
    load_classifier,
    save_classifier,
)
from undiffuse.noise import permutation
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean, human_bytes

FEATURES = ("pixels", "classifier", "random", "dinov2", "inception", "clip", "model")
"""Names of features; dinov2, inception, clip and model need a place after a colon, classifier may have one."""

_NATURAL = (3, 32, 32)
_CALIBRATION = 512  # items that a random network is normalised on
_EPOCHS = 12
_MODEL_TIME = 0.1  # noise level at which another model is asked what it sees


@dataclass(frozen=True)
class Features:
    """Features of states.

    Args:
        call: Maps states (B, *shape) in model units to features (B, D).
        width: D.
        name: A short name.
        note: What they are, for people.
    """

    call: Callable[[Tensor], Tensor]
    width: int
    name: str
    note: str

    def __call__(self, x: Tensor) -> Tensor:
        """Return features (B, D) of states (B, *shape) in model units."""
        return self.call(x)


def make_features(
    name: str,
    dataset: Dataset,
    *,
    codec: Codec | None = None,
    folder: Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    listener: Listener = silent,
) -> Features:
    """Return the features of a name.

    Args:
        name: See `FEATURES`; "classifier" without a place is the shipped one for natural images of 32 x 32 pixels, and
            else one that is trained here on the labels of the data.
        dataset: What is trained on, in the denoiser's units: latents where there is a codec.
        codec: Decodes states for the features of images; "pixels" are then latents.
        folder: Where a classifier that is trained here is kept, and taken from if it is there already.
        seed: Of what is trained or drawn here.
        device: Where networks run.
        listener: Hears what is trained.

    Raises:
        ConfigError: The name is unknown or lacks its place, or the features do not fit the data.
        CheckpointError: There is no such network.
    """
    check_name(name)
    kind, _, place = name.partition(":")
    spec = dataset.spec if codec is None else codec.data
    if kind == "pixels":
        what = "latents" if codec is not None else "pixels" if spec.kind == "image" else "values"
        return probed(Features(lambda x: x.flatten(1), 0, name, f"the {what} themselves"), dataset.spec, device)
    if kind == "model":
        return probed(_of_model(place, name, dataset.spec, device), dataset.spec, device)
    if spec.kind != "image" or (spec.range is None and kind in ("dinov2", "inception", "clip")):
        raise ConfigError(f"features={name} are those of images, and the data are {spec.kind} items; use pixels.")
    found, note = _of_images(kind, place, _Decoded(dataset, codec, spec), folder, seed, device, listener)
    call = found if codec is None else lambda x: found(codec.decode(x))
    return probed(Features(call, 0, name, note), dataset.spec, device)


def probed(features: Features, spec: DataSpec, device: torch.device | str = "cpu") -> Features:
    """Return features with their width after asking them about two items of noise.

    Raises:
        ConfigError: They have no gradient, another number of rows than asked, are not finite, or depend on the batch.
    """
    count = torch.Size(spec.shape).numel()
    x = torch.linspace(-1.0, 1.0, 2 * count, device=device).view(2, *spec.shape).requires_grad_()
    with torch.enable_grad():
        found: Any = features(x)
    if not isinstance(found, Tensor) or not found.requires_grad:
        raise ConfigError(
            f"features={features.name} have no gradient (they go through numpy, rounding to 8 bits or torch.no_grad); "
            f"MMD tuning needs differentiable features, such as pixels."
        )
    if found.ndim != 2 or len(found) != 2 or not bool(found.isfinite().all()):
        raise ConfigError(
            f"features={features.name} of 2 items have shape {tuple(found.shape)}; expected (2, D), all finite."
        )
    return Features(features.call, found.shape[1], features.name, features.note)


def given_features(call: Callable[[Tensor], Tensor], spec: DataSpec, device: torch.device | str = "cpu") -> Features:
    """Return features that a caller hands over: a module or function of states (B, *shape) in model units.

    Raises:
        ConfigError: A module is in training mode; or see `probed`.
    """
    if isinstance(call, nn.Module):
        if any(part.training for part in call.modules()):
            raise ConfigError(
                f"the features {type(call).__name__} are in training mode, where batch normalisation and dropout make "
                f"them depend on the batch; call .eval() on them first."
            )
        call = _Frozen(call.to(device))
    return probed(Features(call, 0, "given", "features given by the caller"), spec, device)


def require_feature_memory(features: Features, rows: int) -> None:
    """Refuse features so wide that the kernels of a batch do not fit in memory.

    Raises:
        TrainingError: They do not fit.
    """
    need = 8 * 4 * rows * (features.width + 8 * rows)  # float64: features and centred copies, kernel matrices
    free = free_bytes()
    if free is not None and need > free:
        raise TrainingError(
            f"features={features.name} of {features.width:,} numbers for {rows} items take about {human_bytes(need)} "
            f"but {human_bytes(free)} are free; lower train.batch_size or the queue, or choose narrower features."
        )


class _Frozen:
    """A module whose weights get no gradient while it is asked, whatever its own flags say."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.tensors = {name: p.detach() for name, p in (*module.named_parameters(), *module.named_buffers())}

    def __call__(self, x: Tensor) -> Tensor:
        return torch.func.functional_call(self.module, self.tensors, (x,))


class _Decoded:
    """A data set as images: decoded where the training works on latents."""

    def __init__(self, dataset: Dataset, codec: Codec | None, spec: DataSpec) -> None:
        self.dataset, self.codec, self.spec = dataset, codec, replace(spec, classes=dataset.spec.classes)

    def __len__(self) -> int:
        return len(self.dataset)

    @torch.no_grad()
    def batch(self, index: Tensor) -> dict[str, Any]:
        """Return items, with "x" in the units of images."""
        batch = self.dataset.batch(index)
        return batch if self.codec is None else {**batch, "x": self.codec.decode(batch["x"])}


def check_name(name: str) -> None:
    """Refuse names of features that do not exist, lack their place or have one too many.

    Raises:
        ConfigError: It is such a name.
    """
    kind, _, place = name.partition(":")
    if kind not in FEATURES:
        raise ConfigError(
            f"features={name} are unknown; choose among {', '.join(FEATURES)}.{did_you_mean(kind, FEATURES)}"
        )
    if kind in ("dinov2", "inception", "clip", "model") and not place:
        example = "inception:inception.safetensors" if kind == "inception" else f"{kind}:FOLDER"
        raise ConfigError(f"features={name} need a place; write {example}.")
    if ":" in name and (not place or kind in ("pixels", "random")):
        raise ConfigError(f"features={name} name no place, or one that {kind} has no use for; write {kind}.")


def _of_images(
    kind: str,
    place: str,
    data: _Decoded,
    folder: Path | None,
    seed: int,
    device: torch.device | str,
    listener: Listener,
) -> tuple[Callable[[Tensor], Tensor], str]:
    """Return features of images (B, C, H, W) in [-1, 1], and what they are."""
    if kind == "random":
        network = random_network(data, seed).to(device)
        return network.features, "features of a random convolutional network"
    if kind == "classifier":
        network, note = _classifier(place, data, folder, seed, listener)
        return network.to(device).features, note
    from undiffuse.metrics.networks import clip_features, dinov2_features, inception_features

    make = {"dinov2": dinov2_features, "inception": inception_features, "clip": clip_features}[kind]
    found = make(place, bounds=(-1.0, 1.0), device=device)
    return lambda x: found.network(found.coloured(0.5 * x + 0.5)), found.note


def _classifier(
    place: str, data: _Decoded, folder: Path | None, seed: int, listener: Listener
) -> tuple[ImageClassifier, str]:
    """Return the classifier in a place, the shipped one, or one trained here; and what it is."""
    shape = data.spec.shape
    if not place and shape == _NATURAL:
        place = CLASSIFIERS[0]
    if place:
        network = load_classifier(place)
        if tuple(network.config.shape) != tuple(shape):
            raise ConfigError(
                f"features=classifier:{place} sees images of shape {tuple(network.config.shape)} and these have "
                f"{tuple(shape)}; leave the place out to train one."
            )
        return network, f"features of the classifier {Path(place).name}"
    network = trained_classifier(data, folder, seed, listener)
    share = network.config.info.get("accuracy", 0.0)
    return network, f"features of a classifier trained on the labels, right for {share:.3f} of them"


def trained_classifier(data: Any, folder: Path | None, seed: int, listener: Listener = silent) -> ImageClassifier:
    """Return a small classifier of the data's labels: that in `folder`, or one trained now and kept there.

    Raises:
        ConfigError: The data have no labels.
    """
    from undiffuse.metrics.classifier_training import train_classifier

    if folder is not None and (folder / "config.json").is_file():
        return load_classifier(folder)
    if len(data.spec.classes) < 2:
        raise ConfigError("features=classifier need labels to train one on, which the data lack; use pixels or random.")
    listener(Message("train", f"training a classifier for the features, {_EPOCHS} passes over the data"))
    network = train_classifier(
        data, data, widths=(16, 32, 64), blocks=(0, 1, 1), epochs=_EPOCHS, rate=0.1, flip=False, seed=seed
    )
    if folder is not None:
        save_classifier(network, folder)
    return network


def random_network(data: Any, seed: int) -> ImageClassifier:
    """Return a convolutional network of random weights, normalised once on real items, and frozen."""
    channels, height, width = data.spec.shape
    config = ClassifierConfig(shape=(channels, height, width), classes=("a", "b"), widths=(32, 64, 128))
    network = build_classifier(config, seed).train()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # running figures are then plain means
    rows = permutation(seed, 0, len(data))[:_CALIBRATION]
    with torch.no_grad():
        network.features(data.batch(rows)["x"].float().cpu())
    return network.eval().requires_grad_(False)


def _of_model(place: str, name: str, spec: DataSpec, device: torch.device | str) -> Features:
    """Return the mean activations in the middle of another diffusion model, asked at a low noise level."""
    from undiffuse.models import load
    from undiffuse.networks.backbone import Backbone
    from undiffuse.networks.hooks import capture

    model = load(place).to(device)
    network = getattr(model.denoiser, "backbone", None)
    if tuple(model.state_spec.shape) != tuple(spec.shape) or not isinstance(network, Backbone):
        raise ConfigError(
            f"features={name} see items of shape {tuple(model.state_spec.shape)} and these have {tuple(spec.shape)}; "
            f"choose a model of such data."
        )
    denoiser = model.denoiser.eval().requires_grad_(False)
    alpha = float(denoiser.process.schedule.levels(torch.tensor(_MODEL_TIME, dtype=torch.float64))[0])  # type: ignore[union-attr]
    blocks = list(network.blocks)
    block = "mid" if "mid" in blocks else blocks[len(blocks) // 2]

    def see(x: Tensor) -> Tensor:
        with capture(network, [block]) as seen:
            denoiser(alpha * x, _MODEL_TIME, denoiser.embed(None, len(x)))
        found = seen[block]
        return found.flatten(2).mean(2) if found.ndim > 2 else found

    return Features(see, 0, name, f"activations of the model {place} at t={_MODEL_TIME}, block {block}")
