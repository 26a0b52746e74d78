"""The items that features are computed of: rows of a tensor, or data opened for a model, with their own labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from undiffuse.data.dataset import IndexedDataset
from undiffuse.data.holdout import split
from undiffuse.data.open import open_data
from undiffuse.data.options import DataOptions
from undiffuse.errors import DataError
from undiffuse.limits import check_counts
from undiffuse.models.model import Model
from undiffuse.noise import permutation

_BATCH = 1024


@dataclass(frozen=True)
class LabelledItems:
    """Items in model units.

    Args:
        x: (n, *), or tokens int64 (n, L).
        index: Number of each item in its data set, (n,), which keys its noise.
        labels: Name of each item's class; None where there are none.
    """

    x: Tensor
    index: Tensor
    labels: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.x)


def number_items(x: Tensor) -> Tensor:
    """Return a number for each item of x (n, *) that its content decides, int64 (n,), to key its noise.

    Counted from 0, the items that judge would meet the noise of those that were learned from, and with much noise a
    head would know them by it.
    """
    values = x.detach().cpu().flatten(1)
    rows = (values.float() if values.is_floating_point() else values).contiguous().numpy()
    keys = [int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest(), "big", signed=True) for row in rows]
    return torch.tensor(keys, dtype=torch.int64)


def read_items(
    model: Any, data: Any, *, n: int | None = None, seed: int = 0, options: DataOptions | None = None
) -> LabelledItems:
    """Return items of a tensor in data units, a data set, or a source that `open_data` reads.

    Pictures of a source are brought to the model's size, as `options.resize` says; labels are the data's own, whatever
    classes the model knows.

    Args:
        model: A model; or a denoiser, whose items are states and come as a tensor.
        data: Tensor (n, *shape) in data units, data set, or a path or name.
        n: The first rows of a tensor; of other data a choice by `seed`; None: all.
        seed: Of the choice.
        options: How to read a source.

    Raises:
        ValueError: `n` below 1, or a tensor that does not fit the model.
        DataError: Nothing there, or data that do not fit.
    """
    check_counts(n=n)
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        return _rows(model, torch.as_tensor(data)[:n])
    if isinstance(data, (str, bytes)) or hasattr(data, "__fspath__"):
        source = str(data)
        fitted, named = _open_twice(model, source, options or DataOptions(source=source))
    else:
        fitted = named = data
    count = len(fitted)
    if count == 0:
        raise DataError("the data set is empty; give at least one item.")
    rows = torch.arange(count) if n is None or n >= count else permutation(seed, 0, count)[:n].sort().values
    return _read(fitted, named, rows)


def read_split(
    model: Model, source: str, options: DataOptions | None = None, *, n: int | None = None, seed: int = 0
) -> tuple[LabelledItems, LabelledItems]:
    """Return (items to learn from, items to judge by) of a source with labels.

    The split is that of the data set (`data.split`): what judges a probe is what a model trained on the same source by
    the same options has not seen either.

    Args:
        model, source, options: As for `read_items`; `options.holdout` says how much judges.
        n: Learn from so many items at most, chosen by `seed`.
        seed: Of the choice.

    Raises:
        DataError: No labels, or nothing left on one side.
    """
    options = options or DataOptions(source=source)
    fitted, named = _open_twice(model, source, options)
    if not isinstance(named, IndexedDataset) or named.class_labels() is None:
        raise DataError(f"{source} has no labels; a probe needs class folders, or a column (data.label).")
    learned, judged = split(named, options.holdout)
    assert isinstance(learned, IndexedDataset) and isinstance(judged, IndexedDataset)
    if judged.count == 0:
        raise DataError("nothing is held out, so nothing judges the probe; set a holdout above 0.")
    rows = _places(learned)
    if n is not None and n < len(rows):
        rows = rows[permutation(seed, 0, len(rows))[:n].sort().values]
    return _read(fitted, named, rows), _read(fitted, named, _places(judged))


def _rows(model: Any, data: Tensor) -> LabelledItems:
    """Return the rows of a tensor in data units."""
    if isinstance(model, Model):
        expected = tuple(model.spec.shape)
        if tuple(data.shape[1:]) != expected:
            raise ValueError(
                f"the data have items of shape {tuple(data.shape[1:])}; the model's are {expected}. Resize them, or "
                "give a folder, whose pictures are brought to that size."
            )
        data = model.spec.to_model(data.cpu())
    return LabelledItems(data, torch.arange(len(data)))


def _open_twice(model: Any, source: str, options: DataOptions) -> tuple[Any, Any]:
    """Return a source as the model reads it, and as it is: with labels of its own."""
    if not isinstance(model, Model):
        raise ValueError(f"a {type(model).__name__} does not say how to read {source}; give a Model, or a tensor.")
    spec = replace(model.spec, classes=(), cond={})
    named = open_data(source, options)
    return open_data(source, options, spec=spec), named


def _places(dataset: IndexedDataset) -> Tensor:
    """Return the rows of a part of a data set in the whole."""
    return dataset.positions_to_rows(torch.arange(dataset.count))


def _read(fitted: Any, named: Any, rows: Tensor) -> LabelledItems:
    parts = [fitted.batch(part) for part in rows.split(_BATCH)]
    numbers = named.class_labels() if isinstance(named, IndexedDataset) else None
    labels = None if numbers is None else tuple(named.spec.classes[int(number)] for number in numbers[rows])
    return LabelledItems(
        torch.cat([part["x"].cpu() for part in parts]), torch.cat([part["index"].cpu() for part in parts]), labels
    )
