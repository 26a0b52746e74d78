"""How much memory a piece of work needs at most: of a GPU as its allocator counts, else of the process."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

import torch

_EVERY = 0.005  # seconds between looks at the process
_STATM = Path("/proc/self/statm")
_MIB = 2**20


class PeakMemory:
    """A context manager; `mib` then holds the most memory used inside beyond what there was, or None.

    Of the process it is the resident memory, looked at every few milliseconds: what is reused does not show, and only
    Linux tells. Figures below some 10 MiB mean nothing.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.mib: float | None = None
        self._stop = threading.Event()
        self._before = self._most = 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif _STATM.exists():
            self._before = self._most = _resident()
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self._most = torch.cuda.max_memory_allocated(self.device)
        elif self._before:
            self._stop.set()
            self._watcher.join()
            self._most = max(self._most, _resident())
        else:
            return
        self.mib = (self._most - self._before) / _MIB

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY):
            self._most = max(self._most, _resident())


def _resident() -> int:
    return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
