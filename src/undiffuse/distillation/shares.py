"""Two losses in one batch: a share of its rows gets one of them, the rest the other.

Which rows these are, and where uniforms lie, is settled for whole batches in `prepare`: a loss then depends neither on
the parts that a batch is scored in nor on the number of processes that share it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from undiffuse.noise import NoiseSource
from undiffuse.training.objectives import Corrupted
from undiffuse.training.share import over_batches
from undiffuse.training.stream import send
from undiffuse.training.time_samplers import stratify

PAIR = "pair"
"""Name among `extras` of the rows chosen: bool (N,), on the CPU, so that no loss waits for a device to count them."""

_GOLDEN = 0.6180339887498949


def choose_rows(share: float, noise: NoiseSource, rows: int, batch_size: int) -> Tensor:
    """Return which rows are a share of their batches, bool (rows,), on the CPU.

    They are spread evenly over each batch, so that stratified uniforms are even over the chosen rows and over the rest,
    and parts of a batch cost the same. Batches of one row are taken for one batch.

    Args:
        share: How many of a batch, rounded.
        noise: Source of the rows, which knows of which batches they are.
        rows: Number of rows, a whole number of batches or of our shares of them.
        batch_size: Rows of a batch in `noise`.
    """

    def draw(source: NoiseSource, size: int) -> Tensor:
        batches = rows // batch_size
        return _even(share, batches) if size == 1 else _even(share, size).repeat(batches)

    return over_batches(noise, batch_size, draw)


def split_rows(corrupted: Corrupted) -> tuple[Tensor, Tensor]:
    """Return the numbers of the chosen rows and of the others, int64, where the rows are."""
    chosen = corrupted.extras[PAIR]
    first, second = (send(which.nonzero()[:, 0], corrupted.x.device) for which in (chosen, ~chosen))
    return first, second


def take_rows(corrupted: Corrupted, index: Tensor) -> Corrupted:
    """Return rows by number, without the word which of them were chosen."""
    extras = {name: part for name, part in corrupted.extras.items() if name != PAIR}
    return replace(corrupted, extras=extras).take(index)


def join_rows(chosen: tuple[Tensor, Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Put the chosen rows and the others back to where `split_rows` found them."""
    joined = torch.cat((first, second))
    return torch.empty_like(joined).index_copy(0, torch.cat(chosen), joined)


def spread_uniforms(noise: NoiseSource, batch_size: int) -> Tensor:
    """Return uniforms that are even over every run of rows of a batch, float64 (N,).

    Stratified ones, (u_0 + i / B) mod 1, put a stretch of them into a run; multiplied by a whole number near 0.618 B
    they are uniform still, and even.
    """

    def draw(source: NoiseSource, rows: int) -> Tensor:
        factor = int(_GOLDEN * rows) | 1  # odd: coprime to the usual sizes of a batch
        return (stratify(source.uniform("time", 0, ()), rows) * factor) % 1.0

    return over_batches(noise, batch_size, draw)


def _even(share: float, rows: int) -> Tensor:
    """Return bool (rows,), True for round(share rows) of them in even distances."""
    edges = torch.floor(torch.arange(rows + 1, dtype=torch.float64, device="cpu") * share + 0.5)
    return edges.diff() > 0
