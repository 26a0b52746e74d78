"""Tables of the Hugging Face library `datasets`: saved to disk, as parquet or arrow files, or on the hub.

The column of the data is `data.key`, else the first with pictures, else the first with arrays, else all columns of
numbers together. Other columns may be labels and conditions; see `undiffuse.data.columns`. Pictures are decoded by
this library, under the same limits as files. Rows stay on disk, memory-mapped, and are read by number.

Parquet files are converted once by `datasets`, into its own cache.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from undiffuse.data.arrays import open_table
from undiffuse.data.dataset import IndexedDataset
from undiffuse.data.listing import Listing
from undiffuse.data.memory import require_memory
from undiffuse.data.options import DataOptions
from undiffuse.data.pairs import SOURCE
from undiffuse.data.pictures import open_pictures
from undiffuse.data.sidecars import plain_name
from undiffuse.data.tables import Table
from undiffuse.errors import DataError
from undiffuse.images.read import UnreadablePicture
from undiffuse.noise import permutation
from undiffuse.spec import DataSpec

HUB = "hf://"
TABLE_SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}
STREAM_SUFFIXES = {**TABLE_SUFFIXES, ".jsonl": "json", ".csv": "csv"}
_SAVED = ("dataset_dict.json", "state.json")
_NAME = re.compile(r"hf://(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^@]+))?(?:@(?P<split>.+))?")


@dataclass(frozen=True)
class Cells:
    """What one column of a table is: pictures, words, numbers, arrays, class numbers, or nothing that can be used."""

    name: str
    kind: str
    classes: tuple[str, ...] = ()


def is_table(path: Path) -> bool:
    """Whether a path holds a table: saved by `datasets`, a parquet or arrow file, or a folder of such files."""
    if path.is_file():
        return path.suffix.lower() in TABLE_SUFFIXES
    return any((path / name).is_file() for name in _SAVED) or bool(_files(path))


def open_hub(source: str, options: DataOptions, spec: DataSpec | None = None) -> IndexedDataset:
    """Open a table; see the module.

    Args:
        source: A path for which `is_table` holds, or "hf://owner/name:config@split".
        options: Which columns and split; how to read pictures.
        spec: A model's spec.

    Raises:
        DataError: It cannot be loaded, has no usable column, or as for pictures and arrays.
    """
    table = load_table(source, options)
    cells = {name: describe(name, feature) for name, feature in table.features.items()}
    key = data_column(cells, options.key, source)
    if key is None:
        return _open_numbers(table, cells, source, options, spec)
    if cells[key].kind == "picture":
        return open_pictures(_listing(table, cells, key, source, options), _used(options), spec)
    return _open_array(table, cells, key, source, options, spec)


def load_table(source: str, options: DataOptions, *, stream: bool = False) -> Any:
    """Load a table with `datasets`, as a `Dataset` or, with `stream`, an `IterableDataset`.

    Raises:
        DataError: The library is missing, the table is not there, or has no such split.
    """
    datasets = _library()
    path = Path(source).expanduser()
    with _quiet(datasets), trouble(source):
        if source.startswith(HUB):
            found = _from_hub(datasets, source, options.split, stream)
        elif any((path / name).is_file() for name in _SAVED):
            found = datasets.load_from_disk(str(path))
        else:
            files = [str(file) for file in ([path] if path.is_file() else _of_split(_files(path), options.split))]
            kind = STREAM_SUFFIXES[Path(files[0]).suffix.lower()]
            found = datasets.load_dataset(kind, data_files=files, split="train", streaming=stream)
        table = _choose_split(found, options.split, source)
        table = table.to_iterable_dataset() if stream and isinstance(table, datasets.Dataset) else table
        return _without_decoding(datasets, table)


def describe(name: str, feature: Any) -> Cells:
    """Return what a column of a table is, by its type."""
    kind = type(feature).__name__
    if kind == "Image":
        return Cells(name, "picture")
    if kind == "ClassLabel":
        return Cells(name, "class", tuple(feature.names))
    if isinstance(feature, dict):
        return Cells(name, "picture" if set(feature) == {"bytes", "path"} else "other")
    if kind in ("List", "Sequence", "LargeList", "Array2D", "Array3D", "Array4D", "Array5D"):
        return Cells(name, "array" if kind.startswith("Array") or _is_numeric(feature) else "other")
    dtype = str(getattr(feature, "dtype", ""))
    if dtype in ("binary", "large_binary"):
        return Cells(name, "picture")
    if dtype in ("string", "large_string", "bool"):
        return Cells(name, "word")
    return Cells(name, "number" if dtype.startswith(("int", "uint", "float")) else "other")


def data_column(cells: dict[str, Cells], wanted: str | None, where: str) -> str | None:
    """Return the column of the data; None for all columns of numbers.

    Raises:
        DataError: There is no such column, or none that could be meant.
    """
    shown = ", ".join(f"{cell.name} ({cell.kind})" for cell in cells.values())
    if wanted is not None:
        if wanted not in cells or cells[wanted].kind not in ("picture", "array"):
            raise DataError(f"{where} has no column data.key={wanted!r} of pictures or arrays; it has {shown}.")
        return wanted
    for kind in ("picture", "array"):
        found = next((name for name, cell in cells.items() if cell.kind == kind), None)
        if found is not None:
            return found
    if any(cell.kind == "number" for cell in cells.values()):
        return None
    raise DataError(f"{where} has no column of pictures or numbers; it has {shown}. Save texts as a text file.")


def cell_bytes(cell: Any, name: str) -> BinaryIO:
    """Open the picture in a cell: bytes, a path, or both by name.

    Raises:
        UnreadablePicture: The cell is empty.
    """
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(data, bytes):
        return io.BytesIO(data)
    if isinstance(path, str) and Path(path).is_file():
        return open(path, "rb")
    raise UnreadablePicture(name, "the cell is empty")


def _listing(table: Any, cells: dict[str, Cells], key: str, where: str, options: DataOptions) -> Listing:
    """Present the rows of a table as pictures with columns beside them."""
    pair = options.pair if options.pair not in ("auto", "none") else None
    if pair is not None and (pair not in cells or cells[pair].kind != "picture"):
        raise DataError(f"{where} has no column data.pair={pair!r} of pictures; it has {', '.join(cells)}.")
    beside = {name: cell for name, cell in cells.items() if name not in (key, pair) and cell.kind not in _NOT_BESIDE}
    values = table.select_columns(list(beside))[:] if beside else {}
    left = [name for name in cells if name not in (key, pair, *beside)]
    return Listing(
        where=where,
        names=tuple(f"row {row}" for row in range(len(table))),
        others=(),
        open=_opener(table, key),
        columns={plain_name(name): values[name] for name in beside},
        classes={plain_name(name): cell.classes for name, cell in beside.items() if cell.classes},
        partner=None if pair is None else _opener(table, pair),
        notes=(
            f"the column {key} is learnt" + (f", given the column {pair} as {SOURCE}" if pair else ""),
            *([f"columns passed over: {', '.join(left)}"] if left else []),
        ),
    )


_NOT_BESIDE = ("picture", "other")


def _opener(table: Any, column: str) -> Callable[[str], BinaryIO]:
    cells = table.select_columns([column])
    return lambda name: cell_bytes(cells[int(name.removeprefix("row "))][column], name)


def _used(options: DataOptions) -> DataOptions:
    """Return options without those that are used up here, for what reads the pictures or arrays."""
    return replace(options, key=None, split=None, pair="auto")


def _open_array(
    table: Any, cells: dict[str, Cells], key: str, where: str, options: DataOptions, spec: DataSpec | None
) -> IndexedDataset:
    table = _limited(table, options.limit)
    beside = [name for name, cell in cells.items() if name != key and cell.kind in ("word", "number", "class", "array")]
    values = _stack(table.select_columns([key]).with_format("numpy")[:][key], where, key)
    return _open_values(table, values, (), beside, cells, f"{where}, column {key}", options, spec)


def _open_numbers(
    table: Any, cells: dict[str, Cells], where: str, options: DataOptions, spec: DataSpec | None
) -> IndexedDataset:
    """Take all columns of numbers for features, but those that are labels or conditions."""
    table = _limited(table, options.limit)
    aside = {*(options.columns() or {}), *([options.label] if options.label else []), "label", "labels", "class"}
    features = [name for name, cell in cells.items() if cell.kind == "number" and name not in aside]
    if not features:
        raise DataError(f"{where} has labels and conditions but no columns of numbers to learn.")
    require_memory(len(table) * len(features) * 16, f"reading the table {where}", "set data.limit")
    columns = table.select_columns(features).with_format("numpy")[:]
    values = np.stack([np.asarray(columns[name], dtype=np.float64) for name in features], axis=1)
    beside = [name for name, cell in cells.items() if name not in features and cell.kind != "other"]
    return _open_values(table, values, tuple(features), beside, cells, where, options, spec)


def _open_values(
    table: Any,
    values: np.ndarray,
    features: tuple[str, ...],
    beside: Sequence[str],
    cells: dict[str, Cells],
    where: str,
    options: DataOptions,
    spec: DataSpec | None,
) -> IndexedDataset:
    options.refuse_others("tables", ("layout", "key", "label", "flip", "cond", "caption_length", "encoder", "split"))
    kept = table.select_columns(list(beside))[:] if beside else {}
    return open_table(
        Table(
            values,
            columns=features,
            beside={plain_name(name): kept[name] for name in beside},
            classes={plain_name(name): cells[name].classes for name in beside if cells[name].classes},
        ),
        replace(options, limit=None),
        where,
        spec,
    )


def _limited(table: Any, limit: int | None) -> Any:
    if limit is None or limit >= len(table):
        return table
    return table.select(permutation(0, 0, len(table))[:limit].sort().values.tolist())


def _stack(values: Any, where: str, key: str) -> np.ndarray:
    try:
        stacked = np.stack([np.asarray(row) for row in values])
    except ValueError as error:
        raise DataError(f"{where} has arrays of different sizes in the column {key!r}; bring them to one.") from error
    if stacked.dtype.kind not in "biuf":
        raise DataError(f"{where} has missing or wrong values in the column {key!r}; expected arrays of numbers.")
    return stacked


def _is_numeric(feature: Any) -> bool:
    """Whether a list holds numbers, at any depth."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float", "bool"))


