"""How much memory is free, and refusing data that would not fit, before it is read."""

from __future__ import annotations

import os
from pathlib import Path

from undiffuse.errors import DataError
from undiffuse.words import human_bytes

_USABLE = 0.8  # the rest is for the model, the optimiser and the system
_MEMINFO = Path("/proc/meminfo")
_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_GROUP_USED = Path("/sys/fs/cgroup/memory.current")


def free_bytes() -> int | None:
    """Return the bytes of memory a process may still take, or None where the system does not say."""
    known = [size for size in (_available(), _left_in_group()) if size is not None]
    return min(known, default=None)


def fits_memory(needed: int) -> bool:
    """Whether `needed` bytes of data fit into what is free (or the system does not say what is)."""
    free = free_bytes()
    return free is None or needed <= _USABLE * free


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Raise `DataError` with figures and `remedy` if `needed` bytes for `what` exceed what is free."""
    free = free_bytes()
    if free is not None and not fits_memory(needed):
        raise DataError(
            f"{what} needs about {human_bytes(needed)} of memory, but of {human_bytes(free)} free only {_USABLE:.0%} "
            f"may be used for data; {remedy}."
        )


def _available() -> int | None:
    """Linux says what could be freed (MemAvailable); elsewhere free pages, or half of the whole memory."""
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    names = getattr(os, "sysconf_names", {})
    for name, share in (("SC_AVPHYS_PAGES", 1.0), ("SC_PHYS_PAGES", 0.5)):
        if name in names:
            return int(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") * share)
    return None


def _left_in_group() -> int | None:
    """Return what the limit of the container leaves, if there is a limit."""
    try:
        return max(0, int(_GROUP_LIMIT.read_text()) - int(_GROUP_USED.read_text()))
    except (OSError, ValueError):  # no control groups, or the limit reads "max"
        return None
