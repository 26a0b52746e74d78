"""Text as token ids: bytes, characters or tokens of a tokenizer, in windows of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.data.dataset import Problem
from undiffuse.data.memory import require_memory
from undiffuse.data.options import DataOptions
from undiffuse.data.token_arrays import has_ids, ids_of
from undiffuse.data.tokenizer import decode, encode, notes_on, own_padding, read_tokenizer, vocabulary_of
from undiffuse.errors import DataError
from undiffuse.spec import DataSpec

BYTES = tuple(f"<{byte:02x}>" for byte in range(256))  # the vocabulary whose ids are the bytes themselves
_MOST_CHARACTERS = 1024  # text with more distinct characters is read as bytes unless asked otherwise
_MEMORY_PER_BYTE = 16  # bytes, str, UTF-32 and int32 ids exist side by side while a file is read


@dataclass(frozen=True, kw_only=True, eq=False)
class TextDataset:
    """Windows of one text.

    Args:
        tokens: The text as ids (N,), uint8 or int32.
        spec: Kind "tokens", shape (L,), with the vocabulary.
        stride: Distance of neighbouring windows: 1 takes every offset, L cuts the text into pieces.
        first: Offset of `tokens` in the whole text; an item's stable index is the offset where it starts.
        problems: Always empty: text is read whole or not at all.
        notes: Further lines of the summary.
        default_holdout: Share of the text held out unless asked otherwise.
    """

    tokens: Tensor
    spec: DataSpec
    stride: int = 1
    first: int = 0
    problems: Sequence[Problem] = ()
    notes: tuple[str, ...] = ()
    default_holdout: float = 0.1

    @property
    def length(self) -> int:
        """Tokens in one window, L."""
        return self.spec.shape[0]

    def __len__(self) -> int:
        """Return the number of windows."""
        return max(0, (len(self.tokens) - self.length) // self.stride + 1)

    def batch(self, index: Tensor) -> dict[str, Any]:
        """Return windows "x", int64 (B, L), an empty "cond", and "index" (B,): where each starts in the text."""
        start = index.to(self.tokens.device) * self.stride
        offsets = torch.arange(self.length, device=self.tokens.device)
        return {"x": self.tokens[start[:, None] + offsets].long(), "cond": {}, "index": start + self.first}

    def to(self, device: torch.device | str) -> TextDataset:
        """Return the data set on `device`."""
        return replace(self, tokens=self.tokens.to(device))

    def cut(self, part: int) -> tuple[TextDataset, TextDataset]:
        """Return the text without its last `part` tokens, and these in windows that do not overlap.

        Raises:
            DataError: One of the two is shorter than a window (an empty held-out part is fine).
        """
        at = len(self.tokens) - part
        shorter = min(at, part) if part else at
        if shorter < self.length:
            raise DataError(
                f"cutting {len(self.tokens)} tokens into {at} to train on and {part} held out leaves a part shorter "
                f"than one item of {self.length}; use a longer text, a smaller data.length, or another data.holdout."
            )
        held_out = replace(self, tokens=self.tokens[at:], first=self.first + at, stride=self.length)
        return replace(self, tokens=self.tokens[:at]), held_out

    def summary(self) -> list[str]:
        """Return lines for people: length of the text, vocabulary, windows."""
        unit = "tokens" if self.spec.tokenizer else "bytes" if self.spec.vocabulary == BYTES else "characters"
        used = len(torch.unique(self.tokens))
        return [
            f"{len(self.tokens)} {unit}, {used} distinct of a vocabulary of {len(self.spec.vocabulary)}",
            f"{len(self)} windows of {self.length} {unit}, one every {self.stride}",
            *self.notes,
        ]


def open_text(path: Path, options: DataOptions, spec: DataSpec | None = None) -> TextDataset:
    """Read a text file; `spec` fixes vocabulary and length to a model's.

    Raises:
        DataError: Empty, shorter than one item, not UTF-8 though characters were asked for, outside of the
            model's vocabulary, or too long for the memory.
    """
    options.refuse_others("text", ("units", "length", "tokenizer"))
    require_memory(
        path.stat().st_size * _MEMORY_PER_BYTE, f"reading the text {path}", "split the file and use a part of it"
    )
    raw = path.read_bytes()
    if not raw:
        raise DataError(f"the text file {path} is empty; expected at least data.length={options.length} characters.")
    notes: tuple[str, ...] = ()
    if spec is None and options.tokenizer:
        tokenizer = read_tokenizer(options.tokenizer)
        spec = DataSpec(
            kind="tokens", shape=(options.length,), vocabulary=vocabulary_of(tokenizer), tokenizer=tokenizer
        )
        tokens = _read_for(raw, options.limit, spec, str(path))
        notes = notes_on(tokens, tokenizer)
    elif spec is None:
        tokens, vocabulary = _read(raw, options, str(path))
        spec = DataSpec(kind="tokens", shape=(options.length,), vocabulary=vocabulary)
    else:
        tokens = _read_for(raw, options.limit, spec, str(path))
    if len(tokens) < spec.shape[0]:
        raise DataError(
            f"the text {path} has {len(tokens)} tokens but one item takes {spec.shape[0]}; use a longer text"
            " or a smaller data.length."
        )
    return TextDataset(tokens=torch.from_numpy(tokens), spec=spec, notes=notes)


def encode_text(text: str, spec: DataSpec, where: str = "the text") -> Tensor:
    """Return the ids of a text, int64 (L,).

    Raises:
        DataError: A character is not in the vocabulary; says which, its line and column, and how many there are.
    """
    if spec.tokenizer:
        return torch.from_numpy(encode(text, spec.tokenizer, where)).long()
    if has_ids(spec):
        return ids_of(text, spec, where)
    if spec.vocabulary == BYTES:
        return torch.from_numpy(_byte_ids(text.encode())).long()
    return torch.from_numpy(_number(text, spec.vocabulary, where)).long()


def decode_text(tokens: Tensor, spec: DataSpec, unknown: str = "_") -> str:
    """Return the text of ids (L,), a table's row as "name=value, ..."; an id beyond the vocabulary reads `unknown`."""
    ids = tokens.tolist()
    if spec.columns:
        values = (spec.vocabulary[i] if i < len(spec.vocabulary) else unknown for i in ids)
        return ", ".join(f"{name}={value}" for name, value in zip(spec.columns, values, strict=True))
    if spec.tokenizer:
        return decode(ids, spec.tokenizer, unknown)
    if spec.vocabulary == BYTES:
        mask = unknown.encode()
        return b"".join(bytes([i]) if i < 256 else mask for i in ids).decode(errors="replace")
    return "".join(spec.vocabulary[i] if i < len(spec.vocabulary) else unknown for i in ids)


