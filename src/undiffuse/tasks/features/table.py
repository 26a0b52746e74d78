"""Features as a table: `ud.features`, and the files it is written to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.data.options import DataOptions
from undiffuse.events import Listener, silent
from undiffuse.files import write_whole
from undiffuse.tasks.features.encoder import DEFAULT_TIME, FeatureEncoder, Times
from undiffuse.tasks.features.items import read_items
from undiffuse.tasks.features.layers import AUTO, Layers
from undiffuse.words import plain_json

SUFFIXES = (".npz", ".npy", ".parquet")


@dataclass(frozen=True)
class FeatureTable:
    """Features of items.

    Args:
        values: (n, F) float32.
        index: Number of each item in its data set, (n,).
        labels: Class of each item by name; None where there are none.
        parts: Name of each map -> how many of the F features are its, in order.
        settings: What the features depend on beside model and data.
    """

    values: Tensor
    index: Tensor
    labels: tuple[str, ...] | None = None
    parts: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def part(self, name: str) -> Tensor:
        """Return the features of one map, (n, f).

        Raises:
            ValueError: There is none of that name.
        """
        if name not in self.parts:
            raise ValueError(f"there are no features of {name!r}; there are {', '.join(self.parts)}.")
        parts = dict(zip(self.parts, self.values.split(list(self.parts.values()), dim=1), strict=True))
        return parts[name]

    def save(self, path: str | Path) -> Path:
        """Write the features and return the path: .npz and .parquet with index, labels and settings, .npy without.

        In .parquet, `features` is a column of lists; it needs pyarrow.

        Raises:
            ValueError: Another suffix.
            ImportError: pyarrow is not installed.
        """
        path = Path(path)
        check_suffix(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write = {".npy": self._write_npy, ".npz": self._write_npz, ".parquet": self._write_parquet}
        write_whole(path, write[path.suffix.lower()])
        return path

    def _write_npy(self, path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, self.values.numpy(), allow_pickle=False)

    def _write_npz(self, path: Path) -> None:
        arrays = {"features": self.values.numpy(), "index": self.index.numpy(), "settings": np.array(self._facts)}
        if self.labels is not None:
            arrays["label"] = np.array(self.labels)
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def _write_parquet(self, path: Path) -> None:
        pyarrow, parquet = _pyarrow()
        flat = pyarrow.array(self.values.numpy().reshape(-1))
        columns = {"features": pyarrow.FixedSizeListArray.from_arrays(flat, self.values.shape[1])}
        columns["index"] = pyarrow.array(self.index.numpy())
        if self.labels is not None:
            columns["label"] = pyarrow.array(list(self.labels))
        table = pyarrow.table(columns).replace_schema_metadata({"undiffuse": self._facts})
        parquet.write_table(table, path)

    @property
    def _facts(self) -> str:
        return json.dumps(plain_json({"parts": dict(self.parts), **self.settings}))


def features(
    model: Any,
    data: Any,
    *,
    layers: Layers = AUTO,
    t: Times = DEFAULT_TIME,
    pool: int | None = 1,
    draws: int = 1,
    seed: int = 0,
    n: int | None = None,
    cond: dict[str, Any] | None = None,
    inputs: bool = False,
    batch_size: int = 64,
    max_bytes: int | None = None,
    options: DataOptions | None = None,
    listener: Listener = silent,
) -> FeatureTable:
    """Return features of data from the inside of a model.

    Args:
        model: A `Model`, or a `Denoiser` (whose data are states).
        data: Tensor (n, *shape) in data units, a data set, or what `undiffuse.data.open_data` reads: a folder, an
            archive, a .npy file, a built-in name.
        layers, t, pool, draws, cond, inputs, batch_size, max_bytes: See `FeatureEncoder`.
        seed: Of the noise, and of the choice of `n` items.
        n: So many items at most: the first rows of a tensor, of other data a choice.
        options: How a source is read: size, resize, ...
        listener: Hears about progress.

    Raises:
        ValueError: Values out of range, an unknown layer, or a tensor that does not fit.
        DataError: Data that do not fit, or more features than the memory holds.
    """
    encoder = FeatureEncoder(
        model,
        layers,
        t,
        pool=pool,
        draws=draws,
        seed=seed,
        cond=cond,
        batch_size=batch_size,
        inputs=inputs,
        max_bytes=max_bytes,
    )
    items = read_items(model, data, n=n, seed=seed, options=options)
    maps = encoder.maps(items.x, index=items.index, pooled=True, listener=listener)
    flat = {name: value.flatten(1) for name, value in maps.items()}
    parts = {name: value.shape[1] for name, value in flat.items()}
    return FeatureTable(torch.cat(list(flat.values()), dim=1), items.index, items.labels, parts, encoder.settings)


def check_suffix(path: Path) -> None:
    """Refuse a file that features cannot be written to, before they are computed.

    Raises:
        ValueError: An unknown suffix.
        ImportError: pyarrow is needed and not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"features cannot be written to {path}; end it in {', '.join(SUFFIXES)}.")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            ".parquet needs pyarrow, which is not installed; pip install pyarrow, or use .npz."
        ) from error
    return pyarrow, parquet
