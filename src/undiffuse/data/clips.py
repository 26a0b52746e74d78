"""What video, volumes and signals share: finding files, counting the bad ones, cutting them into windows, keeping
what fits in memory there and reading the rest while training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from undiffuse.data.dataset import IndexedDataset, Problem, TensorDataset, refuse_bad
from undiffuse.data.labels import number_labels
from undiffuse.data.lazy import LazyDataset, Reader, Source
from undiffuse.data.listing import _walk, folder_classes
from undiffuse.data.memory import fits_memory, require_memory
from undiffuse.data.options import DataOptions
from undiffuse.errors import DataError
from undiffuse.noise import permutation
from undiffuse.spec import DataSpec

Answer = TypeVar("Answer")


class UnreadableFile(DataError):
    """A file that cannot be used; `path` and `reason` say which and why."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"cannot read {path}: {reason}")


@dataclass(frozen=True)
class Files:
    """Files by name.

    Args:
        where: The folder or file, for messages.
        root: What names are relative to.
        names: Paths with forward slashes, sorted.
        others: Files passed over because of their suffix.
    """

    where: str
    root: Path
    names: tuple[str, ...]
    others: tuple[str, ...] = ()

    def path(self, name: str) -> Path:
        """Return where a file is."""
        return self.root / name


@dataclass(frozen=True)
class Windows:
    """Pieces of equal length, N of them.

    Args:
        file: Number of the file of each, int64 (N,).
        first: Where in it each begins, int64 (N,).
        short: Numbers of the files that are shorter than one piece.
    """

    file: Tensor
    first: Tensor
    short: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.file)

    def limited(self, limit: int | None) -> Windows:
        """Return at most so many, a fixed random choice in the same order."""
        if limit is None or limit >= len(self):
            return self
        chosen = permutation(0, 0, len(self))[:limit].sort().values
        return Windows(self.file[chosen], self.first[chosen], self.short)


def cut_windows(lengths: Sequence[int], span: int, step: int) -> Windows:
    """Cut files of these lengths into pieces of `span`, one every `step`; what is left at an end is not used."""
    file: list[int] = []
    first: list[int] = []
    for number, length in enumerate(lengths):
        starts = range(0, length - span + 1, step)
        file.extend([number] * len(starts))
        first.extend(starts)
    short = tuple(number for number, length in enumerate(lengths) if length < span)
    return Windows(torch.tensor(file, dtype=torch.int64), torch.tensor(first, dtype=torch.int64), short)


def find_files(path: Path, suffixes: frozenset[str], expected: str) -> Files:
    """Return the files with these suffixes below a folder, or the file that is given.

    Raises:
        DataError: There are none.
    """
    if path.is_file():
        return Files(str(path), path.parent, (path.name,))
    everything = sorted(found.relative_to(path).as_posix() for found in _walk(path))
    names = tuple(name for name in everything if _suffix(name) in suffixes)
    others = tuple(name for name in everything if _suffix(name) not in suffixes)
    if not names:
        found = f"{len(others)} file(s) ({', '.join(others[:5])})" if others else "nothing"
        raise DataError(f"the folder {path} holds {found} where {expected} were expected.")
    return Files(f"the folder {path}", path, names, others)


def _suffix(name: str) -> str:
    """Return the last suffix in small letters; of .nii.gz both."""
    lower = PurePosixPath(name).name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else PurePosixPath(lower).suffix


def attempt(read: Callable[[str], Answer], names: Iterable[str]) -> tuple[dict[str, Answer], dict[str, str]]:
    """Return answers by name, and by name the reasons why there is none."""
    answers, reasons = {}, {}
    for name in names:
        try:
            answers[name] = read(name)
        except DataError as error:
            if not hasattr(error, "reason"):
                raise
            reasons[name] = str(error.reason)
        except OSError as error:
            reasons[name] = (error.strerror or str(error)).lower()
    return answers, reasons


def file_classes(
    names: Sequence[str], where: str, spec: DataSpec | None
) -> tuple[Tensor | None, tuple[str, ...], tuple[str, ...]]:
    """Return the class number of each file, the names of classes, and notes; classes are folders."""
    folders = folder_classes(names, spec.classes if spec else ())
    if folders is None or len(names) == 1:
        return None, (), ()
    if spec is not None and not spec.classes:
        return None, (), ("the model has no classes; the folders' names were not used",)
    return (*number_labels(folders, where, spec.classes if spec else ()), ())


def passed_over(files: Files) -> Iterator[str]:
    """Yield a note about files of other suffixes."""
    if files.others:
        shown = ", ".join(files.others[:5]) + (", ..." if len(files.others) > 5 else "")
        yield f"{len(files.others)} other file(s) passed over: {shown}"


def refuse_other_kind(spec: DataSpec | None, kind: str, where: str) -> None:
    """Raise `DataError` where a model is of another kind of data."""
    if spec is not None and spec.kind != kind:
        raise DataError(
            f"{where} holds data of kind {kind!r} but the model was trained on {spec.noun} of shape {spec.shape}; "
            "give data of that kind."
        )


def keeps_on_disk(needed: int, options: DataOptions, what: str) -> bool:
    """Whether items are read while training: as asked, else where `needed` bytes would not fit into memory.

    Raises:
        DataError: They do not fit, and data.lazy is false.
    """
    if options.lazy is not None and not options.lazy:
        require_memory(needed, what, "leave out data.lazy, choose a smaller size, or set data.limit")
    return bool(options.lazy) or (options.lazy is None and not fits_memory(needed))


def gather(
    source: Source,
    decode: Callable[[], tuple[np.ndarray, dict[str, str]]],
    row_names: Sequence[str],
    common: dict[str, Any],
    *,
    lazy: bool,
    options: DataOptions,
    unread: dict[str, str],
    files: Files,
) -> IndexedDataset:
    """Return the data set of a source: decoded at once, or read while training.

    Args:
        source: Its items.
        decode: Returns all items (N, ...), and the reasons of files that could not be decoded.
        row_names: File of each item.
        common: Further fields of the data set: spec, stored, labels, notes.
        lazy: Which of the two.
        options: Their `max_bad` and `flip` count.
        unread: Files that turned out to be unreadable before.
        files: What there is.

    Raises:
        DataError: Too many files are unreadable.
    """
    problems = tuple(Problem(*pair) for pair in sorted(unread.items()))
    if lazy:
        reader = Reader(source)
        return LazyDataset(reader=reader, max_bad=options.max_bad, problems=problems, mirror=options.flip, **common)
    values, broken = decode()
    bad = {**unread, **broken}
    refuse_bad(bad, len(files.names), options.max_bad, files.where)
    good = [row for row, name in enumerate(row_names) if name not in broken]
    return TensorDataset(
        data=torch.from_numpy(values),
        rows=torch.tensor(good) if broken else None,
        problems=tuple(Problem(*pair) for pair in sorted(bad.items())),
        mirror=options.flip,
        **common,
    )