def refuse_padding(tokens: Tensor, spec: DataSpec) -> None:
    """Refuse ids (N, L) with rows that begin or end in the tokenizer's padding, which a mean per token would count.

    Raises:
        ValueError: A row does.
    """
    padding = own_padding(spec.tokenizer) if spec.tokenizer else None
    if padding is None:
        return
    filled = (tokens[:, [0, -1]] == padding).any(1)
    if bool(filled.any()):
        raise ValueError(
            f"{int(filled.sum())} of {len(tokens)} row(s) begin or end in {spec.vocabulary[padding]!r}, the padding of "
            f"the tokenizer, which is no text and would count in the mean; give texts of one length at a time."
        )


def _read(raw: bytes, options: DataOptions, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return ids and vocabulary, in the units asked for or that suit the text."""
    text = None if options.units == "bytes" else _decode(raw, where, required=options.units == "characters")
    if text is not None:
        text = text[: options.limit]
        codes = np.flatnonzero(np.bincount(_code_points(text)))
        if options.units == "characters" or (len(codes) <= _MOST_CHARACTERS and codes[0] != 0):
            vocabulary = tuple(map(chr, codes))
            return _number(text, vocabulary, where), vocabulary
    return _byte_ids(raw[: options.limit]), BYTES


def _read_for(raw: bytes, limit: int | None, spec: DataSpec, where: str) -> np.ndarray:
    """Return ids in the vocabulary of a model."""
    if spec.kind != "tokens":
        raise DataError(
            f"{where} is text but the model was trained on data of kind {spec.kind!r}; give data of that kind."
        )
    if spec.vocabulary == BYTES:
        return _byte_ids(raw[:limit])
    text = _decode(raw, where, required=True)
    assert text is not None
    if spec.tokenizer:
        return encode(text[:limit], spec.tokenizer, where)
    return _number(text[:limit], spec.vocabulary, where)


def _decode(raw: bytes, where: str, required: bool) -> str | None:
    """Decode UTF-8, with or without a byte order mark; None where it is something else."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not required:
            return None
        raise DataError(
            f"{where} is not UTF-8 text (byte 0x{raw[error.start]:02x} at offset {error.start}); convert it, or use "
            "data.units=bytes."
        ) from error


def _number(text: str, vocabulary: tuple[str, ...], where: str) -> np.ndarray:
    """Return the position of each character in `vocabulary`, uint8 or int32 (N,)."""
    if any(len(name) != 1 for name in vocabulary):
        raise DataError(f"the model's vocabulary is not made of characters, so {where} cannot be read as its tokens.")
    table = np.full(0x110000, -1, dtype=np.int32)  # one entry per code point of Unicode
    table[[ord(name) for name in vocabulary]] = np.arange(len(vocabulary), dtype=np.int32)
    ids = table[_code_points(text)]
    missing = np.flatnonzero(ids < 0)
    if len(missing):
        raise DataError(_describe_missing(text, missing, len(vocabulary), where))
    return ids.astype(np.uint8) if len(vocabulary) <= 256 else ids


def _describe_missing(text: str, missing: np.ndarray, known: int, where: str) -> str:
    first = int(missing[0])
    line = text.count("\n", 0, first) + 1
    column = first - text.rfind("\n", 0, first)
    return (
        f"{where} has {len(missing)} character(s) outside of the model's vocabulary of {known}, first {text[first]!r} "
        f"at line {line}, column {column}; remove them, or use a model trained on such text."
    )


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _byte_ids(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, dtype=np.uint8).copy()  # a copy, because torch wants writable memory
