"""Arrays of token ids, with one vocabulary for all places: sequences (N, L), or grids (N, H, W) row by row.

Such as the codes of a codec from elsewhere, amino acids, or text that was cut into tokens already. Ids are 0 to K - 1;
the mask of the process is one past them. In texts an id is written #7, so that rows can be read and given.
"""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from undiffuse.data.dataset import TensorDataset
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec

_MOST = 1 << 17  # ids: more are numbers of another kind
_ROW = re.compile(r"(?:\s*#\d+)*\s*")


def has_ids(spec: DataSpec) -> bool:
    """Whether the tokens of a model are ids of such an array."""
    known = spec.categories > 0 and not spec.columns
    return known and spec.kind == "tokens" and spec.vocabulary == names_of(spec.categories)


def names_of(count: int) -> tuple[str, ...]:
    """Return the names of the ids 0 to count - 1."""
    return tuple(f"#{number}" for number in range(count))


def token_dataset(
    values: np.ndarray,
    where: str,
    spec: DataSpec | None = None,
    labels: Tensor | None = None,
    classes: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> TensorDataset:
    """Wrap ids (N, L) or (N, H, W), of any number type as long as they are whole.

    Args:
        values: The ids.
        where: Where they come from, for messages.
        spec: A model's, which says how many ids there are; None: as many as the largest one asks for.
        labels: Class of each row, int64 (N,).
        classes: Their names.
        notes: Further lines of the summary.

    Raises:
        DataError: Values that are no ids, a shape without a reading, or what does not fit the model.
    """
    if values.dtype.kind not in "biuf" or values.ndim not in (2, 3) or 0 in values.shape:
        raise DataError(
            f"{where} holds {values.dtype} of shape {values.shape}; token ids are whole numbers (N, L), or (N, H, W) "
            f"on a grid."
        )
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values == np.floor(values))).all():
        raise DataError(f"{where} holds values that are not whole, which no token ids are; leave data.layout out.")
    low, high = int(values.min()), int(values.max())
    count = high + 1 if spec is None else spec.categories
    if low < 0 or high >= min(count, _MOST):
        known = f"the model knows 0 to {count - 1}" if spec is not None else f"expected 0 to {_MOST - 1} at most"
        raise DataError(f"{where} has ids from {low} to {high}; {known}. A mask is no data: leave it out.")
    grid = values.shape[1:] if values.ndim == 3 else ()
    ids = torch.from_numpy(values.reshape(len(values), -1).astype(np.int64))
    made = DataSpec(kind="tokens", shape=(ids.shape[1],), classes=classes, vocabulary=names_of(count), grid=grid)
    if spec is not None and (made.shape, made.grid) != (spec.shape, spec.grid):
        raise DataError(
            f"{where} has rows of {grid or made.shape} ids but the model works on {spec.grid or spec.shape}; give such."
        )
    line = f"{len(ids.unique())} of the ids 0 to {count - 1} occur; the mask of the process is {count}"
    return TensorDataset(data=ids, spec=spec or made, labels=labels, notes=(*notes, line))


def ids_of(text: str, spec: DataSpec, where: str) -> Tensor:
    """Return the ids that a text such as "#3#11#2" names, int64 (L,).

    Raises:
        DataError: It is no such text, or names an id that the model does not know.
    """
    if not _ROW.fullmatch(text):
        raise DataError(f"{where} names no ids; this model's tokens are numbers, written such as #3#11#2.")
    ids = [int(number) for number in re.findall(r"\d+", text)]
    if max(ids, default=0) >= spec.categories:
        raise DataError(f"{where} names the id {max(ids)}; the model knows 0 to {spec.categories - 1}.")
    return torch.tensor(ids, dtype=torch.int64)
