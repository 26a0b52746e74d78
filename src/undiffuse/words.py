"""Words for people and machines that several packages print: sizes, durations, near misses, plain JSON."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import field
from typing import Any


def human_bytes(size: float) -> str:
    """Return a number of bytes as people write it, such as "39.9 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def human_duration(seconds: float) -> str:
    """Return a time span as people say it, such as "45 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" with the known name nearest to `name`, or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def plain_json(value: Any) -> Any:
    """Return `value` as JSON has it: tuples as lists, NaN and infinity as None, what is unknown as text."""
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if not isinstance(value, (bool, int, float, str, type(None))) and hasattr(value, "item"):
        value = value.item()  # a numpy scalar
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (bool, int, str, type(None))) else str(value)


def option(default: Any, help: str) -> Any:
    """A dataclass field of an option, with the text that `--keys` shows."""
    return field(default=default, metadata={"help": help})
