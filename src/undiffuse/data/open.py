"""`open_data`: look at what was given, and read it with what suits it."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from undiffuse.data.arrays import ARRAY_SUFFIXES, TABLE_SUFFIXES, open_array
from undiffuse.data.categories import looks_like_categories, open_categories
from undiffuse.data.dataset import Dataset, IndexedDataset
from undiffuse.data.embedded import EMBEDDED, open_embedded
from undiffuse.data.hub import HUB, is_table, open_hub
from undiffuse.data.listing import Listing, list_file, list_folder, list_zip
from undiffuse.data.media import open_media
from undiffuse.data.options import DataOptions
from undiffuse.data.pictures import open_pictures
from undiffuse.data.shards import is_shards, open_shards
from undiffuse.data.streams import open_stream
from undiffuse.data.text import TextDataset, open_text
from undiffuse.errors import DataError
from undiffuse.images.read import PICTURE_SUFFIXES
from undiffuse.spec import DataSpec

TEXT_SUFFIXES = frozenset(
    (".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".json", ".jsonl", ".log", ".fasta")
)
_EXPECTED = (
    f"expected {', '.join(EMBEDDED)}, a folder or .zip of pictures, a picture, a .npy, .npz or .csv array, "
    "a .parquet table, .tar shards, videos, volumes, signals, or a text file"
)


def open_data(source: str, options: DataOptions | None = None, spec: DataSpec | None = None) -> Dataset:
    """Open a data set.

    Pictures, tables of pictures, shards and clips that do not fit into memory stay on disk and are read while training
    (`data.lazy`); streams are never held whole (`data.stream`). Other data that do not fit are refused before they are
    read, with the sizes and `data.limit` or `data.size` as the way out.

    Args:
        source: A built-in name (digits, moons, mixture3, prose), a path, a pattern of shards, or hf://owner/name; see
            `DataOptions.source`.
        options: How to read it; its own `source` is not looked at.
        spec: A model's spec, to open data for that model: pictures are brought to its shape, text and classes are
            numbered by its names, arrays are checked against it.

    Raises:
        DataError: Nothing there, nothing readable, too much unreadable, more than the memory holds, or not what
            `spec` expects. The message is one line.
        CheckpointError: The text encoder (`data.encoder`, or that of `spec`) cannot be used.
    """
    options = options or DataOptions()
    dataset = _open(source, options, spec)
    if options.encoder and spec is None and not any(part.encoder for part in dataset.spec.cond.values()):
        raise DataError(
            f"data.encoder={options.encoder} has no use for {source}: no captions were found; name their column with "
            "data.cond=NAME:text, or leave it out."
        )
    return dataset


def _open(source: str, options: DataOptions, spec: DataSpec | None) -> Dataset:
    if source in EMBEDDED:
        return _with_shadow_note(open_embedded(source, options, spec), source)
    if not source:
        raise DataError(f"no data were named; {_EXPECTED} (data.source).")
    path = Path(source).expanduser()
    try:
        if options.stream:
            return open_stream(source, options, spec)
        if source.startswith(HUB):
            return open_hub(source, options, spec)
        if is_shards(source):
            return open_shards(source, options, spec)
        return _open_path(path, options, spec)
    except PermissionError as error:
        raise DataError(f"{path} may not be read ({error.strerror}); check its permissions.") from error


def _open_path(path: Path, options: DataOptions, spec: DataSpec | None) -> IndexedDataset | TextDataset:
    if not path.exists():
        raise DataError(f"there is no {path}{_similar(path)}; {_EXPECTED}.")
    if is_table(path):
        return open_hub(str(path), options, spec)
    media = open_media(path, options, spec)
    if media is not None:
        return media
    listing = _list_pictures(path)
    if listing is not None:
        return open_pictures(listing, options, spec)
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder; {_EXPECTED}.")
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES and looks_like_categories(path, options, spec):
        return open_categories(path, options, spec)
    if suffix in ARRAY_SUFFIXES:
        return open_array(path, options, spec)
    if suffix in TEXT_SUFFIXES or options.units != "auto" or options.tokenizer:
        return open_text(path, options, spec)
    raise DataError(f"{path} has the unknown suffix {suffix!r}; {_EXPECTED} (data.units=bytes reads any file as text).")


def _list_pictures(path: Path) -> Listing | None:
    if path.is_dir():
        return list_folder(path)
    if path.suffix.lower() == ".zip":
        return list_zip(path)
    return list_file(path) if path.suffix.lower() in PICTURE_SUFFIXES else None


def _similar(path: Path) -> str:
    """Name the built-in set or the neighbour that was probably meant."""
    neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, [*EMBEDDED, *neighbours], n=1)
    return f" (did you mean {near[0] if near[0] in EMBEDDED else path.parent / near[0]}?)" if near else ""


def _with_shadow_note(dataset: IndexedDataset | TextDataset, source: str) -> IndexedDataset | TextDataset:
    if not Path(source).exists():
        return dataset
    note = f"warning: {source!r} means the built-in data; write ./{source} for the file or folder of that name"
    return replace(dataset, notes=(*dataset.notes, note))
