"""webdataset shards: .tar files in which the files of one sample share a name up to its first dot.

    000017.jpg, 000017.txt, 000017.cls, 000017.json    picture, caption, class, further fields

One pass over the headers of the archives finds every sample; then any of them is read by its place, in any order, and
nothing is extracted. The picture is the first member that is one, or the one of suffix `data.key` ("target.png");
`data.pair` names the suffix of a picture that is given with it.

Source: the conventions of https://github.com/webdataset/webdataset; that library itself is not needed.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from undiffuse.data.dataset import IndexedDataset
from undiffuse.data.listing import Listing
from undiffuse.data.options import DataOptions
from undiffuse.data.pairs import SOURCE
from undiffuse.data.pictures import open_pictures
from undiffuse.data.sidecars import CAPTION, plain_name
from undiffuse.errors import DataError
from undiffuse.images.read import PICTURE_SUFFIXES, UnreadablePicture
from undiffuse.spec import DataSpec

_LARGEST_MEMBER = 1 << 28  # bytes; no file of a sample is larger
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


@dataclass(frozen=True)
class Member:
    """Where a file of a sample lies: archive, offset and size in bytes."""

    shard: Path
    offset: int
    size: int

    def open(self, name: str) -> BinaryIO:
        """Read the file; `name` stands for it in errors."""
        if self.size > _LARGEST_MEMBER:
            raise UnreadablePicture(name, f"{self.size} bytes is too large for a file of a sample")
        with open(self.shard, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise UnreadablePicture(name, f"{self.shard.name} ends before it does")
        return io.BytesIO(data)


Sample = dict[str, Member]


@dataclass
class Index:
    """Samples by name, in the order of the archives, and the archives that are damaged."""

    samples: dict[str, Sample] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def is_shards(source: str) -> bool:
    """Whether a source names .tar files: one, several by braces, or a folder of them."""
    if source.endswith((".tar", ".tar.gz", ".tgz")):
        return True
    path = Path(source).expanduser()
    return path.is_dir() and any(entry.suffix == ".tar" for entry in path.iterdir())


def shard_paths(source: str) -> list[Path]:
    """Return the archives that a source names, in order.

    Raises:
        DataError: One of them is not there.
    """
    path = Path(source).expanduser()
    paths = sorted(path.glob("*.tar")) if path.is_dir() else [Path(name).expanduser() for name in expand(source)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} shard(s) are not there, first {missing[0]}; check {source}.")
    return paths


def expand(pattern: str) -> list[str]:
    """Return the names that braces stand for: a{00..11}.tar, a{x,y}.tar."""
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    first, last, words = braces.groups()
    width = len(first or "")
    parts = words.split(",") if words else [str(n).zfill(width) for n in range(int(first), int(last) + 1)]
    return [name for part in parts for name in expand(pattern[: braces.start()] + part + pattern[braces.end() :])]


def open_shards(source: str, options: DataOptions, spec: DataSpec | None = None) -> IndexedDataset:
    """Open the pictures of .tar shards, with what lies beside them.

    Raises:
        DataError: An archive is missing, is none, or is compressed; there are no pictures; or as for pictures.
    """
    index = index_shards(shard_paths(source))
    listing = list_samples(index, source, options)
    return open_pictures(listing, replace(options, key=None, pair="auto"), spec)


def index_shards(paths: Iterable[Path]) -> Index:
    """Read the headers of archives.

    Raises:
        DataError: One cannot be read at all.
    """
    index = Index()
    for path in paths:
        try:
            with tarfile.open(path, "r:") as archive:
                _index_members(archive, path, index)
        except (tarfile.TarError, EOFError, OSError) as error:
            packed = "compressed shards are read in order only: set data.stream=true, or unpack them with gunzip"
            hint = packed if path.suffix in (".gz", ".tgz") else "download or pack it again"
            raise DataError(f"{path} is not a readable .tar archive ({error}); {hint}.") from error
    return index


def _index_members(archive: tarfile.TarFile, path: Path, index: Index) -> None:
    earlier = frozenset(index.samples)
    try:
        for info in archive:
            if info.isreg() and not info.issparse():
                key, suffix = split_name(info.name)
                if key:
                    name = f"{key} of {path.stem}" if key in earlier else key
                    index.samples.setdefault(name, {})[suffix] = Member(path, info.offset_data, info.size)
        _require_end(archive)
    except (tarfile.TarError, EOFError) as error:
        index.damaged.append(f"{path.name} ({error})")


def _require_end(archive: tarfile.TarFile) -> None:
    """Check that the headers of an archive ended with its mark, a block of zeros, and not with the file.

    Raises:
        tarfile.ReadError: The archive was cut off between two members, which tarfile passes over in silence.
    """
    file = archive.fileobj
    if file is not None and file.tell() < archive.offset + tarfile.BLOCKSIZE:
        raise tarfile.ReadError("unexpected end of data")


def split_name(name: str) -> tuple[str, str]:
    """Return the sample and the suffix that a member's name says: "a/17.left.png" is ("a/17", "left.png").

    The sample is empty for hidden files, which belong to none.
    """
    path = PurePosixPath(name)
    base, _, suffix = path.name.partition(".")
    return (str(path.parent / base) if base else "", suffix.lower())


def picture_suffix(suffixes: Iterable[str], wanted: str | None, where: str) -> str:
    """Return the suffix of the pictures to learn.

    Raises:
        DataError: There is no such suffix, or none of a picture.
    """
    known = list(dict.fromkeys(suffixes))
    if wanted is not None:
        if wanted.lower() not in known:
            raise DataError(f"{where} has no members .{wanted} (data.key); it has {_shown(known)}.")
        return wanted.lower()
    found = next((suffix for suffix in known if f".{suffix}" in PICTURE_SUFFIXES), None)
    if found is None:
        raise DataError(f"{where} has no pictures; its members end in {_shown(known)}; name one with data.key.")
    return found


def list_samples(index: Index, where: str, options: DataOptions) -> Listing:
    """Present samples as pictures with columns beside them."""
    suffixes = [suffix for sample in index.samples.values() for suffix in sample]
    key = picture_suffix(suffixes, options.key, where)
    pair = None if options.pair in ("auto", "none") else picture_suffix(suffixes, options.pair, where)
    alike = [key] if options.key else [s for s in dict.fromkeys(suffixes) if f".{s}" in PICTURE_SUFFIXES and s != pair]
    chosen: dict[str, Member] = {}
    for name, sample in index.samples.items():
        found = next((suffix for suffix in alike if suffix in sample), None)
        if found is not None and (pair is None or pair in sample):
            chosen[name] = sample[found]
    left = len(index.samples) - len(chosen)
    partner = None if pair is None else _opener({name: index.samples[name][pair] for name in chosen})
    return Listing(
        where=where,
        names=tuple(chosen),
        others=(),
        open=_opener(chosen),
        columns=_columns({name: index.samples[name] for name in chosen}),
        partner=partner,
        notes=(
            f"samples of {len({member.shard for member in chosen.values()})} shard(s); .{key} is learnt"
            + (f", given .{pair} as {SOURCE}" if pair else ""),
            *([f"{left} sample(s) without a picture passed over"] if left else []),
            *(f"warning: the rest of {shard} cannot be read" for shard in index.damaged),
        ),
    )


def sample_fields(sample: dict[str, bytes]) -> dict[str, Any]:
    """Return what the small members of a sample say, by column: .txt, .cls, .json.

    Raises:
        ValueError: One of them cannot be parsed.
    """
    fields: dict[str, Any] = {}
    if "json" in sample:
        found = json.loads(sample["json"])
        fields.update({plain_name(key): value for key, value in found.items() if not isinstance(value, dict)})
    if "txt" in sample:
        fields[CAPTION] = " ".join(sample["txt"].decode().split())
    if "cls" in sample:
        fields["label"] = sample["cls"].decode().strip()
    return fields


def _columns(samples: dict[str, Sample]) -> dict[str, list[Any]]:
    rows = []
    for name, sample in samples.items():
        small = {suffix: member for suffix, member in sample.items() if suffix in ("txt", "cls", "json")}
        try:
            rows.append(sample_fields({suffix: member.open(name).read() for suffix, member in small.items()}))
        except (ValueError, AttributeError, UnreadablePicture):  # what it lacks is counted with the missing values
            rows.append({})
    names = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in names}


def _opener(members: dict[str, Member]) -> Callable[[str], BinaryIO]:
    return lambda name: members[name].open(name)


def _shown(suffixes: list[str]) -> str:
    return ", ".join(f".{suffix}" for suffix in suffixes[:8]) + (", ..." if len(suffixes) > 8 else "") or "nothing"


def read_samples(files: Iterable[Callable[[], BinaryIO]], names: Iterable[str]) -> Iterator[dict[str, bytes]]:
    """Yield the samples of archives one after the other, as bytes by suffix; compressed archives will do.

    Raises:
        DataError: An archive cannot be read.
    """
    for opened, name in zip(files, names, strict=True):
        try:
            with opened() as file, tarfile.open(fileobj=file, mode="r|*") as archive:
                yield from _group(archive)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"{name} cannot be read to its end ({error}); download or pack it again.") from error


def _group(archive: tarfile.TarFile) -> Iterator[dict[str, bytes]]:
    """Gather members that follow each other and share a name."""
    current = ""
    sample: dict[str, bytes] = {}
    for info in archive:
        if not info.isreg() or info.size > _LARGEST_MEMBER:
            continue
        key, suffix = split_name(info.name)
        if key != current and sample:
            yield sample
            sample = {}
        current = key
        file = archive.extractfile(info)
        if key and file is not None:
            sample[suffix] = file.read()
    _require_end(archive)
    if sample:
        yield sample
