r"""`refit_codebook`: a new codebook for a trained codec, whose old one is mostly unused (ReFiT of VQ-DDM).

1. Encode data; keep a uniform sample of the encodings before quantisation.
2. The new codebook are the centres of k-means on them, so every code vector is used.
3. Fine-tune decoder and codebook on the data, with the encoder frozen bit for bit.

Tokens change their meaning: denoisers of the old ones do not fit, and their caches are not found again.

Source: Hu et al. 2021, "Global Context with Discrete Diffusion in Vector Quantised Modelling for Image Generation",
    section 3.2, arXiv:2112.01799. Differences: exact k-means++ seeds; squared error instead of an adversarial and a
    perceptual loss unless the codec's options have these; a codebook that gradients train gets those of the
    reconstruction too, which straight-through would send to the frozen encoder; a larger learning rate.
"""

from __future__ import annotations

import copy
import json
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from undiffuse.codecs.clustering import Clusters, Reservoir, cluster
from undiffuse.codecs.codec import Codec
from undiffuse.codecs.options import VQOptions
from undiffuse.codecs.quantised import TokenCodec, require_finite
from undiffuse.data import open_data
from undiffuse.data.dataset import Dataset
from undiffuse.errors import ConfigError, DataError
from undiffuse.events import Advanced, Finished, Listener, Message, Started, silent
from undiffuse.metrics.codebook import CodebookHealth, codebook_health, require_codebook
from undiffuse.models.codecs import load_codec, save_codec
from undiffuse.training.checkpoints import CHECKPOINTS, checkpoints_in
from undiffuse.training.codec_training import Watch, train_codec_network
from undiffuse.training.devices import Devices
from undiffuse.training.folder import make_folder, write_text
from undiffuse.training.lock import locked
from undiffuse.training.options import TrainOptions

_ROWS = 128
_VECTORS = 15_000  # of the reservoir, as in the paper's code
_PER_CODE = 40  # at least so many per code vector: with fewer, centres lie on single encodings


