"""Probes: a small head on frozen features, trained in seconds, is a classifier."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from undiffuse.cache import content_hash
from undiffuse.errors import CheckpointError
from undiffuse.events import Listener, silent
from undiffuse.tasks.features.encoder import FeatureEncoder
from undiffuse.tasks.features.head import Head, Inputs, check_features, head_class
from undiffuse.tasks.features.items import number_items
from undiffuse.tasks.features.options import HeadOptions

_WEIGHTS, _FACTS, _SCHEMA = "probe.safetensors", "probe.json", 1


class Encoder(Protocol):
    """Frozen features of items: `FeatureEncoder`, or a baseline."""

    def __call__(self, x: Tensor, *, index: Tensor | None = None, listener: Listener = silent) -> Tensor:
        """Return (n, F) float32."""
        ...

    def maps(self, x: Tensor, *, index: Tensor | None = None, listener: Listener = silent) -> dict[str, Tensor]:
        """Return name -> (n, C, *) float32."""
        ...


@dataclass(frozen=True)
class ProbeClassifier:
    """A head on an encoder.

    Args:
        encoder: Gives the features.
        head: Gives scores of classes.
        classes: The labels, in order of their number.
        options: Of the head.
    """

    encoder: Encoder
    head: Head
    classes: tuple[Any, ...]
    options: HeadOptions

    def logits(self, x: Tensor, *, index: Tensor | None = None, listener: Listener = silent) -> Tensor:
        """Return scores float64 (n, classes) of items in model units (n, *); for `index` see `head_inputs`."""
        return self.head.logits(head_inputs(self.encoder, x, self.options, index, listener))

    def predict_proba(self, x: Tensor, *, index: Tensor | None = None) -> NDArray[np.float64]:
        """Return the probabilities (n, classes) of items in model units."""
        return self.logits(x, index=index).softmax(1).numpy()

    def predict(self, x: Tensor, *, index: Tensor | None = None) -> NDArray[Any]:
        """Return the labels (n,) of items in model units."""
        return np.asarray(self.classes)[self.logits(x, index=index).argmax(1).numpy()]

    def score(self, x: Tensor, y: Any, *, index: Tensor | None = None) -> float:
        """Return the share of items whose label is named."""
        return float((self.predict(x, index=index) == np.asarray(y)).mean())

    def save(self, folder: str | Path) -> Path:
        """Write probe.safetensors and probe.json into `folder` and return it. The model stays where it is.

        Raises:
            ValueError: The encoder is none of a model, or its conditions are no plain values.
        """
        from safetensors.torch import save_file

        from undiffuse.files import write_whole

        if not isinstance(self.encoder, FeatureEncoder):
            raise ValueError(f"a probe on a {type(self.encoder).__name__} cannot be saved; build it again.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in self.head.tensors().items()}
        facts = {
            "schema": _SCHEMA,
            "model": _hash(self.encoder),
            "encoder": self.encoder.settings,
            "classes": [value.item() if hasattr(value, "item") else value for value in self.classes],
            "options": asdict(self.options),
            "head": self.head.facts,
        }
        try:
            text = json.dumps(facts, indent=1) + "\n"
        except TypeError as error:
            raise ValueError(f"the probe's conditions or labels are no plain values ({error}); use such.") from error
        write_whole(folder / _WEIGHTS, lambda path: save_file(tensors, path))
        write_whole(folder / _FACTS, lambda path: path.write_text(text, encoding="utf-8"))
        return folder


def probe(
    encoder: Encoder,
    x: Tensor,
    y: Any,
    *,
    index: Tensor | None = None,
    listener: Listener = silent,
    **options: Any,
) -> ProbeClassifier:
    """Train a head on the frozen features of items, and return the classifier.

    Args:
        encoder: A `FeatureEncoder`, or anything like it.
        x: Items in model units (n, *).
        y: Their labels (n,): numbers or names, which are numbered in order.
        index: See `head_inputs`.
        listener: Hears about progress.
        options: Fields of `HeadOptions`: head="ridge", epochs=30, ...

    Raises:
        ValueError: One class only, another number of labels, or features that are not finite.
    """
    settings = HeadOptions(**options)
    classes, numbers = number_labels(y)
    if len(numbers) != len(x):
        raise ValueError(f"there are {len(x)} items and {len(numbers)} labels; give one label for each item.")
    inputs = head_inputs(encoder, x, settings, index, listener)
    return ProbeClassifier(encoder, fit_head(inputs, numbers, len(classes), settings), classes, settings)


def fit_head(inputs: Inputs, labels: Tensor, classes: int, options: HeadOptions) -> Head:
    """Train a head on features that are there already.

    Raises:
        ValueError: Another number of labels, or features that are not finite.
    """
    check_features(inputs, labels)
    return head_class(options.head).fit(inputs, labels, classes, options)


def head_inputs(
    encoder: Encoder, x: Tensor, options: HeadOptions, index: Tensor | None = None, listener: Listener = silent
) -> Inputs:
    """Return what a head reads: maps, or flat features.

    Args:
        encoder: Gives them.
        x: Items in model units (n, *).
        options: Of the head.
        index: Numbers of the items, which key their noise, other ones for other items; None: see `number_items`.
        listener: Hears about progress.
    """
    index = number_items(x) if index is None else index
    if options.reads_maps:
        return encoder.maps(x, index=index, listener=listener)
    return encoder(x, index=index, listener=listener)


def number_labels(y: Any) -> tuple[tuple[Any, ...], Tensor]:
    """Return the distinct labels in order, and the number of each item's label, int64 (n,).

    Raises:
        ValueError: No labels, one class only, or labels that are no row of numbers or names.
    """
    values = np.asarray(y.cpu() if isinstance(y, Tensor) else y)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"the labels have shape {values.shape}; expected one number or name for each item, (n,).")
    classes, numbers = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(
            f"all {len(values)} items have the label {classes.tolist()[0]!r}; a probe needs two classes or more."
        )
    return tuple(classes.tolist()), torch.from_numpy(numbers.astype(np.int64))


def load_probe(folder: str | Path, model: Any, **encoder: Any) -> ProbeClassifier:
    """Load a probe that `ProbeClassifier.save` wrote, for the model that it belongs to.

    Args:
        folder: Where it lies.
        model: The model.
        encoder: Arguments of the `FeatureEncoder` that change no feature: batch_size, max_bytes.

    Raises:
        CheckpointError: Nothing there, damaged, or another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        tensors = load_file(folder / _WEIGHTS)
        options = HeadOptions(**facts["options"])
        classes = tuple(facts["classes"])
        head = head_class(options.head).restore(tensors, facts["head"], len(classes), options)
        made = FeatureEncoder(model, **facts["encoder"], **encoder)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no probe of this model ({error}); train it again.") from error
    if facts["model"] != _hash(made):
        raise CheckpointError(f"the probe in {folder} was trained on another model; load that one, or train it again.")
    return ProbeClassifier(made, head, classes, options)


def _hash(encoder: FeatureEncoder) -> str:
    return content_hash(encoder.denoiser.state_dict(), {})


def accuracy(head: Head, inputs: Inputs, labels: Tensor) -> float:
    """Return the share of items whose class number a head names."""
    return float((head.logits(inputs).argmax(1) == labels).double().mean())


def take_inputs(inputs: Inputs, rows: Tensor | Sequence[int]) -> Inputs:
    """Return the features of some items."""
    chosen = torch.as_tensor(rows)
    return {name: part[chosen] for name, part in inputs.items()} if isinstance(inputs, dict) else inputs[chosen]
