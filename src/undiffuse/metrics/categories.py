"""Judges of tables of categories: how far are the columns, and pairs of columns, from those of real rows?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from undiffuse.metrics.bench import Bench, Findings, Judge, Samples
from undiffuse.metrics.floor import ratio_to_floor
from undiffuse.metrics.results import Row
from undiffuse.metrics.text import bits_per_character

_UNIT = "bits per cell"
_MOST_PAIRS = 300  # of columns; more are thinned out evenly
_MOST_ROWS = 512  # of held-out ones; the bound costs several network calls a row


def column_distance(a: NDArray[np.int64], b: NDArray[np.int64], order: int = 1) -> float:
    """Return the total variation between the value frequencies of two tables, averaged over columns.

    Args:
        a: Ids (N, L).
        b: Ids (M, L).
        order: 1 compares single columns; 2 the joint frequencies of pairs of them, up to 300 pairs.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: Tables of different columns, without rows, or with fewer columns than `order`.
    """
    if a.shape[1:] != b.shape[1:] or min(len(a), len(b)) == 0 or a.shape[1] < order:
        raise ValueError(f"tables of shape {a.shape} and {b.shape}; expected rows, and {order} or more columns alike.")
    width = int(max(a.max(), b.max())) + 1
    groups = list(combinations(range(a.shape[1]), order))
    chosen = groups[:: max(1, -(-len(groups) // _MOST_PAIRS))]
    return float(np.mean([_variation(_codes(a, group, width), _codes(b, group, width)) for group in chosen]))


def judge_bits(bench: Bench) -> Judge:
    """Bound of the model's bits per cell on held-out rows, beside columns that know nothing of each other.

    Raises:
        ValueError: The model has no `elbo`.
    """
    if bench.elbo is None:
        raise ValueError("this model has no elbo(tokens), so it has no bits per cell; leave 'bits' out.")
    rows = bench.held_out.x[:_MOST_ROWS]

    def judge(samples: Samples) -> Findings:
        nats, error = map(bits_per_character, bench.held_out_bound(np.arange(len(rows))))
        given = ", given their conditions" if bench.held_out.cond else ""
        note = f"upper bound (ELBO) over {len(rows)} held-out rows{given}; ± is the standard error"
        alone = independent_bits(bench.train.x, rows)
        return Findings(
            (
                Row(name="held-out rows", value=nats, error=error, unit=_UNIT, note=note),
                Row(name="held-out rows, columns alone", value=alone, unit=_UNIT, note="frequencies of training rows"),
            )
        )

    return judge


def independent_bits(train: NDArray[np.int64], held_out: NDArray[np.int64]) -> float:
    """Return the cross-entropy, bits per cell, of rows (M, L) under each column's own frequencies in `train` (N, L).

    Frequencies are (count + 1/2) / (N + K/2) (Jeffreys), with K the values seen in either table.
    """
    bits = []
    for own, other in zip(train.T, held_out.T, strict=True):
        values, places = np.unique(np.concatenate((own, other)), return_inverse=True)
        counts = np.bincount(places[: len(own)], minlength=len(values)) + 0.5
        bits.append(-np.log2(counts / counts.sum())[places[len(own) :]].mean())
    return float(np.mean(bits))


def judge_columns(bench: Bench) -> Judge:
    """Total variation of single columns to training rows, as a multiple of held-out v training rows."""
    return _judge_order(bench, 1, "column distance / floor")


def judge_pairs(bench: Bench) -> Judge:
    """The same of pairs of columns: it sees what depends on what."""
    return _judge_order(bench, 2, "column pair distance / floor")


TABLE_JUDGES: dict[str, Callable[[Bench], Judge]] = {
    "bits": judge_bits,
    "columns": judge_columns,
    "pairs": judge_pairs,
}
"""Name -> judge, for tables of categories."""


def _judge_order(bench: Bench, order: int, name: str) -> Judge:
    def distance(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
        return column_distance(a, b, order)

    def judge(samples: Samples) -> Findings:
        ratio = ratio_to_floor(distance, samples.x, bench.train.x, bench.held_out.x, seed=bench.seed)
        return Findings((Row.of_ratio(name, ratio),))

    return judge


def _codes(table: NDArray[np.int64], group: tuple[int, ...], width: int) -> NDArray[np.int64]:
    """Return one number per row for the values of a group of columns."""
    code = table[:, group[0]]
    for column in group[1:]:
        code = code * width + table[:, column]
    return code


def _variation(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    _, places = np.unique(np.concatenate((a, b)), return_inverse=True)
    size = int(places.max()) + 1
    first, second = np.bincount(places[: len(a)], minlength=size), np.bincount(places[len(a) :], minlength=size)
    return 0.5 * float(np.abs(first / len(a) - second / len(b)).sum())
