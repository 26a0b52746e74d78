"""Whether this process is one of several, as its launcher says. Torch-free: the command asks before it loads torch."""

from __future__ import annotations

import os
import sys


def world() -> tuple[int, int]:
    """Return (rank, size) of this process as `torchrun` or `accelerate launch` set them; (0, 1) where it is alone."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    return (int(os.environ.get("RANK", 0)), size) if size > 1 else (0, 1)


def local_rank() -> int:
    """Return the number of this process among those on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0)) if world()[1] > 1 else 0


def speaks() -> bool:
    """Whether this process talks to people: the main one does."""
    return world()[0] == 0


def have_met() -> bool:
    """Whether the processes are in touch. Until then each does what all do, and fails as all fail."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized()
