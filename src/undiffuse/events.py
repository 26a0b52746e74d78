"""What long work reports while it runs. The library emits events; only the command draws bars.

A listener is any callable that takes an event. `silent` is the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Base of all events; `task` names the work, e.g. "train" or "sample"."""

    task: str


@dataclass(frozen=True)
class Started(Event):
    """Work of `total` units begins."""

    total: int
    unit: str = "step"
    done: int = 0


@dataclass(frozen=True)
class Advanced(Event):
    """`done` units are finished; `info` holds figures worth showing."""

    done: int
    info: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Message(Event):
    """A line for people. `level` is "info" or "warning"."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Finished(Event):
    """The work is done; `path` says where the result lies, if anywhere."""

    path: str | None = None


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Ignore `event`."""
