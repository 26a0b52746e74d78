"""`resolve`: lay mappings and `key=value` arguments over the defaults of an option tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, is_dataclass
from difflib import SequenceMatcher
from typing import Any, TypeVar, cast

from undiffuse.config.group import Entry, Group, walk
from undiffuse.config.schema import Slot, slots
from undiffuse.config.values import parse_flow, read_text, read_value
from undiffuse.errors import ConfigError

Recipe = TypeVar("Recipe")
Layer = Mapping[str, Any] | list[str] | tuple[str, ...]


def resolve(recipe: type[Recipe], *layers: Layer) -> Recipe:
    """Build `recipe` from its defaults and `layers`; later layers win, and within a layer later entries.

    A layer is a mapping (nested, keys may be dotted, a group may be an option object) or a list of
    "group.key=value" texts. Naming a kind starts its group afresh from that kind's own defaults; within one
    mapping `kind` goes first, wherever it stands.

    Args:
        recipe: An option class: a dataclass of values and further option classes.
        layers: What to lay over the defaults.

    Raises:
        ConfigError: A key is unknown (the nearest one is named), a value has the wrong type or is refused by
            its class, or a required value is missing.
    """
    tree = _Tree(recipe)
    for layer in layers:
        if isinstance(layer, Mapping):
            tree.lay(layer)
        elif isinstance(layer, list | tuple):
            tree.lay_arguments(layer)
        else:
            raise TypeError(f"A layer is a mapping or a list of 'key=value' texts, not {layer!r}.")
    return cast(Recipe, tree.root.build())


class _Tree:
    """The values so far, with the root that error messages need."""

    def __init__(self, recipe: type) -> None:
        self.recipe = recipe
        self.root = Group.start(recipe)

    def lay(self, mapping: Mapping[str, Any], prefix: str = "") -> None:
        """Put every entry of a mapping, whose keys start at `prefix`."""
        for key, value in mapping.items():
            if not isinstance(key, str):
                raise ConfigError(f"{prefix}{key!r} is not a key; keys are text.")
            self.put(prefix + key, value)

    def lay_arguments(self, arguments: Iterable[str]) -> None:
        """Put every "group.key=value"."""
        for argument in arguments:
            key, equals, text = argument.partition("=")
            if not equals:
                raise ConfigError(f"{argument!r} sets nothing; write key=value, for example train.steps=1000.")
            self.put(key.strip(), text, is_text=True)

    def put(self, key: str, value: Any, is_text: bool = False) -> None:
        """Set one dotted key."""
        parent, _, name = key.rpartition(".")
        if parent and name == "kind" and self._find(parent)[1].tags:
            key = parent
        group, slot = self._find(key)
        if slot.is_group:
            self._put_group(group, slot, key, _read_group(slot, key, value) if is_text else value)
        else:
            group.values[slot.name] = (read_text if is_text else read_value)(key, slot.hint, value)

    def _put_group(self, group: Group, slot: Slot, key: str, value: Any) -> None:
        if value is None and slot.optional:
            group.values[slot.name] = None
        elif isinstance(value, str) and slot.tags:
            group.values[slot.name] = _choose(slot, key, value)
        elif isinstance(value, Mapping):
            self._put_mapping(group, slot, key, dict(value))
        elif is_dataclass(value) and type(value) in slot.classes:
            group.values[slot.name] = Group.of(value)
        else:
            raise ConfigError(f"{key}={value!r} is not possible: {key} is a group; {_how_to_set(slot, key)}.")

    def _put_mapping(self, group: Group, slot: Slot, key: str, mapping: dict[Any, Any]) -> None:
        if slot.tags and "kind" in mapping:
            group.values[slot.name] = _choose(slot, key, mapping.pop("kind"))
        _enter(group, slot, key)
        self.lay(mapping, f"{key}.")

    def _find(self, key: str) -> tuple[Group, Slot]:
        """Return the group that holds `key` and its slot there; groups on the way that are None are started."""
        *above, last = key.split(".")
        group = self.root
        for depth, name in enumerate(above, start=1):
            slot = slots(group.options).get(name)
            if slot is None or not slot.is_group:
                raise self._unknown(key)
            group = _enter(group, slot, ".".join(above[:depth]))
        if last not in slots(group.options):
            raise self._unknown(key)
        return group, slots(group.options)[last]

    def _unknown(self, key: str) -> ConfigError:
        known = list(walk(Group.start(self.recipe)))
        owners = [entry.when for entry in known if entry.key == key]
        if owners:
            return ConfigError(f"{key} belongs to {' and '.join(owners)}; choose that first.")
        nearest = max(known, key=lambda entry: _likeness(key, entry)).key
        return ConfigError(f"Unknown key {key!r}; the nearest known key is {nearest!r}.")


def _enter(group: Group, slot: Slot, key: str) -> Group:
    """Return the group in a slot; start the only class that fits where there is none yet."""
    value = group.values[slot.name]
    if isinstance(value, Group):
        return value
    if len(slot.classes) > 1:
        raise ConfigError(f"{key} is {'required' if value is MISSING else 'none'}; {_how_to_set(slot, key)}.")
    started = group.values[slot.name] = Group.start(slot.classes[0])
    return started


def _choose(slot: Slot, key: str, kind: Any) -> Group:
    """Return the own defaults of the class that `kind` names."""
    if not isinstance(kind, str) or kind not in slot.tags:
        raise ConfigError(f"{key}={kind!r} is unknown; choose one of {', '.join(slot.tags)}.")
    chosen = Group.start(slot.tags[kind])
    chosen.values["kind"] = kind
    return chosen


def _read_group(slot: Slot, key: str, text: str) -> Any:
    """Read the text given to a group: a kind, none, or a `{...}` mapping."""
    text = text.strip()
    if text not in slot.tags and text.lower() in ("none", "null"):
        return None
    try:
        return parse_flow(text) if text.startswith("{") else text
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


def _how_to_set(slot: Slot, key: str) -> str:
    if slot.tags:
        return f"choose one of {', '.join(slot.tags)} ({key}={next(iter(slot.tags))})"
    return f"set its options, for example {key}.{next(iter(slots(slot.classes[0])))}=..."


def _likeness(given: str, entry: Entry) -> float:
    """Score two dotted keys: as a whole, and by their last part so that `steps` finds `train.steps`."""
    known = entry.key
    pairs = ((given, known), (given.rpartition(".")[2], known.rpartition(".")[2]))
    is_below_leaf = given.startswith(f"{known}.") and not entry.slot.is_group
    return is_below_leaf + sum(SequenceMatcher(None, *pair).ratio() for pair in pairs)
