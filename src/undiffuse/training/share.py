"""The rows of every batch that a process works on, and noise that does not depend on how many processes there are.

Noise is keyed by the running number of an item, so each process draws that of its own rows. What is drawn once for a
whole batch (stratified times) every process draws for the whole batch, and takes its rows: the batch of a run on
eight processes is that of one, number for number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.noise import KeyedNoise, NoiseSource

Draw = Callable[[NoiseSource, int], Tensor]


@dataclass(frozen=True)
class Share:
    """The part of every batch that this process works on."""

    rank: int = 0
    size: int = 1


WHOLE = Share()


class ShareNoise(KeyedNoise):
    """Noise of our rows of batches that several processes share.

    Args:
        seed: Key.
        items: Running numbers of our rows of whole batches, int64 (S * rows,).
        device: Where results live.
        batch_size: Items of a batch over all processes, B.
        share: Which rows are ours.
    """

    def __init__(
        self, seed: int, items: Tensor, device: torch.device | str = "cpu", *, batch_size: int, share: Share
    ) -> None:
        super().__init__(seed, items, device)
        self.batch_size, self.share = batch_size, share

    def over_batches(self, draw: Draw) -> Tensor:
        """Draw for all S * B rows of the batches, and return ours, (S * rows, ...)."""
        rows = self.batch_size // self.share.size
        first = self.share.rank * rows
        starts = self.items.view(-1, rows)[:, :1] - first
        items = starts + torch.arange(self.batch_size, device=self.device)
        drawn = draw(KeyedNoise(self.seed, items.reshape(-1), self.device), self.batch_size)
        return drawn.unflatten(0, (-1, self.batch_size))[:, first : first + rows].flatten(0, 1)


def over_batches(noise: NoiseSource, batch_size: int, draw: Draw) -> Tensor:
    """Return what `draw(noise, batch_size)` gives, drawn for whole batches where `noise` holds a share of them.

    Args:
        noise: Source of N rows, a whole number of batches or of our shares of them.
        batch_size: Rows of a batch in `noise`.
        draw: Called with a source of whole batches and their size; returns one row per row of the source.
    """
    return noise.over_batches(draw) if isinstance(noise, ShareNoise) else draw(noise, batch_size)
