"""Text in the tokens of a Hugging Face tokenizer. Its JSON travels in the spec, so that a model reads and writes text
wherever its folder goes."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.data.encoder_files import HUB
from undiffuse.errors import DataError

_FILE = "tokenizer.json"
_MASKS = ("[mask]", "<mask>", "<|mask|>", "<mask_token>")
_PADDINGS = ("[pad]", "<pad>", "<|pad|>", "<pad_token>")


def read_tokenizer(name: str) -> str:
    """Return the JSON of a tokenizer.

    Args:
        name: A tokenizer.json, a folder with one or with whatever transformers reads, or hf://owner/name.

    Raises:
        DataError: There is none, or tokenizers (for some, transformers) is not installed.
    """
    path = Path(name).expanduser()
    path = path / _FILE if path.is_dir() and (path / _FILE).is_file() else path
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
    elif path.is_dir() or name.startswith(HUB):
        text = _from_transformers(name.removeprefix(HUB))
    else:
        raise DataError(f"there is no tokenizer {name}; give a {_FILE}, a folder with one, or {HUB}owner/name.")
    load_tokenizer(text, name)
    return text


@lru_cache(maxsize=4)
def load_tokenizer(text: str, name: str = "the model's tokenizer") -> Any:
    """Return the tokenizer of a JSON text, which neither cuts nor fills up.

    Raises:
        DataError: It is none, or tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError(f"{name} needs the package tokenizers: pip install undiffuse[pretrained].") from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises bare exceptions
        raise DataError(f"{name} is no tokenizer of Hugging Face ({error}); give its {_FILE}.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@lru_cache(maxsize=4)
def vocabulary_of(text: str) -> tuple[str, ...]:
    """Return the token of each id; ids that the tokenizer leaves out get a name of their own."""
    tokenizer = load_tokenizer(text)
    names = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    return tuple(names.get(number, f"<unused {number}>") for number in range(max(names) + 1))


def own_mask(text: str) -> int | None:
    """Return the id of the mask that the tokenizer has itself; None where it has none."""
    return _named(text, _MASKS)


def own_padding(text: str) -> int | None:
    """Return the id with which the tokenizer fills up short texts; None where it has none."""
    return _named(text, _PADDINGS)


def encode(text: str, tokenizer: str, where: str) -> np.ndarray:
    """Return the ids of a text, int32 (N,), without tokens that stand for its beginning or end.

    Raises:
        DataError: The text has the tokenizer's own mask in it, which no data may have.
    """
    loaded = load_tokenizer(tokenizer)
    ids = np.array(loaded.encode(text, add_special_tokens=False).ids, dtype=np.int32)
    mask = own_mask(tokenizer)
    if mask is not None and (ids == mask).any():
        raise DataError(
            f"{where} has {loaded.id_to_token(mask)!r} in it {int((ids == mask).sum())} time(s), the tokenizer's own "
            "mask, which is not data; take it out of the text."
        )
    return ids


def decode(ids: list[int], tokenizer: str, unknown: str) -> str:
    """Return the text of ids; those beyond the vocabulary, such as masks of a process, read `unknown`."""
    loaded = load_tokenizer(tokenizer)
    count = len(vocabulary_of(tokenizer))
    text, run = [], []
    for number in [*ids, count]:
        if number < count:
            run.append(number)
            continue
        text.append(loaded.decode(run, skip_special_tokens=False) if run else "")
        run = []
    return unknown.join(text)


def notes_on(ids: np.ndarray, tokenizer: str) -> tuple[str, ...]:
    """Return what people should know of a text read by a tokenizer: unknown words, and a mask of its own."""
    found, names = [], vocabulary_of(tokenizer)
    unknown = (json.loads(tokenizer).get("model") or {}).get("unk_token")
    lost = int((ids == names.index(unknown)).sum()) if unknown in names else 0
    if lost:
        found.append(f"warning: {lost} of {len(ids)} tokens are {unknown}, words that the tokenizer does not know")
    mask = own_mask(tokenizer)
    if mask is not None:
        found.append(
            f"the tokenizer has a mask of its own, {names[mask]} (id {mask}), which the text never uses; the mask of "
            f"the process is id {len(names)}"
        )
    return tuple(found)


def _named(text: str, names: tuple[str, ...]) -> int | None:
    known = load_tokenizer(text).get_vocab(with_added_tokens=True)
    return next((number for token, number in known.items() if token.lower() in names), None)


def _from_transformers(name: str) -> str:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise DataError(f"the tokenizer {name} needs transformers: pip install undiffuse[pretrained].") from error
    try:
        loaded = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        return str(loaded.backend_tokenizer.to_str())
    except Exception as error:  # of many kinds, from several packages
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(f"the tokenizer {name} cannot be loaded: {first}") from error
