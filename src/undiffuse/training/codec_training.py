"""Training a codec with the trainer of denoisers: as the first part of a run on latents, or alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undiffuse.codecs.autoencoder import Autoencoder
from undiffuse.codecs.codec import SPATIAL_AXES, Codec
from undiffuse.codecs.options import AutoencoderOptions, VQOptions
from undiffuse.codecs.quantised import TokenCodec
from undiffuse.data.dataset import Dataset
from undiffuse.denoisers.base import Denoiser
from undiffuse.events import Listener, Message, Started
from undiffuse.metrics.codebook import codebook_health
from undiffuse.metrics.perceptual import make_distance
from undiffuse.training.adversary import make_adversary
from undiffuse.training.devices import Devices
from undiffuse.training.objectives import Objective
from undiffuse.training.options import TrainOptions
from undiffuse.training.quantising import QuantisingObjective
from undiffuse.training.reconstruction import ReconstructionObjective, Reconstructor
from undiffuse.training.trainer import Trainer

_HEALTH_ITEMS = 512
TrainedOptions = AutoencoderOptions | VQOptions
"""Options of codecs that are trained."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is shown of a codec while it is trained.

    Args:
        publish: Writes the codec, at every checkpoint; given where it is trained alone.
        preview: Draws reconstructions, every `train.preview_every` steps.
        held_out: The health of a codebook is logged on these, just as often.
    """

    publish: Callable[[Codec, int], None] | None = None
    preview: Callable[[Codec, int], Path | None] | None = None
    held_out: Dataset | None = None


def codec_objective(codec: Codec, options: TrainedOptions, seeded: bool = False, seed: int = 0) -> Objective:
    """Return the loss of a codec; `seeded` says that its codebook is good already, `seed` is that of an adversary.

    Raises:
        ConfigError: The perceptual part cannot be had.
    """
    if isinstance(options, AutoencoderOptions):
        return ReconstructionObjective(options.kl)
    assert isinstance(codec, TokenCodec)
    data = codec.data
    distance = make_distance(options.features, data) if options.perceptual else None
    adversary = make_adversary(SPATIAL_AXES[data.kind], data.channels, seed) if options.adversarial else None
    return QuantisingObjective(codec, options, seeded=seeded, distance=distance, adversary=adversary)


def train_codec_network(
    codec: Codec,
    options: TrainedOptions,
    train: TrainOptions,
    dataset: Dataset,
    folder: Path,
    devices: Devices,
    listener: Listener,
    *,
    watch: Watch | None = None,
    seeded: bool = False,
) -> Codec | None:
    """Train a codec into a folder, going on where an earlier sitting ended; None where a signal stopped it.

    Raises:
        TrainingError: As for any training.
    """
    own = own_options(options, train, watch)
    watch = watch or Watch()
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        Reconstructor(codec),
        codec_objective(codec, options, seeded, own.seed),
        dataset,
        own,
        folder,
        devices=devices,
        listener=listener,
        publish=_of_codec(watch.publish),
        held_out=watch.held_out if watch.publish else None,
    )
    drawn = watch.preview if train.preview_every else None
    trainer.preview = _Looking(trainer, replace(watch, preview=drawn), devices) if own.preview_every else None
    trainer.resume()
    if devices.is_main and trainer.state.step < own.steps:
        what = "autoencoder" if isinstance(codec, Autoencoder) else "codec"
        words = "fine-tuning the decoder" if seeded else f"training the {what}{'' if watch.publish else ' first'}"
        listener(Message("train", f"{words}, {own.steps:,} steps of {own.batch_size} items"))
        listener(Started("train", own.steps, "step", trainer.state.step))
    if not trainer.run().finished:
        return None
    model = trainer.state.model()
    assert isinstance(model, Reconstructor)
    return model.codec


def own_options(options: TrainedOptions, train: TrainOptions, watch: Watch | None = None) -> TrainOptions:
    """Return how a codec is trained, in a run that trains as `train` says; `watch` says what is shown of it."""
    return replace(
        train,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        warmup=min(100, options.steps // 10),
        accumulate=1,
        preview_every=0 if watch is None else train.preview_every or options.steps,  # the last figures in any case
        init=None,
        optimizer="adamw",  # its weights are kernels
        shard=False,  # every process encodes with it, so every process needs it whole
        snapshot_every=0,
        trackers=train.trackers if watch is not None and watch.publish else (),
    )


class _Looking:
    """Logs the codebook's health on held-out items, and draws reconstructions."""

    def __init__(self, trainer: Trainer, watch: Watch, devices: Devices) -> None:
        self.trainer, self.watch, self.devices = trainer, watch, devices

    def __call__(self, denoiser: Denoiser, step: int) -> Path | None:
        assert isinstance(denoiser, Reconstructor)
        codec, seen = denoiser.codec, self.watch.held_out
        if isinstance(codec, TokenCodec) and seen is not None and self.trainer.log is not None:
            health = codebook_health(codec, seen, items=_HEALTH_ITEMS, device=str(self.devices.device))
            self.trainer.log.append({"step": step, "codebook": health.to_json()})
            self.trainer.listener(Message("train", f"step {step}: {health}"))
        return None if self.watch.preview is None else self.watch.preview(codec, step)


def _of_codec(publish: Callable[[Codec, int], None] | None) -> Any:
    def hook(denoiser: Denoiser, step: int) -> None:
        assert isinstance(denoiser, Reconstructor) and publish is not None
        publish(denoiser.codec, step)

    return None if publish is None else hook
