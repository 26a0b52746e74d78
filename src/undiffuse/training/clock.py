"""The time a run takes, over all sittings."""

from __future__ import annotations

import time

_REPORT_SECONDS = 0.25


class Clock:
    """Seconds of training, over all sittings, and when to report next.

    Args:
        seconds_before: Seconds of earlier sittings.
        first_step: Steps done before this one.
    """

    def __init__(self, seconds_before: float, first_step: int) -> None:
        self.first_step = first_step
        self._before = seconds_before
        self._start = self._reported = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds of all sittings."""
        return self._before + time.perf_counter() - self._start

    def rate(self, step: int) -> float:
        """Return the steps per second of this sitting, with `step` done."""
        return (step - self.first_step) / max(1e-9, time.perf_counter() - self._start)

    def due(self) -> bool:
        """Return whether to report now, at most four times a second."""
        now = time.perf_counter()
        if now - self._reported < _REPORT_SECONDS:
            return False
        self._reported = now
        return True
