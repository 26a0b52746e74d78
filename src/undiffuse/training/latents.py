"""Training on latents: make the codec, encode the data once, and hand the latents on as any other data.

Latents are kept in a cache, named by a hash of the codec's weights, of its options and of the items themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from undiffuse.cache import ContentHash, cache_folder, load_or_make
from undiffuse.codecs.build import build_codec, codec_to_json
from undiffuse.codecs.codec import Codec
from undiffuse.codecs.options import NoCodecOptions, PCAOptions, PretrainedCodecOptions
from undiffuse.codecs.quantised import TokenCodec
from undiffuse.data import Dataset, TensorDataset
from undiffuse.data.memory import free_bytes
from undiffuse.denoisers.shift import NO_SOURCE, SOURCE, has_source
from undiffuse.errors import ConfigError, DataError
from undiffuse.events import Advanced, Finished, Listener, Started
from undiffuse.metrics.codebook import codebook_health
from undiffuse.models.codecs import open_codec
from undiffuse.noise import permutation
from undiffuse.process.options import CategoricalOptions
from undiffuse.spec import DataSpec
from undiffuse.training.codec_training import TrainedOptions, Watch, train_codec_network
from undiffuse.training.degrade import told_spec
from undiffuse.training.devices import Devices
from undiffuse.training.planning import latent_words
from undiffuse.training.recipe import Recipe
from undiffuse.words import human_bytes

CODEC = "codec"  # where a run trains its autoencoder
_ROWS = 256  # items that are encoded at once
_CALIBRATION = 4096  # items that the scale of latents is measured on


def start_codec(recipe: Recipe, dataset: Dataset) -> Codec | None:
    """Return the codec of a run as far as it is known before anything is trained; None where it has none.

    Raises:
        ConfigError: It does not fit the data, or an option asks for what latents cannot have.
        CheckpointError: A pretrained codec cannot be loaded.
    """
    options = recipe.codec
    if isinstance(options, NoCodecOptions):
        return None
    _check_latents(recipe, dataset)
    spec = told_spec(dataset.spec, recipe.data)
    _check_given(recipe, spec)
    try:
        if isinstance(options, PretrainedCodecOptions):
            return _fitting(open_codec(options, spec), options, recipe, dataset)
        x = _some(dataset, options.fit_items, recipe.train.seed) if isinstance(options, PCAOptions) else None
        return build_codec(options, spec, x, seed=recipe.train.seed)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def finish_codec(
    codec: Codec,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    devices: Devices,
    listener: Listener,
    held_out: Dataset | None = None,
) -> Codec | None:
    """Train the codec where that is needed, going on where an earlier sitting ended, and freeze it.

    Args:
        codec: From `start_codec`.
        recipe: Its `codec` and `train` groups say how.
        dataset: What it is trained on.
        folder: The run's.
        devices: Where.
        listener: Hears about progress.
        held_out: Items that the health of a codebook is logged on; None: those of the training.

    Returns:
        The codec; None where SIGINT or SIGTERM stopped its training, after writing a checkpoint.

    Raises:
        TrainingError: As for any training.
    """
    if isinstance(recipe.codec, TrainedOptions):
        watch = Watch(held_out=held_out or dataset) if isinstance(codec, TokenCodec) else None
        trained = train_codec_network(
            codec, recipe.codec, recipe.train, dataset, folder / CODEC, devices, listener, watch=watch
        )
        if trained is None:
            return None
        codec = trained.cpu()
        codec.calibrate(calibration_items(dataset, recipe.train.seed))
    if isinstance(codec, TokenCodec):
        codec.seal()
    return codec.eval().requires_grad_(False)


def encode_data(codec: Codec, dataset: Dataset, device: torch.device, listener: Listener) -> TensorDataset:
    """Return the latents of a data set with all its labels and conditions, mirror images included.

    Pictures given beside the data (`data.pair`) are encoded too.

    Raises:
        DataError: They do not fit in memory.
    """
    need = (8 if codec.latent.is_discrete else 4) * len(dataset) * torch.Size(codec.latent.shape).numel()
    need *= 2 if has_source(dataset.spec) else 1
    free = free_bytes()
    if free is not None and need > free:
        raise DataError(
            f"the latents of {len(dataset)} items take {human_bytes(need)} but {human_bytes(free)} are free; set "
            f"data.limit, or let the codec shrink more."
        )
    codec = codec.to(device)
    path = cache_folder() / "latents" / f"{_content(codec, dataset)}.safetensors"
    found = load_or_make(path, lambda: _encode(codec, dataset, device, listener))
    labels = found.pop("cond/label", None)
    cond = {name.removeprefix("cond/"): part for name, part in found.items() if name.startswith("cond/")}
    line = f"latents of shape {latent_words(codec.latent)}, {human_bytes(need)}"
    latent = _had(codec.latent, dataset.spec)
    return TensorDataset(
        data=found["z"],
        spec=latent,
        stored=replace(latent, mean=(), std=()),  # they are in model units already
        labels=labels,
        cond=cond,
        notes=(*dataset.summary(), line),
    )


def _had(latent: DataSpec, data: DataSpec) -> DataSpec:
    """Return the latents of a codec without labels and conditions that these data lack."""
    cond = {name: part for name, part in latent.cond.items() if name in data.cond}
    return replace(latent, classes=latent.classes if data.classes else (), cond=cond)


def _fitting(codec: Codec, options: PretrainedCodecOptions, recipe: Recipe, dataset: Dataset) -> Codec:
    """Return a trained codec, cut to the code vectors that the data use where that was asked for.

    Raises:
        ConfigError: Its latents are not what the process works on.
    """
    tokens = isinstance(recipe.process, CategoricalOptions)
    if codec.latent.is_discrete != tokens:
        made, fitting = ("numbers", "gaussian") if tokens else ("tokens", "categorical, model=transformer (vq-image)")
        raise ConfigError(f"codec.path={options.path} makes {made}; use process={fitting}.")
    if not isinstance(codec, TokenCodec) or not options.used_only:
        return codec
    counts = torch.tensor(codebook_health(codec, dataset).counts)
    return codec.with_codebook(codec.codebook[counts > 0])


def _check_latents(recipe: Recipe, dataset: Dataset) -> None:
    spec = dataset.spec
    maps = [name for name, part in spec.cond.items() if part.kind == "map" and name != SOURCE]
    if maps:
        raise ConfigError(f"the condition {maps[0]!r} is a map of the data's size, which latents lack; use codec=none.")
    if spec.sizes or recipe.data.buckets:
        raise ConfigError("a codec works on one size of pictures; set data.buckets=false or codec=none.")
    if recipe.data.augment:
        raise ConfigError(f"data.augment={recipe.data.augment:g} works on data, not on latents; set it to 0.")
    if getattr(dataset, "order", "permuted") != "permuted":
        raise ConfigError("latents are made once for all items, which a stream does not allow; set data.stream=false.")


def _check_given(recipe: Recipe, spec: DataSpec) -> None:
    """Refuse tokens where the model is told a given picture, and a walk without one before a codec is trained."""
    if not has_source(spec) and getattr(recipe.process, "start", "noise") == "source":
        raise ConfigError(NO_SOURCE)
    if has_source(spec) and isinstance(recipe.process, CategoricalOptions):
        raise ConfigError(
            "a given picture (data.pair, data.degrade) is a map of numbers, which no codec turns into tokens; use "
            "process=gaussian with codec=autoencoder, pca or none, or leave the pictures out."
        )


def _encode(codec: Codec, dataset: Dataset, device: torch.device, listener: Listener) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    listener(Started("encode", len(dataset), "item"))
    done = 0
    for batch in _batches(dataset):
        with torch.no_grad():
            # In the layout that a file gives it too: another one rounds otherwise in the convolutions that read it.
            z = codec.encode(batch["x"].to(device))
            named = {"z": z if codec.latent.is_discrete else z.float().contiguous()}
            cond = dict(batch["cond"])
            if has_source(dataset.spec):
                cond[SOURCE] = codec.encode_maps(cond[SOURCE].to(device)).float().contiguous()
        for name, part in cond.items():
            exact = name in dataset.spec.cond and dataset.spec.cond[name].encoder  # float16 already, see data.encoders
            named[f"cond/{name}"] = part.half() if exact else part
        for name, part in named.items():
            parts.setdefault(name, []).append(part.cpu())
        done += len(batch["x"])
        listener(Advanced("encode", done))
    listener(Finished("encode"))
    return {name: torch.cat(rows) for name, rows in parts.items()}


def _content(codec: Codec, dataset: Dataset) -> str:
    state = ContentHash(codec_to_json(codec))
    for name, tensor in sorted(codec.state_dict().items()):
        state.add(name, tensor)
    for batch in _batches(dataset):
        state.add("x", batch["x"])
        for name, part in sorted(batch["cond"].items()):
            state.add(name, part)
    return state.name()


def _batches(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for rows in torch.arange(len(dataset)).split(_ROWS):
        yield dataset.batch(rows)


def calibration_items(dataset: Dataset, seed: int) -> Tensor:
    """Return the items (M, *) that the scale of latents is measured on."""
    return _some(dataset, _CALIBRATION, seed)


def _some(dataset: Dataset, most: int, seed: int) -> Tensor:
    """Return up to `most` items (M, *) in a keyed choice."""
    chosen = permutation(seed, 0, len(dataset))[:most]
    return torch.cat([dataset.batch(rows)["x"].cpu() for rows in chosen.split(_ROWS)])
