"""Corrupted batches as a function of (seed, step): order, noise, levels and weights, made in blocks of steps.

A block always covers the same steps (block i: steps i K .. i K + K - 1) and is computed whole, so a run that
resumes in its middle sees the same bits. K only trades launches for memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.noise import KeyedNoise, permutations
from undiffuse.spec import DataSpec
from undiffuse.training.objectives import Corrupted, Objective

if TYPE_CHECKING:
    from undiffuse.data import Dataset

BLOCK_ELEMENTS = 1 << 20  # of noise per block: about 50 MB while it is drawn in float64
BLOCK_STEPS = 64


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process works on."""

    rank: int = 0
    size: int = 1


class BatchStream:
    """Batches of a training run, by step.

    Args:
        dataset: Items in model units, on any device; batches are moved.
        objective: Corrupts them.
        denoiser: Read for its process and prediction.
        seed: Seed of order and noise.
        batch_size: Items per step over all processes.
        device: Where batches live.
        share: Which rows are ours.
    """

    def __init__(
        self,
        dataset: Dataset,
        objective: Objective,
        denoiser: Denoiser,
        *,
        seed: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        share: Share = Share(),
    ) -> None:
        self.dataset, self.objective, self.denoiser = dataset, objective, denoiser
        self.seed, self.batch_size, self.device, self.share = seed, batch_size, torch.device(device), share
        self.rows = batch_size // share.size
        elements = self.rows * elements_of(dataset.spec)
        self.block_steps = 1 if objective.adapts else max(1, min(BLOCK_STEPS, BLOCK_ELEMENTS // elements))
        self._block: tuple[int, Corrupted] | None = None
        self._orders: tuple[range, Tensor] | None = None

    def step(self, step: int) -> Corrupted:
        """Return our rows of the batch of `step`, counted from 0."""
        number, offset = divmod(step, self.block_steps)
        if self._block is None or self._block[0] != number:
            self._block = (number, self._prepare(number))
        return self._block[1].rows(offset * self.rows, (offset + 1) * self.rows)

    def items(self, first_step: int, steps: int) -> Tensor:
        """Return the running numbers of the images that our rows of these steps see, int64 (steps * rows,)."""
        starts = torch.arange(first_step, first_step + steps)[:, None] * self.batch_size + self.share.rank * self.rows
        return (starts + torch.arange(self.rows)).reshape(-1)

    def _prepare(self, number: int) -> Corrupted:
        items = self.items(number * self.block_steps, self.block_steps)
        batch = _move(self.dataset.batch(self.indices(items)), self.device)
        noise = KeyedNoise(self.seed, items, self.device)
        with torch.no_grad():
            return self.objective.prepare(self.denoiser, batch, noise, self.rows)

    def indices(self, items: Tensor) -> Tensor:
        """Return the data index of each running number: epoch e visits the data in the order keyed by (seed, e)."""
        n = len(self.dataset)
        epochs, places = items // n, items % n
        known, orders = self._orders_of(range(int(epochs.min()), int(epochs.max()) + 1))
        return orders[epochs - known.start, places]

    def _orders_of(self, epochs: range) -> tuple[range, Tensor]:
        """Return epochs that include those asked for, and their orders (E, n); all at once, for they may be many."""
        if self._orders is None or epochs[0] not in self._orders[0] or epochs[-1] not in self._orders[0]:
            self._orders = (epochs, permutations(self.seed, epochs, len(self.dataset)))
        return self._orders


def block_elements(spec: DataSpec, rows: int) -> int:
    """Return the most noise values that a block holds, with `rows` items per step."""
    step = rows * elements_of(spec)
    return max(step, min(BLOCK_ELEMENTS, BLOCK_STEPS * step))


def elements_of(spec: DataSpec) -> int:
    """Return the number of values of one item, at least 1."""
    return max(1, int(torch.Size(spec.shape).numel()))


def _move(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    cond = {name: part.to(device, non_blocking=True) for name, part in (batch.get("cond") or {}).items()}
    return {"x": batch["x"].to(device, non_blocking=True), "cond": cond}
