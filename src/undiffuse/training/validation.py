"""The loss of the averaged model on held-out items, and on as many training items measured in the same way.

Items, noise levels, noise and dropped conditions are the same every time, in every run: the curve shows what the model
learns and not what was drawn, and the gap between the two losses is what it learned by heart. Noise levels follow the
law of the training, spread evenly; where that law adapts, they are uniform and the loss is what it estimates.

It costs one forward pass for each of 2 x `items` items: 1024 by default, a third of a percent of 1000 steps of 100.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.training.degrade import Transforms
from undiffuse.training.objectives import Losses, Objective, Trained
from undiffuse.training.options import TrainOptions
from undiffuse.training.stream import elements_of, move
from undiffuse.training.window import EDGES

if TYPE_CHECKING:
    from undiffuse.data import Dataset

_SEED, _FIRST = 0, 1 << 41  # no training sees as many items, so this noise is never trained on
_ROWS, _ELEMENTS = 128, 1 << 19  # of a batch, at most: forward passes of that size fit wherever training fits
_GOLDEN = 0.6180339887498949  # multiples of it modulo 1 fill [0, 1) evenly, however many there are


class Validation:
    """Measures a denoiser.

    Args:
        objective: The loss of the training.
        held_out: Items that are not trained on.
        training: Items that are; None leaves their loss out.
        items: Number of draws of item, level and noise. Fewer items are used several times, more in even distances.
        device: Where the denoiser is.
        transforms: What is done to the items in training; here they are not moved.
    """

    def __init__(
        self,
        objective: Objective,
        held_out: Dataset,
        training: Dataset | None = None,
        *,
        items: int = 512,
        device: torch.device | str = "cpu",
        transforms: Transforms | None = None,
    ) -> None:
        self.objective = objective.without_memory()
        self.transforms = replace(transforms or Transforms(), augment=None)
        self.held_out, self.training = held_out, training
        self.items, self.device = items, torch.device(device)

    @torch.no_grad()
    def __call__(self, denoiser: Trained) -> dict[str, Any]:
        """Return "loss", "train_loss", "items", and where there are noise levels "levels" as in a log: plain values."""
        losses = self._measure(denoiser, self.held_out)
        row: dict[str, Any] = {"loss": float(losses.per_sample.mean()), "items": self.items}
        if self.training is not None:
            row["train_loss"] = float(self._measure(denoiser, self.training).per_sample.mean())
        if losses.half_logsnr is not None:
            row["levels"] = _by_level(losses.per_sample, losses.half_logsnr)
        return row

    def _measure(self, denoiser: Trained, dataset: Dataset) -> Losses:
        """Return losses float64 (items,) and levels, on the CPU."""
        per_sample, levels = [], []
        for rows, positions in self._batches(dataset):
            if len(rows) < self.objective.least_rows:
                continue  # what is left over of a set that does not divide
            batch = move(dataset.batch(positions), self.device)
            batch = self.transforms(batch, KeyedNoise(_SEED, _FIRST + rows, self.device))
            found = self.objective.score(
                denoiser, self.objective.prepare(denoiser, batch, self._noise(rows), batch_size=1)
            )
            per_sample.append(found.per_sample.double().cpu())
            levels += [] if found.half_logsnr is None else [found.half_logsnr.double().cpu()]
        return Losses(torch.cat(per_sample), torch.cat(levels) if levels else None)

    def _noise(self, rows: Tensor) -> InjectedNoise:
        level = ((rows.double() + 0.5) * _GOLDEN).remainder(1.0).to(self.device)
        return InjectedNoise({("time", 0): level}, KeyedNoise(_SEED, _FIRST + rows, self.device))

    def _batches(self, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield numbers of draws and the positions of their items; batches do not mix buckets."""
        size = max(self.objective.least_rows, min(_ROWS, _ELEMENTS // elements_of(dataset.spec)))
        rows = torch.arange(self.items)
        positions = _positions(dataset, rows)
        if getattr(dataset, "order", "permuted") != "bucketed":
            yield from zip(rows.split(size), positions.split(size), strict=True)
            return
        groups = dataset.groups()[positions]  # type: ignore[attr-defined]
        for group in groups.unique():
            here = (groups == group).nonzero()[:, 0]
            yield from zip(rows[here].split(size), positions[here].split(size), strict=True)


def make_validation(
    objective: Objective,
    held_out: Dataset | None,
    training: Dataset,
    options: TrainOptions,
    device: torch.device,
    transforms: Transforms | None = None,
) -> Validation | None:
    """Return the validation that `options` ask for; None where nothing is held out or none is asked for."""
    if held_out is None or not options.validation_steps:
        return None
    streams = getattr(training, "order", "permuted") == "sequential"  # going back to its start would cost too much
    return Validation(
        objective,
        held_out,
        None if streams else training,
        items=options.validate_items,
        device=device,
        transforms=transforms,
    )


def _positions(dataset: Dataset, rows: Tensor) -> Tensor:
    """Return the item of each draw; of a stream, which must be read from its start, the first ones."""
    if getattr(dataset, "order", "permuted") == "sequential":
        return rows
    count = len(dataset)
    return rows % count if count < len(rows) else rows * count // len(rows)


def _by_level(losses: Tensor, half_logsnr: Tensor) -> dict[str, Any]:
    total, count = torch.zeros(2, len(EDGES) + 1, dtype=torch.float64)
    bins = torch.bucketize(half_logsnr, EDGES)
    total.index_add_(0, bins, losses)
    count.index_add_(0, bins, torch.ones_like(losses))
    return {"edges": EDGES.tolist(), "loss": (total / count).tolist(), "count": count.tolist()}
