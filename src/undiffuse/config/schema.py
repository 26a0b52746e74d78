"""What an option class declares: its fields as `Slot`s, each a leaf value or a group of further options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Slot:
    """One field of an option class.

    Args:
        name: Name of the field.
        hint: Its type, with string annotations evaluated.
        help: Text of `metadata["help"]`.
        default: Makes the default value; `MISSING` where the field is required.
        classes: For a group: the option classes that it may hold; empty for a leaf.
        tags: For a tagged group: kind -> option class; empty otherwise.
        optional: Whether None is allowed.
    """

    name: str
    hint: Any
    help: str
    default: Callable[[], Any]
    classes: tuple[type, ...]
    tags: dict[str, type]
    optional: bool

    @property
    def is_group(self) -> bool:
        """Whether the field holds options of its own."""
        return bool(self.classes)


@cache
def slots(options: type) -> dict[str, Slot]:
    """Return the fields of the option class `options` by name, in order.

    Raises:
        TypeError: The class is not a dataclass, or a union in it cannot be told apart by `kind`.
    """
    if not is_options(options):
        raise TypeError(f"{options!r} is not an option class; expected a dataclass.")
    hints = get_type_hints(options)
    return {field.name: _slot(options, field, hints[field.name]) for field in dataclasses.fields(options) if field.init}


def is_options(hint: Any) -> bool:
    """Whether a type is an option class."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself as the only one."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _slot(owner: type, field: dataclasses.Field[Any], hint: Any) -> Slot:
    parts = members(hint)
    classes = tuple(part for part in parts if is_options(part))
    where = f"{owner.__name__}.{field.name}"
    if classes and any(part is not NoneType and part not in classes for part in parts):
        raise TypeError(f"{where} mixes option classes with plain types; use a union of option classes alone.")
    return Slot(
        name=field.name,
        hint=hint,
        help=field.metadata.get("help", ""),
        default=field.default_factory if field.default_factory is not MISSING else lambda: field.default,
        classes=classes,
        tags=_tags(where, classes),
        optional=NoneType in parts,
    )


def _tags(where: str, classes: tuple[type, ...]) -> dict[str, type]:
    kinds = [(kind, options) for options in classes for kind in _kinds(options)]
    if len(classes) < 2:
        # A single class with several kinds uses `kind` as an ordinary option that resets nothing.
        return dict(kinds) if len(kinds) == 1 else {}
    if any(not _kinds(options) for options in classes) or len(dict(kinds)) < len(kinds):
        raise TypeError(f"{where} is a union, so each of its classes needs a `kind: Literal[...]` of its own.")
    return dict(kinds)


def _kinds(options: type) -> tuple[str, ...]:
    hint = get_type_hints(options).get("kind")
    return get_args(hint) if get_origin(hint) is Literal else ()
