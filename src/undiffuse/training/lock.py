"""One run per folder: an advisory lock that the kernel drops when its process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from undiffuse.errors import TrainingError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`/.lock, which names our process; a killed run leaves the file but not the lock.

    Raises:
        TrainingError: A living process holds it, or the system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        raise TrainingError(
            "training locks its folder as Linux and macOS do; this system cannot, use one of these."
        ) from None
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise TrainingError(
                f"another run (process {owner}) is training into {folder}; wait for it, stop it, or choose "
                f"another out folder."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
