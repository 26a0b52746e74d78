"""Figures of the steps since the last log line, kept on the device and read once per line.

A step only appends references, so logging costs it nothing and never waits for the device. The window is part of
a checkpoint: a resumed run writes the same lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EDGES = torch.arange(-6.0, 6.01, 0.5, dtype=torch.float64)
"""Bins of half log-SNR: below -6, 24 bins of width 0.5, above 6."""


@dataclass(frozen=True)
class WindowFigures:
    """Means over the finite steps of a window (NaN where there is none), and which steps were bad."""

    loss: float
    grad_norm: float
    bad: list[bool]


class Window:
    """Losses, gradient norms and per-sample losses by noise level, since the last log line.

    Args:
        total: Adds up a tensor over processes, which must then close, take and save together; None: there is one.
    """

    def __init__(self, total: Callable[[Tensor], Tensor] | None = None) -> None:
        self._total = total
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self._samples: list[tuple[Tensor, Tensor]] = []
        self.sums = torch.zeros(2, len(EDGES) + 1, dtype=torch.float64)

    def add(self, loss: Tensor, grad_norm: Tensor, bad: Tensor, per_sample: Tensor, half_logsnr: Tensor | None) -> None:
        """Note one step; nothing is computed."""
        self._steps.append((loss, grad_norm, bad))
        if half_logsnr is not None:
            self._samples.append((per_sample, half_logsnr))

    def wait(self) -> None:
        """Wait until the device has done the last step."""
        if self._steps:
            self._steps[-1][0].cpu()

    def close(self) -> WindowFigures:
        """Return the figures of the window and start the next one."""
        loss, norm, bad = self._stack().cpu().double().unbind(1)
        self._bin_samples()
        self._steps = []
        good = bad == 0
        return WindowFigures(float(loss[good].mean()), float(norm[good].mean()), [bool(flag) for flag in bad])

    def take_levels(self) -> dict[str, Any] | None:
        """Return mean loss and count by bin of half log-SNR since the last call, or None without noise levels."""
        self._bin_samples()
        total, count = self.sums
        self.sums = torch.zeros_like(self.sums)
        if not count.sum():
            return None
        return {"edges": EDGES.tolist(), "loss": (total / count).tolist(), "count": count.tolist()}

    def state(self) -> dict[str, Tensor]:
        """Return the window as tensors."""
        self._bin_samples()
        return {"steps": self._stack().cpu(), "sums": self.sums}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a window."""
        self._steps = [(row[0], row[1], row[2]) for row in state["steps"]]
        self._samples = []
        self.sums = state["sums"].cpu().clone()

    def _stack(self) -> Tensor:
        if not self._steps:
            return torch.zeros(0, 3)
        return torch.stack([torch.stack([part.float() for part in row]) for row in self._steps])

    def _bin_samples(self) -> None:
        if not self._samples:
            return
        loss = torch.cat([per_sample for per_sample, _ in self._samples]).cpu().double()
        level = torch.cat([levels for _, levels in self._samples]).cpu().double()
        self._samples = []
        finite = torch.isfinite(loss)
        bins = torch.bucketize(level[finite], EDGES)
        sums = self.sums if self._total is None else torch.zeros_like(self.sums)
        sums[0].index_add_(0, bins, loss[finite])
        sums[1].index_add_(0, bins, torch.ones_like(loss[finite]))
        if self._total is not None:
            self.sums = self.sums + self._total(sums)
