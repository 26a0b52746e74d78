"""Option trees as plain data and as YAML files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undiffuse.errors import ConfigError


def to_dict(options: Any) -> dict[str, Any]:
    """Return an option object as nested dicts, lists and scalars; `resolve` gives the object back.

    Raises:
        TypeError: `options` is not an option object.
    """
    if not dataclasses.is_dataclass(options) or isinstance(options, type):
        raise TypeError(f"{options!r} is not an option object; expected an instance of a dataclass.")
    return to_plain(options)


def dump_yaml(options: Any) -> str:
    """Return an option object (or plain data) as YAML text, keys in the order of the fields."""
    import yaml

    return yaml.safe_dump(to_plain(options), sort_keys=False, allow_unicode=True)


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a YAML file as a layer for `resolve`. Data only: no tags that build objects.

    Raises:
        OSError: The file cannot be read.
        ConfigError: It is not UTF-8 text, not YAML, or not a mapping.
    """
    import yaml

    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{os.fspath(path)} is not a YAML file: {reason}.") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{os.fspath(path)} holds {type(loaded).__name__}; expected `key: value` lines.")
    return loaded


def to_plain(value: Any) -> Any:
    """Return a value with option objects as dicts, sequences as lists and paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(to_plain(item) for item in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value