def _files(folder: Path) -> list[Path]:
    """Return the tables in a folder and in the folders of it, those beside pictures left out."""
    found = [path for suffix in TABLE_SUFFIXES for place in ("", "*/") for path in folder.glob(f"{place}*{suffix}")]
    return sorted(path for path in found if path.is_file() and not path.name.startswith(("metadata", ".")))


def _of_split(files: list[Path], split: str | None) -> list[Path]:
    """Return the files of a split, which are named after it or lie in a folder of its name; all where none are."""

    def belongs(path: Path, name: str) -> bool:
        return path.parent.name == name or re.split(r"[-._]", path.name)[0] == name

    chosen = [path for path in files if belongs(path, split or "train")]
    if split is not None and not chosen:
        raise DataError(f"no file in {files[0].parent} is named after data.split={split!r}; found {files[0].name}, ...")
    return chosen or files


def _from_hub(datasets: Any, source: str, split: str | None, stream: bool) -> Any:
    parts = _NAME.fullmatch(source)
    if parts is None:
        raise DataError(f"{source} is no name on the hub; expected hf://owner/name, :config and @split after it.")
    wanted = parts["split"] or split
    return datasets.load_dataset(parts["name"], parts["config"], split=wanted, streaming=stream)


def _choose_split(found: Any, split: str | None, where: str) -> Any:
    if not isinstance(found, dict):
        return found
    names = list(found)
    name = split or ("train" if "train" in names else names[0] if len(names) == 1 else None)
    if name not in names:
        raise DataError(f"{where} has the splits {', '.join(names)}; choose one with data.split.")
    return found[name]


def _without_decoding(datasets: Any, table: Any) -> Any:
    """Keep pictures as bytes; they are decoded under this library's limits."""
    for name, feature in (table.features or {}).items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError("tables need the library datasets: pip install 'undiffuse[data]'.") from error
    return datasets


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Hide the progress bars and the log of `datasets`, and that of the hub: their errors are raised as well."""
    shown, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        hub.setLevel(level)
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def trouble(source: str) -> Iterator[None]:
    """Turn whatever loading raises into one line."""
    try:
        yield
    except (DataError, MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # the library raises errors of its own, of pyarrow, of fsspec and of the network
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        hint = "check the name, the split and the network" if source.startswith(HUB) else "check the files"
        raise DataError(f"cannot load {source}: {reason} ({type(error).__name__}); {hint}.") from error
