"""One-dimensional signals from files: .wav of 8 to 32 bits, .csv (a row per point), .npy; cut into windows.

Samples of .wav files lie in [-1, 1], which is the range of the spec; other signals are standardised per channel. The
rate travels in the spec. Files of another rate are refused unless `data.rate` asks to resample.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

import numpy as np

from undiffuse.data.clips import (
    Files,
    UnreadableFile,
    Windows,
    attempt,
    cut_windows,
    file_classes,
    find_files,
    gather,
    keeps_on_disk,
    passed_over,
    refuse_other_kind,
)
from undiffuse.data.dataset import IndexedDataset, refuse_bad
from undiffuse.data.lazy import Item
from undiffuse.data.options import DataOptions
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec

WAV_SUFFIXES = frozenset((".wav", ".wave"))
SIGNAL_SUFFIXES = WAV_SUFFIXES | {".csv", ".npy"}
_LARGEST_AUTO_LENGTH = 4096
_OPTIONS = ("layout", "lazy", "samples", "overlap", "rate")


@dataclass(frozen=True)
class Signal:
    """A signal as read: values (C, N), float32; rate in points per second, 0 where unknown."""

    values: np.ndarray
    rate: float = 0.0


@dataclass(frozen=True)
class SignalHeader:
    """Channels, points (after resampling) and rate of a file, and how many values lie beyond [-1, 1]."""

    channels: int
    length: int
    rate: float
    beyond: int
    total: np.ndarray  # sum and sum of squares per channel, (2, C)


@dataclass(frozen=True)
class SignalSource:
    """Windows of signals, as a `Source`."""

    files: Files
    names: Sequence[str]
    windows: Windows
    length: int
    rate: float | None
    bounded: bool

    def __len__(self) -> int:
        return len(self.windows)

    def read(self, row: int) -> Item:
        """Read one window: "x", float32 (C, N)."""
        first = int(self.windows.first[row])
        return {"x": self._load(self.names[int(self.windows.file[row])])[:, first : first + self.length]}

    def all(self) -> tuple[np.ndarray, dict[str, str]]:
        """Read every file once; return the windows (N, C, L), and the reasons of files that broke."""
        parts, broken = attempt(self._load, [self.names[file] for file in sorted(set(self.windows.file.tolist()))])
        channels = len(next(iter(parts.values()))) if parts else 1
        found = np.zeros((len(self), channels, self.length), dtype=np.float32)
        for row, (file, first) in enumerate(zip(self.windows.file.tolist(), self.windows.first.tolist(), strict=True)):
            if self.names[file] in parts:
                found[row] = parts[self.names[file]][:, first : first + self.length]
        return found, broken

    def _load(self, name: str) -> np.ndarray:
        values = resampled(read_signal(self.files.path(name), name), self.rate, name).values
        return values.clip(-1.0, 1.0) if self.bounded else values


def open_signals(path: Path, options: DataOptions, spec: DataSpec | None = None) -> IndexedDataset:
    """Read windows of the signals in a folder (folders in it are classes), or of one file.

    Raises:
        DataError: No signals, too many unreadable ones, mixed rates, all shorter than a window, or not the model's
            kind of data, channels or rate.
    """
    options.refuse_others("signals", _OPTIONS)
    files = find_files(path, SIGNAL_SUFFIXES, "signals (.wav, .csv, .npy)")
    refuse_other_kind(spec, "signal", files.where)
    wav = {name for name in files.names if Path(name).suffix.lower() in WAV_SUFFIXES}
    if wav and len(wav) < len(files.names):
        raise DataError(f"{files.where} holds .wav files and others; put them into folders of their own.")
    headers, unread = attempt(lambda name: _look(files.path(name), name, options.rate), files.names)
    refuse_bad(unread, len(files.names), options.max_bad, files.where)
    channels = spec.channels if spec else Counter(header.channels for header in headers.values()).most_common(1)[0][0]
    unread |= {
        name: f"it has {header.channels} channel(s) where {channels} are expected"
        for name, header in headers.items()
        if header.channels != channels
    }
    refuse_bad(unread, len(files.names), options.max_bad, files.where)
    known = {name: header for name, header in headers.items() if name not in unread}
    rate = _one_rate(known, options, spec, files.where)
    length = spec.shape[1] if spec else options.samples or min(_LARGEST_AUTO_LENGTH, _shortest(known))
    if options.overlap >= length:
        raise DataError(f"data.overlap={options.overlap} leaves nothing new in windows of {length} points; lower it.")
    windows = cut_windows([header.length for header in known.values()], length, length - options.overlap)
    if not len(windows):
        longest = max(header.length for header in known.values())
        raise DataError(
            f"none of {len(known)} signal(s) in {files.where} has the {length} points of an item (the longest has "
            f"{longest}); lower data.samples."
        )
    windows = windows.limited(options.limit)
    bounded = spec.range is not None if spec else bool(wav)
    source = SignalSource(files, tuple(known), windows, length, options.rate, bounded)
    return _assemble(source, known, unread, rate, options, spec)


def _assemble(
    source: SignalSource,
    headers: dict[str, SignalHeader],
    unread: dict[str, str],
    rate: float,
    options: DataOptions,
    spec: DataSpec | None,
) -> IndexedDataset:
    names, windows, files = source.names, source.windows, source.files
    channels = next(iter(headers.values())).channels
    labels, classes, notes = file_classes(names, files.where, spec)
    stored = DataSpec(kind="signal", shape=(channels, source.length), rate=rate, classes=classes)
    if source.bounded:
        stored = replace(stored, range=(-1.0, 1.0))
    elif spec is None:
        mean, std = _moments(list(headers.values()))
        stored = replace(stored, mean=mean, std=std)
    else:
        stored = replace(stored, mean=spec.mean, std=spec.std)
    common = {
        "spec": spec or stored,
        "stored": stored,
        "labels": None if labels is None else labels[windows.file],
        "notes": (*_notes(source, list(headers.values()), rate, options), *notes, *passed_over(files)),
    }
    points = sum(header.length for header in headers.values()) * channels
    needed = 4 * (len(source) * channels * source.length + points)
    return gather(
        source,
        source.all,
        [names[file] for file in windows.file.tolist()],
        common,
        lazy=keeps_on_disk(needed, options, f"reading {len(source)} window(s) of {source.length} points"),
        options=options,
        unread=unread,
        files=files,
    )


def read_signal(path: Path, name: str) -> Signal:
    """Read a file into (C, N).

    Raises:
        UnreadableFile: Empty, damaged, cut off, not numbers, or not finite.
    """
    suffix = path.suffix.lower()
    signal = _read_wav(path, name) if suffix in WAV_SUFFIXES else Signal(_read_numbers(path, name))
    if signal.values.shape[1] == 0:
        raise UnreadableFile(name, "it holds no points")
    bad = int((~np.isfinite(signal.values)).sum())
    if bad:
        raise UnreadableFile(name, f"{bad} of {signal.values.size} values are NaN or infinite")
    return signal


def resampled(signal: Signal, rate: float | None, name: str) -> Signal:
    """Return a signal at another rate, by a polyphase low-pass filter; as it is where `rate` is None or its own."""
    if rate is None or rate == signal.rate:
        return signal
    if not signal.rate:
        raise UnreadableFile(name, "it has no rate to resample from (data.rate is for .wav)")
    from scipy.signal import resample_poly

    up, down = round(rate), round(signal.rate)
    common = gcd(up, down)
    return Signal(resample_poly(signal.values, up // common, down // common, axis=1).astype(np.float32), rate)


def write_wav(path: Path, values: np.ndarray, rate: float) -> None:
    """Write (C, N) in [-1, 1] as 16-bit PCM; values beyond are clipped."""
    from scipy.io import wavfile

    levels = (np.asarray(values, dtype=np.float64) * 32767.0).round().clip(-32768, 32767).astype(np.int16)
    with open(path, "wb") as file:  # scipy would not tell a temporary name from another
        wavfile.write(file, round(rate), levels.T)


def _read_wav(path: Path, name: str) -> Signal:
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", wavfile.WavFileWarning)
            warnings.filterwarnings("ignore", "Chunk .non-data. not understood", wavfile.WavFileWarning)
            rate, values = wavfile.read(path)
    except OSError:
        raise
    except Exception as error:  # the parser raises ValueError, struct.error, UnboundLocalError, ...
        reason = " ".join(str(error).split())[:100] or f"the file is damaged ({type(error).__name__})"
        raise UnreadableFile(name, reason) from error
    scales = {"uint8": 128.0, "int16": 32768.0, "int32": 2.0**31, "int64": 2.0**63, "float32": 1.0, "float64": 1.0}
    if values.dtype.name not in scales:
        raise UnreadableFile(name, f"samples of type {values.dtype} are not read")
    offset, scale = 128.0 if values.dtype == np.uint8 else 0.0, scales[values.dtype.name]
    columns = np.atleast_2d(values.T).astype(np.float64)
    return Signal(((columns - offset) / scale).astype(np.float32), float(rate))


def _read_numbers(path: Path, name: str) -> np.ndarray:
    """Return a .csv (points in rows, channels in columns) or .npy ((N,), (C, N) or (N, C)) as (C, N)."""
    try:
        values = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else _read_table(path)
    except (ValueError, EOFError) as error:
        raise UnreadableFile(name, " ".join(str(error).split())[:100]) from error
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2):
        raise UnreadableFile(name, f"it holds {values.dtype} {values.shape}; expected numbers (N,) or (C, N)")
    values = values[None] if values.ndim == 1 else values
    turn = path.suffix.lower() != ".npy" or values.shape[0] > values.shape[1]
    return (values.T if turn else values).astype(np.float32)


def _read_table(path: Path) -> np.ndarray:
    """Return the numbers of a table (points, channels), a row of names left out."""
    with open(path, encoding="utf-8-sig") as file:
        head = file.readline()
    delimiter = max(",;\t", key=head.count)
    try:
        [float(cell) for cell in head.split(delimiter)]
        skip = 0
    except ValueError:
        skip = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an empty table is reported by the caller
        return np.loadtxt(path, delimiter=delimiter, skiprows=skip, ndmin=2, encoding="utf-8-sig")


def _look(path: Path, name: str, rate: float | None) -> SignalHeader:
    signal = resampled(read_signal(path, name), rate, name)
    values = signal.values.astype(np.float64)
    return SignalHeader(
        channels=len(values),
        length=values.shape[1],
        rate=signal.rate,
        beyond=int((np.abs(values) > 1.0).sum()),
        total=np.stack((values.sum(1), (values**2).sum(1))),
    )


def _one_rate(headers: dict[str, SignalHeader], options: DataOptions, spec: DataSpec | None, where: str) -> float:
    """Return the rate that all signals have.

    Raises:
        DataError: They differ among themselves, or from the model's.
    """
    rates = Counter(header.rate for header in headers.values())
    if len(rates) > 1:
        shown = ", ".join(f"{rate:g} ({count})" for rate, count in rates.most_common(4))
        raise DataError(f"the signals in {where} have {len(rates)} rates: {shown}; set data.rate to resample them.")
    (rate,) = rates
    if spec is not None and spec.rate and rate and rate != spec.rate:
        raise DataError(
            f"the signals in {where} have {rate:g} points per second but the model's {spec.rate:g}; set "
            f"data.rate={spec.rate:g} to resample them."
        )
    return rate


def _shortest(headers: dict[str, SignalHeader]) -> int:
    return min(header.length for header in headers.values())


def _moments(headers: Sequence[SignalHeader]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    count = sum(header.length for header in headers)
    first, second = np.sum([header.total for header in headers], axis=0) / count
    std = np.sqrt(np.maximum(second - first**2, 0.0))
    return tuple(first.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def _notes(source: SignalSource, headers: Sequence[SignalHeader], rate: float, options: DataOptions) -> Iterator[str]:
    lasting = f" ({source.length / rate:.3g} s at {rate:g} Hz)" if rate else ""
    yield f"windows of {source.length} points{lasting} from {len(headers)} file(s)"
    if source.windows.short:
        shown = ", ".join(source.names[file] for file in source.windows.short[:5])
        yield f"warning: {len(source.windows.short)} file(s) are shorter than one window and were left out: {shown}"
    beyond = sum(header.beyond for header in headers)
    if source.bounded and beyond:
        yield f"warning: {beyond} value(s) beyond -1 .. 1 were clipped"
    if options.rate is not None:
        yield f"resampled to {options.rate:g} points per second where the rate was another"
    if options.overlap:
        yield "warning: neighbouring windows share points, and so may windows to train on and windows held out"
