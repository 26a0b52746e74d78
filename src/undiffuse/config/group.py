"""Options under construction: a tree of plain values that becomes option objects once every layer is laid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any

from undiffuse.config.schema import Slot, slots
from undiffuse.errors import ConfigError


@dataclass
class Group:
    """The values of one option class so far: slot name -> leaf value, `Group`, None, or `MISSING`."""

    options: type
    values: dict[str, Any]

    @classmethod
    def start(cls, options: type) -> Group:
        """Return the class's own defaults."""
        return cls(options, {name: _default(slot) for name, slot in slots(options).items()})

    @classmethod
    def of(cls, instance: Any) -> Group:
        """Return the values of an option object."""
        options: type = type(instance)
        return cls(options, {name: _open(slot, getattr(instance, name)) for name, slot in slots(options).items()})

    def build(self, key: str = "") -> Any:
        """Make the option object; `key` is the dotted name of this group ("" at the root).

        Raises:
            ConfigError: A required value is missing, or the class refuses its values.
        """
        values = {name: _close(value, join(key, name)) for name, value in self.values.items()}
        try:
            return self.options(**values)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{key}: {error}" if key else str(error)) from error


@dataclass(frozen=True)
class Entry:
    """One line of a walk: a dotted key, its slot, its value (`Group`, leaf, None or `MISSING`), and the
    choice it depends on, such as "model=unet" ("" where it is always there)."""

    key: str
    slot: Slot
    value: Any
    when: str


def walk(group: Group, key: str = "", when: str = "") -> Iterator[Entry]:
    """Yield every key below `group`, those of alternatives not chosen included (with their own defaults)."""
    for name, slot in slots(group.options).items():
        value, path = group.values[name], join(key, name)
        yield Entry(path, slot, value, when)
        for options in slot.classes:
            chosen = isinstance(value, Group) and value.options is options
            kinds = [kind for kind, owner in slot.tags.items() if owner is options]
            below = walk(value if chosen else Group.start(options), path, f"{path}={kinds[0]}" if kinds else when)
            yield from (entry for entry in below if not (slot.tags and entry.key == f"{path}.kind"))


def join(key: str, name: str) -> str:
    """Append `name` to a dotted key."""
    return f"{key}.{name}" if key else name


def _default(slot: Slot) -> Any:
    value = slot.default()
    if value is not MISSING:
        return _open(slot, value)
    if len(slot.classes) == 1 and not slot.optional:
        return Group.start(slot.classes[0])
    return MISSING


def _open(slot: Slot, value: Any) -> Any:
    return Group.of(value) if slot.is_group and dataclasses.is_dataclass(value) else value


def _close(value: Any, key: str) -> Any:
    if value is MISSING:
        raise ConfigError(f"{key} is required; give it as {key}=VALUE.")
    return value.build(key) if isinstance(value, Group) else value
