"""Which versions made a run."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch


def versions() -> dict[str, str]:
    """Return the versions of undiffuse, torch and Python."""
    try:
        own = version("undiffuse")
    except PackageNotFoundError:
        own = "source tree"
    return {"undiffuse": own, "torch": torch.__version__, "python": platform.python_version()}