@dataclass(frozen=True)
class Refit:
    """A codec with a new codebook, and figures on held-out items.

    Args:
        codec: The codec; on the CPU, sealed.
        before: The codec that was given.
        rebuilt: With the new codebook, before any fine-tuning.
        after: At the end; None where a signal stopped the fine-tuning, and the same call goes on.
        error: Mean squared distance of the sampled encodings to the new code vectors, per number.
        folder: Where it was written; None where no folder was named.
    """

    codec: TokenCodec
    before: CodebookHealth
    rebuilt: CodebookHealth
    after: CodebookHealth | None
    error: float
    folder: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON types."""
        stages = {name: getattr(self, name) for name in ("before", "rebuilt", "after")}
        return {name: health and health.to_json() for name, health in stages.items()} | {"k_means_error": self.error}


def refit_codebook(
    codec: Codec | str | Path,
    data: Dataset | str | Path,
    *,
    held_out: Dataset | None = None,
    codes: int | None = None,
    train_steps: int = 2000,
    lr: float = 1e-3,
    train_batch_size: int = 64,
    vectors: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    train: TrainOptions | None = None,
    listener: Listener = silent,
) -> Refit:
    """Rebuild the codebook of a codec from data and fine-tune its decoder; the codec given is not changed.

    Args:
        codec: A codec with a codebook, or its folder.
        data: Items like those that the codec was trained on, for the encodings and the fine-tuning; or their name.
        held_out: Items for the figures; None takes `data`.
        codes: Code vectors P; None: as many as before.
        train_steps: Optimizer steps of the fine-tuning; 0: none.
        lr: Their peak learning rate.
        train_batch_size: Items per step.
        vectors: Encodings that are clustered; None: 15 000, or 40 per code vector.
        seed: Of the sample, the k-means seeds and the order of the items.
        out: Folder for the codec; a fine-tuning that was stopped goes on from there.
        train: Device, precision, and what is logged; train_steps, train_batch_size, lr and seed above count.
        listener: Hears about progress.

    Raises:
        ConfigError: The codec has no codebook, or the data are of another shape.
        DataError: Fewer encodings, or fewer different ones, than code vectors.
        ValueError: The encodings are not finite, or a number is out of range.
        TrainingError: As for any training.
    """
    if train_steps < 0 or (codes is not None and codes < 2):
        raise ValueError(f"codes={codes} must be at least 2 and train_steps={train_steps} not negative.")
    found = require_codebook(load_codec(codec) if isinstance(codec, (str, Path)) else codec)
    options = replace(
        train or TrainOptions(checkpoint_every=max(1, train_steps), preview_every=0, validate_every=0), seed=seed
    )
    data = open_data(str(data), spec=found.data) if isinstance(data, (str, Path)) else data
    devices, seen = Devices(options), held_out or data
    old = copy.deepcopy(found).eval().requires_grad_(False).to(devices.device)
    count = codes or old.latent.categories
    health: dict[str, Any] = {"device": str(devices.device), "listener": listener}
    with ExitStack() as held:
        place = Path(out) if out else Path(held.enter_context(tempfile.TemporaryDirectory()))
        held.enter_context(locked(make_folder(place)))
        _bind(place, old, {"size": count, "steps": train_steps, "lr": lr, "batch": train_batch_size, "seed": seed})
        before = codebook_health(old, seen, **health)
        new, clusters = rebuild(old, data, count, vectors=vectors, seed=seed, listener=listener)
        rebuilt = codebook_health(new, seen, **health)
        listener(Message("train", f"rebuilt: {rebuilt}"))
        tuned = _fine_tune(
            new,
            data,
            place,
            train_steps,
            lr,
            train_batch_size,
            options,
            devices,
            listener,
            None if out is None else held_out,
        )
        made = (tuned or new).cpu().eval().requires_grad_(False)
        made.seal()
        if out is not None:
            save_codec(
                made, place, {"refit": {"size": count, "steps": train_steps, "seed": seed}, "done": tuned is not None}
            )
    after = codebook_health(made.to(devices.device), seen, **health) if tuned is not None else None
    return Refit(made.cpu(), before, rebuilt, after, clusters.error, None if out is None else place)


def _bind(folder: Path, codec: TokenCodec, asked: dict[str, Any]) -> None:
    """Write down what the folder's fine-tuning is; refuse to go on with another.

    Raises:
        ConfigError: Checkpoints of another one are there, or a codec or a model.
    """
    path, facts = folder / "refit.json", asked | {"codebook": codec.identity()}
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    taken = known is None and (folder / "config.json").is_file()  # by a codec or a model that is no refit
    if known != facts and (taken or checkpoints_in(folder / CHECKPOINTS)):
        raise ConfigError(f"{folder} holds something else than this refit of this codec; choose another out folder.")
    write_text(path, json.dumps(facts) + "\n")


@torch.no_grad()
def rebuild(
    codec: TokenCodec,
    data: Dataset,
    size: int,
    *,
    vectors: int | None = None,
    seed: int = 0,
    listener: Listener = silent,
) -> tuple[TokenCodec, Clusters]:
    """Return the codec with a codebook of `size` k-means centres of its encodings, and those clusters.

    Raises:
        DataError: Fewer encodings, or fewer different ones, than `size`.
        ValueError: The encodings are not finite.
    """
    reservoir = Reservoir(vectors or max(_VECTORS, _PER_CODE * size), seed)
    device = codec.codebook.device
    listener(Started("encode", len(data), "item"))
    done = 0
    for rows in torch.arange(len(data)).split(_ROWS):
        x = data.batch(rows)["x"].to(device)
        reservoir.offer(require_finite(codec.encodings(x)).flatten(0, 1).cpu())
        done += len(rows)
        listener(Advanced("encode", done))
    listener(Finished("encode"))
    try:
        clusters = cluster(reservoir.vectors(), size, seed=seed)
    except ValueError as error:
        raise DataError(str(error)) from error
    return codec.with_codebook(clusters.centers.to(device)).to(device), clusters


def _fine_tune(
    codec: TokenCodec,
    data: Dataset,
    folder: Path,
    steps: int,
    lr: float,
    batch_size: int,
    train: TrainOptions,
    devices: Devices,
    listener: Listener,
    held_out: Dataset | None,
) -> TokenCodec | None:
    """Train decoder and codebook; the encoder gets no gradient and no step. None where a signal stopped it."""
    if not steps:
        return codec
    own = codec.options if isinstance(codec.options, VQOptions) else VQOptions()
    options = replace(own, codes=codec.latent.categories, steps=steps, lr=lr, batch_size=batch_size)
    only_decoding(codec)
    watch = Watch(held_out=held_out)
    made = train_codec_network(codec, options, train, data, folder, devices, listener, watch=watch, seeded=True)
    assert made is None or isinstance(made, TokenCodec)
    return made


def only_decoding(codec: TokenCodec) -> None:
    """Let gradients reach the decoder, and the codebook where it is a parameter, alone."""
    codec.requires_grad_(False)
    for part in codec.decoding():
        part.requires_grad_(True)
    if isinstance(codec.codebook, nn.Parameter):
        codec.codebook.requires_grad_(True)
