"""Leaf values: from text or plain data to the type that a field declares.

pydantic validates strictly (a bool is no int, 5 is no string). Around it stands one list of *readings*: the ways
in which a person may spell a value, tried in order until one has the declared type. The type decides, so "12e5"
is a number for a float and stays text for a string.
"""

from __future__ import annotations

import json
import numbers
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from undiffuse.config.schema import members
from undiffuse.errors import ConfigError

_NONE = ("none", "null")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def read_value(key: str, hint: Any, value: Any) -> Any:
    """Convert plain data (from YAML or Python) to `hint`.

    Numbers may be written as text (YAML reads 1e-4 as text) and whole floats stand for ints (2e4 steps).

    Raises:
        ConfigError: The value has another type; the message names `key`, the value and the type expected.
    """
    return _first(key, hint, value, _data_readings(value))


def read_text(key: str, hint: Any, text: str) -> Any:
    """Convert the text of a `key=value` argument to `hint`: none, 20_000, 1e-4, true, words, `32,64` or `[32, 64]`.

    Raises:
        ConfigError: No reading of the text has the declared type.
    """
    return _first(key, hint, text, _text_readings(text))


def type_text(hint: Any) -> str:
    """Describe a type as people write it: "int | none", "'data' | 'noise'", "tuple[int, ...]"."""
    if hint is NoneType or hint is None:
        return "none"
    if hint is Ellipsis:
        return "..."
    if hint is bool:
        return "true | false"
    if get_origin(hint) is Literal:
        return " | ".join(repr(choice) for choice in get_args(hint))
    if len(members(hint)) > 1:
        return " | ".join(type_text(part) for part in members(hint))
    name = getattr(hint, "__name__", str(hint))
    inner = ", ".join(type_text(part) for part in get_args(hint))
    return f"{name}[{inner}]" if inner else name


def parse_flow(text: str) -> Any:
    """Parse a `[...]` or `{...}` argument as YAML.

    Raises:
        ValueError: The text is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is not valid YAML.") from error


def _first(key: str, hint: Any, given: Any, readings: Iterator[Any]) -> Any:
    with suppress(RecursionError):  # data that contain themselves fit no type
        for reading in readings:
            with suppress(ValueError, TypeError):  # pydantic's ValidationError is a ValueError
                return _adapter(hint).validate_json(json.dumps(reading, default=_plain), strict=True)
    quotes = " (put it in quotes)" if str in members(hint) and not isinstance(given, str) else ""
    raise ConfigError(f"{key}={given!r} does not fit; expected {type_text(hint)}{quotes}.")


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def _plain(value: Any) -> Any:
    """Stand in for what JSON lacks: paths, and numbers of numpy."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(f"{value!r} is not plain data.")


def _data_readings(value: Any) -> Iterator[Any]:
    yield value
    as_numbers = _each(value, _number)
    yield as_numbers
    yield _each(as_numbers, _whole)


def _text_readings(text: str) -> Iterator[Any]:
    word = text.strip().lower()
    if word in _NONE:
        yield None
    yield _number(text)
    yield _whole(_number(text))
    if word in _BOOLS:
        yield _BOOLS[word]
    yield text
    for parts in _sequences(text.strip()):
        as_numbers = _each(parts, _number)
        yield from (as_numbers, _each(as_numbers, _whole), parts)


def _sequences(text: str) -> Iterator[Any]:
    """Yield what a bracketed or comma-separated text may hold."""
    if text[:1] in ("[", "{"):
        try:
            yield parse_flow(text)
        except ValueError:
            return
    else:
        inner = text.removeprefix("(").removesuffix(")")
        yield [part.strip() for part in inner.split(",") if part.strip()]


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply `change` to every scalar in nested lists and mappings."""
    if isinstance(value, Mapping):
        return {name: _each(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each(item, change) for item in value]
    return change(value)


def _number(value: Any) -> Any:
    """Read text as an int, else as a float; anything else passes."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value


def _whole(value: Any) -> Any:
    """Turn a float without fraction into an int; anything else passes."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
