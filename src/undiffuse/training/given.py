"""Data that a caller hands over as an object: an array, a tensor, or a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from undiffuse.data import DataOptions, Dataset
from undiffuse.data.arrays import open_table
from undiffuse.data.tables import Table
from undiffuse.errors import DataError

GIVEN = "array"
"""What `data.source` says of data that were handed over as an object."""

_PARTS = ("spec", "batch", "__len__", "to", "summary")


def is_name(source: Any) -> bool:
    """Whether a source names data, or leaves that to the recipe."""
    return source is None or isinstance(source, (str, Path))


def open_given(data: Any, options: DataOptions) -> Dataset:
    """Return a data set of an array or a tensor (N, ...), or a data set itself.

    Args:
        data: Numbers, one item per row, whose axes mean what they mean in a .npy file; or a `Dataset`.
        options: How to read an array; for a data set only `holdout` applies.

    Raises:
        DataError: It is something else, or an option has no use for it; or as for a .npy file.
    """
    if isinstance(data, Tensor):
        data = data.detach().cpu()
        data = (data.float() if data.is_floating_point() else data).numpy()
    if isinstance(data, np.ndarray):
        options.refuse_others("arrays", ("layout", "flip"))
        return open_table(Table(data), options, "the given array")
    if not all(hasattr(data, part) for part in _PARTS):
        raise DataError(
            f"cannot train on a {type(data).__name__}; give the name or path of data, a numpy array or tensor with one "
            f"item per row, or a data set such as undiffuse.data.TensorDataset."
        )
    replace(options, limit=None).refuse_others("a data set object", ())
    if options.limit is not None:
        raise DataError("data.limit has no use for a data set object; hand over a smaller one.")
    return data


def refuse_given(source: str) -> None:
    """Refuse to open by name what was an object in the run that is to go on.

    Raises:
        DataError: The name stands for such an object.
    """
    if source == GIVEN and not Path(source).exists():
        raise DataError(
            "this run was trained on an array or data set handed over in Python; go on with the same call, "
            "undiffuse.train(data, out=...)."
        )
