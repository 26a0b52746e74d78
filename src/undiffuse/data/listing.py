"""Finding pictures in a folder or a zip archive, the classes that their folders name, and what lies beside them."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from undiffuse.errors import DataError
from undiffuse.images.photographs import PHOTOGRAPHS, photograph
from undiffuse.images.read import PICTURE_SUFFIXES, UnreadablePicture

_LARGEST_MEMBER = 1 << 28  # bytes; no picture file is larger, but the member of a zip bomb may be
_EXPECTED = "expected pictures (.png, .jpg, .webp, .tif, ...), in one folder or in one folder per class"


@dataclass(frozen=True)
class Listing:
    """Picture files by name.

    Args:
        where: The folder, archive or file, for messages.
        names: Paths inside of `where` with forward slashes, sorted.
        others: Files passed over because their suffix is not that of a picture; hidden files are not counted.
        open: Opens a name.
        columns: Values beside the pictures by name of the column, one for each of `names`.
        classes: Names of the classes of columns that hold class numbers.
        partner: Opens the other picture of a pair.
        notes: Lines of the summary.
        folders: Names of the folders right below `where`, with or without pictures; of a folder only.
    """

    where: str
    names: tuple[str, ...]
    others: tuple[str, ...]
    open: Callable[[str], BinaryIO]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    partner: Callable[[str], BinaryIO] | None = None
    notes: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


def list_folder(folder: Path) -> Listing:
    """List the pictures below `folder`, links followed.

    Raises:
        DataError: No pictures there, or a folder that may not be entered.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in _walk(folder))
    found = _listing(f"the folder {folder}", names, lambda name: (folder / name).open("rb"))
    return replace(found, folders=tuple(sorted(path.name for path in folder.iterdir() if path.is_dir())))


def list_zip(path: Path) -> Listing:
    """List the pictures in an archive; its members are read in place, nothing is extracted.

    Raises:
        DataError: Not a zip file, no pictures, or a member whose name leads out of the archive.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} is not a readable zip archive ({error}); download or pack it again.") from error
    members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    for name in members:
        _refuse_escape(name, path)
    visible = sorted(name for name in members if not _is_hidden(name))
    return _listing(f"the archive {path}", visible, lambda name: _open_member(archive, members[name]))


def list_file(path: Path) -> Listing:
    """List a single picture."""
    return Listing(str(path), (path.name,), (), lambda _: open(path, "rb"))


def list_photographs() -> Listing:
    """List the photographs of scikit-image.

    Raises:
        DataError: It is not installed, or holds other ones.
    """
    files = {path.name: path for path in map(photograph, PHOTOGRAPHS)}
    return Listing("scikit-image's photographs", tuple(files), (), lambda name: files[name].open("rb"))


def folder_classes(names: Sequence[str], known: tuple[str, ...] = ()) -> list[str] | None:
    """Return the class of each picture: the first folder below those that all pictures share.

    None if the pictures lie in no such folders, or only some do. `known` names of a model's classes are never taken
    for a shared folder, so that pictures of one class alone are still labelled.
    """
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    depth = 0
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1 or parts[0] in known:
            break
        depth += 1
    if all(len(parts) > depth for parts in folders):
        return [parts[depth] for parts in folders]
    return None


def _listing(where: str, names: Sequence[str], opener: Callable[[str], BinaryIO]) -> Listing:
    pictures = tuple(name for name in names if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES)
    others = tuple(name for name in names if PurePosixPath(name).suffix.lower() not in PICTURE_SUFFIXES)
    if not names:
        raise DataError(f"{where} is empty; {_EXPECTED}.")
    if not pictures:
        raise DataError(f"{where} holds {len(others)} file(s) but no pictures ({', '.join(others[:5])}); {_EXPECTED}.")
    return Listing(where, pictures, others, opener)


def _walk(folder: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield the visible files below `folder`; a link back to a folder above is not followed."""
    real = folder.resolve()
    if real in seen:
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}; check its permissions.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, seen | {real})
        else:
            yield folder / entry.name


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _refuse_escape(name: str, archive: Path) -> None:
    """Refuse names that lead elsewhere; nothing is extracted here, but such an archive is not to be trusted."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or plain[1:2] == ":" or ".." in plain.split("/"):
        raise DataError(f"the archive {archive} has a member {name!r} that leads out of it; refused. Pack it again.")


def _open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> BinaryIO:
    if info.flag_bits & 1:
        raise UnreadablePicture(info.filename, "it is encrypted")
    if info.file_size > _LARGEST_MEMBER:
        raise UnreadablePicture(info.filename, f"{info.file_size} bytes is too large for a picture")
    try:
        return io.BytesIO(archive.read(info))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise UnreadablePicture(info.filename, f"the archive is damaged ({error})") from error
    except Exception as error:  # zlib.error, lzma.LZMAError derive from Exception alone
        raise UnreadablePicture(info.filename, f"it cannot be unpacked ({error})") from error
