"""The keys of a recipe as rows for `--help` and the documentation."""

from __future__ import annotations

import json
from dataclasses import MISSING
from typing import Any, NamedTuple

from undiffuse.config.group import Entry, Group, walk
from undiffuse.config.plain import to_plain
from undiffuse.config.values import type_text


class Row(NamedTuple):
    """One key: its dotted name, its type, its default as one would type it, and what it does."""

    key: str
    type: str
    default: str
    help: str


def describe(recipe: type) -> list[Row]:
    """List every key of an option class, those of all kinds of a tagged group included.

    A group of one fixed class has no row of its own, only its options have. The help of an option that exists for
    one kind only starts with that kind in brackets: "[model=unet] Base width.".
    """
    return [_row(entry) for entry in walk(Group.start(recipe)) if _has_row(entry)]


def _has_row(entry: Entry) -> bool:
    return not entry.slot.is_group or bool(entry.slot.tags) or entry.slot.optional


def _row(entry: Entry) -> Row:
    slot = entry.slot
    kinds = [*slot.tags] or ["{...}"]
    types = " | ".join([*kinds, *(["none"] if slot.optional else [])]) if slot.is_group else type_text(slot.hint)
    help = f"[{entry.when}] {slot.help}".rstrip() if entry.when else slot.help
    return Row(entry.key, types, _default_text(entry.value), help)


def _default_text(value: Any) -> str:
    if value is MISSING:
        return "(required)"
    if isinstance(value, Group):
        return value.values.get("kind", "{...}")
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    return json.dumps(to_plain(value))
