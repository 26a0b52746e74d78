"""Corrupted batches as a function of (seed, step): order, noise, levels and weights, made in blocks of steps.

A block always covers the same steps (block i: steps i K .. i K + K - 1) and is computed whole, so a run that
resumes in its middle sees the same bits. K only trades launches for memory. Data sets that read from disk are told
the positions of the next blocks while one is trained on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise
from undiffuse.spec import DataSpec
from undiffuse.training.degrade import Transforms
from undiffuse.training.objectives import Corrupted, Objective, Trained
from undiffuse.training.order import make_order
from undiffuse.training.share import WHOLE, Share, ShareNoise

if TYPE_CHECKING:
    from undiffuse.data import Dataset

BLOCK_ELEMENTS = 1 << 20  # of noise per block: about 50 MB while it is drawn in float64
BLOCK_STEPS = 64
_READ_AHEAD = 4  # steps, at least, that a data set on disk may read while one is trained on


class BatchStream:
    """Batches of a training run, by step.

    Args:
        dataset: Items in model units, on any device; batches are moved. Its order is that of `make_order`.
        objective: Corrupts them.
        denoiser: Read for its process and prediction.
        seed: Seed of order and noise.
        batch_size: Items per step over all processes.
        device: Where batches live.
        share: Which rows are ours.
        transforms: What is done to the items of each batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        objective: Objective,
        denoiser: Trained,
        *,
        seed: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        share: Share = WHOLE,
        transforms: Transforms | None = None,
    ) -> None:
        self.dataset, self.objective, self.denoiser = dataset, objective, denoiser
        self.seed, self.batch_size, self.device, self.share = seed, batch_size, torch.device(device), share
        self.transforms = transforms or Transforms()
        self.maps = tuple(name for name, part in dataset.spec.cond.items() if part.kind == "map")
        self.rows = batch_size // share.size
        elements = self.rows * elements_of(dataset.spec)
        self.order = make_order(dataset, seed, batch_size)
        single = objective.adapts or not self.order.mixes
        self.block_steps = 1 if single else max(1, min(BLOCK_STEPS, BLOCK_ELEMENTS // elements))
        self._block: tuple[int, Corrupted] | None = None

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

    def indices(self, items: Tensor) -> Tensor:
        """Return the position in the data set of each running number."""
        return self.order.positions(items)

    def _prepare(self, number: int) -> Corrupted:
        items = self.items(number * self.block_steps, self.block_steps)
        self._read_ahead(number)
        place = torch.device(getattr(self.dataset, "device", "cpu"))
        batch = move(self.dataset.batch(send(self.indices(items), place)), self.device)
        noise = self._noise(send(items, self.device))
        with torch.no_grad():
            batch = self.transforms(batch, noise, self.maps)
            return self.objective.prepare(self.denoiser, batch, noise, self.rows)

    def _noise(self, items: Tensor) -> KeyedNoise:
        if self.share.size == 1:
            return KeyedNoise(self.seed, items, self.device)
        return ShareNoise(self.seed, items, self.device, batch_size=self.batch_size, share=self.share)

    def _read_ahead(self, number: int) -> None:
        """Tell a data set that reads from disk what this block and the next ones need."""
        prefetch = getattr(self.dataset, "prefetch", None)
        if prefetch is not None:
            blocks = 1 + -(-_READ_AHEAD // self.block_steps)
            prefetch(self.indices(self.items(number * self.block_steps, blocks * self.block_steps)))


def block_elements(spec: DataSpec, rows: int) -> int:
    """Return the most noise values that a block holds, with `rows` items per step."""
    step = rows * elements_of(spec)
    return max(step, min(BLOCK_ELEMENTS, BLOCK_STEPS * step))


def elements_of(spec: DataSpec) -> int:
    """Return the number of values of one item, at least 1."""
    return max(1, int(torch.Size(spec.shape).numel()))


def move(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the items and conditions of a batch on a device."""
    cond = {name: send(part, device) for name, part in (batch.get("cond") or {}).items()}
    return {"x": send(batch["x"], device), "cond": cond}


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; the host does not wait for what the device still has to do before the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # only from there does a copy run beside the host
    return tensor.to(device, non_blocking=True)
