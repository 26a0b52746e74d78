"""`train_codec`: a codec alone, from a data set's name to a folder that runs on latents can name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.codecs.codec import Codec
from undiffuse.codecs.options import NoCodecOptions, PretrainedCodecOptions
from undiffuse.codecs.quantised import TokenCodec
from undiffuse.config import to_dict
from undiffuse.data.dataset import Dataset
from undiffuse.errors import ConfigError
from undiffuse.events import Finished, Listener, Message, silent
from undiffuse.images import image_grid, write_image
from undiffuse.metrics.codebook import CodebookHealth, codebook_health
from undiffuse.models.codecs import load_codec, save_codec
from undiffuse.training.checkpoints import disk_errors
from undiffuse.training.codec_training import TrainedOptions, Watch, own_options, train_codec_network
from undiffuse.training.devices import Devices
from undiffuse.training.folder import bind_recipe, write_facts
from undiffuse.training.given import is_name
from undiffuse.training.latents import calibration_items, start_codec
from undiffuse.training.planning import latent_words
from undiffuse.training.publish import picture
from undiffuse.training.recipe import Recipe, override_layers
from undiffuse.training.run import Source, choose, claim_folder, folder_name, hold_out
from undiffuse.training.versions import versions

if TYPE_CHECKING:
    import numpy as np

    from undiffuse.spec import DataSpec

_SHOWN = 12  # items in a picture of reconstructions
_OWN = ("train.steps", "train.batch_size", "train.lr")  # the codec has these itself
_UNUSED = ("model", "process", "objective", "sample", *_OWN, "train.warmup", "train.accumulate", "train.init")


@dataclass(frozen=True)
class CodecRun:
    """A codec's training as it ended.

    Args:
        folder: Where everything was written.
        finished: Whether all steps are done; else the same call goes on.
        health: Of the codebook on held-out items; None for codecs without one, or before the end.
    """

    folder: Path
    finished: bool
    health: CodebookHealth | None

    @property
    def codec(self) -> Codec:
        """The trained codec, loaded from the folder."""
        return load_codec(self.folder)


def train_codec(
    source: Source | None = None,
    recipe: str | Path | Recipe | None = None,
    *,
    out: str | Path | None = None,
    listener: Listener = silent,
    overrides: Sequence[str] = (),
    **options: Any,
) -> CodecRun:
    """Train a codec alone, or go on with such a run.

    Args:
        source: Data, as for `train`.
        recipe: Its groups `data`, `codec` and `train` count; None: "vq-image", or "latent" for codecs without codes.
        out: The run's folder; default runs/<name of the data>-codec.
        listener: Hears about progress.
        overrides: "group.key=value" texts, such as "codec.codes=512".
        options: Groups and training options, as for `train`.

    Raises:
        UndiffuseError: Data, recipe, folder or training trouble, each with what to do.
    """
    layers = override_layers(overrides, **options)
    _refuse_unused(layers)
    chosen, dataset = choose(source, recipe or _recipe_of(layers), layers)
    if isinstance(chosen.codec, NoCodecOptions | PretrainedCodecOptions):
        raise ConfigError(f"codec={chosen.codec.kind} is not trained; choose codec.kind=vq, autoencoder or pca.")
    kind = chosen.codec
    devices = Devices(own_options(kind, chosen.train) if isinstance(kind, TrainedOptions) else chosen.train)
    folder = Path(out) if out else Path("runs") / f"{folder_name(_name(source, chosen))}-codec"
    with ExitStack() as held:
        claim_folder(folder, devices, held)
        return _carry_out(folder, chosen, dataset, devices, listener)


def reconstructions(codec: Codec, x: Tensor, spec: DataSpec) -> np.ndarray:
    """Return a picture of items (N, *shape) in model units, each row of pictures above its reconstructions."""
    device = next(codec.parameters()).device
    with torch.no_grad():
        made = codec.decode(codec.encode(x.to(device))).cpu()
    both = spec.from_model(torch.cat([x.cpu(), made]))
    if spec.kind == "image":
        return image_grid(both, len(x), bounds=spec.range or (-1.0, 1.0))
    return picture(both, spec)


def _carry_out(folder: Path, recipe: Recipe, dataset: Dataset, devices: Devices, listener: Listener) -> CodecRun:
    with devices.agree():
        training, held_out = hold_out(recipe, dataset)
        seen = held_out or training
        codec = start_codec(recipe, training)
        assert codec is not None
        if devices.is_main:
            _bind(folder, recipe)
            _announce(folder, recipe, training, held_out, codec, devices, listener)
    heard = listener if devices.is_main else silent
    watch = _Watching(folder, recipe, seen).watch(held_out)
    if isinstance(recipe.codec, TrainedOptions):
        trained = train_codec_network(codec, recipe.codec, recipe.train, training, folder, devices, heard, watch=watch)
        if trained is None:
            return CodecRun(folder, False, None)
        codec = trained.cpu()
        codec.calibrate(calibration_items(training, recipe.train.seed))
    codec = codec.eval()
    health = codebook_health(codec, seen, listener=heard) if isinstance(codec, TokenCodec) else None
    if devices.is_main:
        steps = getattr(recipe.codec, "steps", 0)
        assert watch.publish is not None
        watch.publish(codec, steps)
        heard(Finished("train", str(folder)))
    return CodecRun(folder, True, health)


class _Watching:
    """Writes the codec and pictures of reconstructions into a folder."""

    def __init__(self, folder: Path, recipe: Recipe, seen: Dataset) -> None:
        self.folder, self.recipe = folder, recipe
        count = min(len(seen), _SHOWN)
        self.items, self.spec = seen.batch(torch.arange(count))["x"].cpu(), seen.spec

    def watch(self, held_out: Dataset | None) -> Watch:
        return Watch(publish=self.publish, preview=self.preview, held_out=held_out)

    def publish(self, codec: Codec, step: int) -> None:
        if isinstance(codec, TokenCodec):
            codec.seal()
        info = {"step": step, "recipe": to_dict(self.recipe)}
        save_codec(codec, self.folder, info)

    def preview(self, codec: Codec, step: int) -> Path | None:
        if self.spec.kind == "vector":
            return None
        path = self.folder / "samples" / f"step-{step:08d}.png"
        with disk_errors("preview", self.folder):
            path.parent.mkdir(exist_ok=True)
            made_by = {"recipe": to_dict(self.recipe), "step": step}
            write_image(path, reconstructions(codec, self.items, self.spec), made_by)
        return path


def _bind(folder: Path, recipe: Recipe) -> None:
    """Tie the folder to the recipe; its length is that of the codec."""
    options = recipe.codec
    length = replace(recipe.train, steps=options.steps) if isinstance(options, TrainedOptions) else recipe.train
    bind_recipe(folder, replace(recipe, train=length))


def _announce(
    folder: Path,
    recipe: Recipe,
    training: Dataset,
    held_out: Dataset | None,
    codec: Codec,
    devices: Devices,
    listener: Listener,
) -> None:
    parameters = sum(p.numel() for p in codec.parameters())
    lines = [f"data     {line}" for line in training.summary()]
    lines += [f"held out {len(held_out)} items"] if held_out else []
    lines += [f"codec    {recipe.codec.kind}, {parameters:,} parameters, to latents of {latent_words(codec.latent)}"]
    for line in lines:
        listener(Message("train", line, "warning" if "warning:" in line else "info"))
    facts = {"versions": versions(), "threads": torch.get_num_threads(), "device": str(devices.device)}
    facts |= {"processes": devices.share.size, "seed": recipe.train.seed, "items": len(training)}
    facts |= {"held_out": len(held_out) if held_out else 0, "parameters": parameters, "data": training.summary()}
    write_facts(folder, facts)


def _refuse_unused(layers: Sequence[Any]) -> None:
    for key, _ in _asked(layers):
        if key in _UNUSED or key.partition(".")[0] in _UNUSED:
            own = f"; use codec.{key.partition('.')[2]}" if key in _OWN else ", which is used by undiffuse train only"
            raise ConfigError(f"{key} says nothing about the training of a codec alone{own}.")


def _recipe_of(layers: Sequence[Any]) -> str:
    """Return the recipe that goes with the kind of codec that is asked for."""
    for key, value in _asked(layers):
        kind = value.get("kind") if isinstance(value, dict) else value
        if key in ("codec", "codec.kind") and kind in ("autoencoder", "pca"):
            return "latent"
    return "vq-image"


def _asked(layers: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Yield keys and values of changes to a recipe."""
    for layer in layers:
        yield from layer.items() if isinstance(layer, dict) else (text.partition("=")[::2] for text in layer)


def _name(source: Any, recipe: Recipe) -> str:
    return str(source) if source is not None and is_name(source) else recipe.data.source
