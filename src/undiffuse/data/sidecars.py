"""Columns from files beside pictures.

metadata.csv, metadata.tsv, metadata.jsonl    a row per picture; the column file_name says which, relative to it
photo.txt beside photo.jpg                    its caption
photo.json beside photo.jpg                   a value per field
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from undiffuse.data.listing import Listing
from undiffuse.errors import DataError
from undiffuse.images.read import UnreadablePicture

_TABLES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
_KEY = "file_name"
CAPTION = "caption"


def with_columns(listing: Listing) -> Listing:
    """Return a listing with the columns that files beside its pictures hold; these are no longer passed over.

    Raises:
        DataError: A table without the column `file_name`, or files that cannot be parsed.
    """
    rows: dict[str, dict[str, Any]] = {name: {} for name in listing.names}
    used: set[str] = set()
    tables = [name for name in listing.others if PurePosixPath(name).name in _TABLES]
    for name in tables:
        used.add(name)
        _read_table(listing, name, rows)
    for other, pictures in _sidecars(listing):
        used.add(other)
        fields = _read_sidecar(listing, other)
        for picture in pictures:
            rows[picture].update(fields)
    if not used:
        return listing
    names = dict.fromkeys(key for row in rows.values() for key in row)
    columns = {plain_name(name): [row.get(name) for row in rows.values()] for name in names}
    kinds = sorted({PurePosixPath(name).suffix for name in used - set(tables)})
    beside = [f"{len(used) - len(tables)} {' and '.join(kinds)} file(s) beside pictures"] if kinds else []
    return replace(
        listing,
        others=tuple(name for name in listing.others if name not in used),
        columns=columns,
        notes=(*listing.notes, f"conditions read from {', '.join([*tables, *beside])}"),
    )


def plain_name(name: str) -> str:
    """Return the name of a column as that of a condition, without dots."""
    return name.strip().replace(".", "_")


def _sidecars(listing: Listing) -> Iterator[tuple[str, list[str]]]:
    """Yield text and JSON files that are named like pictures, and these pictures."""
    stems: dict[str, list[str]] = {}
    for name in listing.names:
        stems.setdefault(stem(name), []).append(name)
    for other in listing.others:
        if PurePosixPath(other).suffix.lower() in (".txt", ".json") and stem(other) in stems:
            yield other, stems[stem(other)]


def stem(name: str) -> str:
    """Return a path without its last suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def _read_sidecar(listing: Listing, name: str) -> dict[str, Any]:
    text = _read(listing, name)
    if not name.lower().endswith(".json"):
        return {CAPTION: " ".join(text.split())}
    return {key: value for key, value in _fields(text, name).items() if not isinstance(value, dict)}


def _fields(text: str, where: str) -> Mapping[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); mend it, or set data.cond=none.") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where} holds no JSON object; expected one value per field.")
    return fields


def _read_table(listing: Listing, name: str, rows: dict[str, dict[str, Any]]) -> None:
    """Add the fields of a table to the rows of the pictures it names."""
    parent = PurePosixPath(name).parent
    missing = 0
    for fields in _table_rows(_read(listing, name), name):
        if _KEY not in fields:
            raise DataError(f"{name} of {listing.where} has no column {_KEY!r}, which names the picture of each row.")
        row = rows.get(str(parent / str(fields[_KEY])))
        missing += row is None
        if row is not None:
            row.update({key: value for key, value in fields.items() if key != _KEY})
    if missing and not any(rows.values()):
        raise DataError(f"{name} of {listing.where} names {missing} picture(s), none of which is there.")


def _table_rows(text: str, name: str) -> Iterator[Mapping[str, Any]]:
    if name.endswith(".jsonl"):
        return (_fields(line, f"line {at} of {name}") for at, line in enumerate(text.splitlines(), 1) if line.strip())
    head = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=head.count))
    return ({key: value for key, value in row.items() if key is not None} for row in rows)


def _read(listing: Listing, name: str) -> str:
    try:
        with listing.open(name) as file:
            return file.read().decode("utf-8-sig")
    except UnreadablePicture as error:
        raise DataError(f"cannot read {name} of {listing.where}: {error.reason}.") from error
    except OSError as error:
        raise DataError(f"cannot read {name} of {listing.where}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name} of {listing.where} is not UTF-8 text ({error}); save it as UTF-8.") from error
