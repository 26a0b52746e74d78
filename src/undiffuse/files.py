"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place at once.

    A reader, or a kill at any moment, meets the old file or the new one, never a part. The temporary file is removed
    where writing fails.

    Args:
        path: The file to write; its folder exists.
        write: Called with the temporary file's path, on which it may open, save, or write text.

    Raises:
        OSError: No space, no permission, or whatever `write` raises.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
