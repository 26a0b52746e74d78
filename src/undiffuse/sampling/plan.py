"""Plans: everything about a sampling run that does not depend on the network, computed once in float64.

Entries are never changed once planned; they are not frozen dataclasses only because those take three times as long
to make, which a run of 50 cheap steps would notice. What every stage has is given by position for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.process.times import Time, align

Coefficient = float | Tensor


@dataclass(slots=True)
class Stage:
    """One evaluation of the denoiser, and what is done with it.

    Args:
        step: Which grid step it belongs to.
        t: Where the denoiser is asked.
        s: Where the state stands afterwards.
        closes: Whether the grid step ends here.
        frozen: Mask of elements with s = t, which keep their state bit for bit; None where all move.
    """

    step: int
    t: Time
    s: Time
    closes: bool = field(default=True, kw_only=True)
    frozen: Tensor | None = field(default=None, kw_only=True)


@dataclass(slots=True)
class AffineStage(Stage):
    """A stage of the shared affine rule

        x = start * x_start + state * x + sum_i means_i D_i + noise * z.

    Args:
        state: Factor of the current state.
        means: Factors of the posterior means, newest first: those met in this step, then those of earlier steps.
            `means[m]` is for m remembered earlier steps, so there is one more than the solver remembers at most.
        start: Factor of the state at the beginning of the step; None where that is the current state.
        noise: Standard deviation of fresh noise; None for none.
        path: Nodes of a Brownian path and their weights, whose sum is the noise instead of a draw of its own.
        remembered: (a, b) where a x + b D is kept for later steps instead of D; it then stands second in `means`.
    """

    state: Coefficient
    means: tuple[tuple[Coefficient, ...], ...]
    start: Coefficient | None = field(default=None, kw_only=True)
    noise: Coefficient | None = field(default=None, kw_only=True)
    path: tuple[tuple[int, ...], Tensor] | None = field(default=None, kw_only=True)
    remembered: tuple[Coefficient, Coefficient] | None = field(default=None, kw_only=True)


@dataclass(kw_only=True)
class Renoise:
    """Going up: x = scale * x + std * z takes the state from `t` to `s` >= t, and memory is cleared.

    Args:
        undoes: How many whole steps are taken back, so that the next one begins like any other (`resampling`).
    """

    step: int
    t: Time
    s: Time
    scale: Coefficient
    std: Coefficient
    undoes: int = 0

    def apply(self, x: Tensor, z: Tensor) -> Tensor:
        """Return the state at `s`."""
        return x * self.scale + z * self.std


@dataclass(frozen=True)
class Plan:
    """The entries of a run in order.

    Args:
        entries: Stages and renoise entries.
        grid: The grid they came from.
    """

    entries: tuple[Stage | Renoise, ...]
    grid: Tensor

    @property
    def stages(self) -> list[Stage]:
        """The entries that ask the denoiser."""
        return [entry for entry in self.entries if isinstance(entry, Stage)]

    @property
    def evaluations(self) -> int:
        """How often the denoiser is asked."""
        return len(self.stages)

    def to(self, x: Tensor) -> Plan:
        """Return the plan with tensor coefficients on the device and in the dtype of `x`, aligned to it."""
        if self.grid.ndim == 1:
            return self
        return replace(self, entries=tuple(_entry_to(entry, x) for entry in self.entries))


def split_steps(entries: Iterable[Stage | Renoise]) -> list[list[Stage | Renoise]]:
    """Return the entries of each step."""
    steps: list[list[Stage | Renoise]] = [[]]
    for entry in entries:
        steps[-1].append(entry)
        if isinstance(entry, Stage) and entry.closes:
            steps.append([])
    return steps[:-1]


def row_time(row: Tensor) -> Time:
    """Turn one row of a grid into a time that denoisers take: a float, (B,), (1, F) or (B, F)."""
    if row.ndim == 0 or row.numel() == 1:
        return float(row)
    return row[:, 0] if row.shape[1] == 1 else row


def _entry_to(entry: Stage | Renoise, x: Tensor) -> Any:
    changed: dict[str, Any] = {}
    for f in fields(entry):
        value = getattr(entry, f.name)
        changed[f.name] = (
            value.to(x.device) if f.name in ("t", "s") and isinstance(value, Tensor) else _value_to(value, x)
        )
    return replace(entry, **{name: value for name, value in changed.items() if value is not getattr(entry, name)})


def _value_to(value: Any, x: Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_value_to(v, x) for v in value)
    if not isinstance(value, Tensor):
        return value
    # Coefficients take the dtype of a floating state; masks, positions and rates of tokens keep their own.
    own = value.dtype == torch.bool or not x.is_floating_point()
    return align(value.to(x.device, value.dtype if own else x.dtype), x)
