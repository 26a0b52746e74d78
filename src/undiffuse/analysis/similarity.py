r"""CKA: how alike two representations of the same items are, up to rotation and scale.

Linear CKA of features X (n, a) and Y (n, b) is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with Gram matrices K = XX',
L = YY'. The biased estimator centres them, which gives |X'Y|_F^2 / (|X'X|_F |Y'Y|_F) for centred features; it nears 1
where there are more features than items. The unbiased one,

    HSIC_1 = [tr(KL) + 1'K1 1'L1 / ((n - 1)(n - 2)) - 2 1'KL1 / (n - 2)] / (n (n - 3)),   diagonals of K and L zeroed,

does not, and its sums over minibatches may be added up before dividing.

Sources: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv:1905.00414, section 3;
    Nguyen, Raghu, Kornblith 2021, "Do Wide and Deep Networks Learn the Same Things?", arXiv:2010.15327, eq. 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.tasks.features.encoder import DEFAULT_TIME, FeatureEncoder, Times
from undiffuse.tasks.features.layers import ALL, Layers

_LEAST = 4  # items of HSIC_1


def cka(x: Tensor, y: Tensor, *, unbiased: bool = False, minibatch: int | None = None) -> float:
    """Return the linear CKA of two representations of the same n items: 1 for equal up to rotation and scale.

    Args:
        x, y: (n, *), flattened.
        unbiased: Use HSIC_1, whose value for independent representations is 0 in expectation (it may be below 0).
        minibatch: Compute HSIC_1 in parts of so many items, with sums added up before dividing; None: in one. The last
            part is left out if it has fewer than 4 items.

    Raises:
        ValueError: Other numbers of items, too few of them, numbers that are not finite, minibatches of the biased
            estimator, or a representation that does not vary.
    """
    a, b = _read(x, "x"), _read(y, "y")
    if len(a) != len(b):
        raise ValueError(f"x has {len(a)} items and y has {len(b)}; give representations of the same items.")
    least, size = _LEAST if unbiased else 2, len(a) if minibatch is None else min(len(a), minibatch)
    if size < least:
        raise ValueError(f"{size} items are too few; CKA needs {least} (in a batch) or more.")
    if minibatch is not None and not unbiased:
        raise ValueError("the biased estimator does not add up over minibatches; use unbiased=True.")
    measure = _unbiased_sums if unbiased else _biased_sums
    sums = sum(measure(p, q) for p, q in zip(a.split(size), b.split(size), strict=True))
    cross, own, other = torch.as_tensor(sums).tolist()
    if own <= 0 or other <= 0:
        raise ValueError("a representation does not vary over the items, so there is nothing to compare.")
    return cross / (own * other) ** 0.5


def _read(x: Tensor, name: str) -> Tensor:
    flat = torch.as_tensor(x).detach().double().reshape(len(x), -1)
    if not bool(flat.isfinite().all()):
        raise ValueError(f"{name} holds numbers that are not finite; leave those items out.")
    return flat


def _biased_sums(x: Tensor, y: Tensor) -> Tensor:
    """Return HSIC of (x, y), (x, x), (y, y), by features or by Gram matrices, whichever are smaller."""
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) < max(x.shape[1], y.shape[1]):
        k, other = x @ x.T, y @ y.T
        return torch.stack([(k * other).sum(), k.square().sum(), other.square().sum()])
    return torch.stack([(p.T @ q).square().sum() for p, q in ((x, y), (x, x), (y, y))])


def _unbiased_sums(x: Tensor, y: Tensor) -> Tensor:
    """Return HSIC_1 of (x, y), (x, x), (y, y); zero for a part of fewer than 4 items."""
    if len(x) < _LEAST:
        return torch.zeros(3, dtype=torch.float64)
    k, other = (_without_diagonal(part - part.mean(0)) for part in (x, y))  # centring changes rounding alone
    return torch.stack([_hsic(p, q) for p, q in ((k, other), (k, k), (other, other))])


def _without_diagonal(x: Tensor) -> Tensor:
    gram = x @ x.T
    return gram - torch.diag(gram.diagonal())


def _hsic(k: Tensor, other: Tensor) -> Tensor:
    n = len(k)
    rows, columns = k.sum(1), other.sum(1)
    middle = rows.sum() * columns.sum() / ((n - 1) * (n - 2))
    return ((k * other).sum() + middle - 2 / (n - 2) * (rows * columns).sum()) / (n * (n - 3))


@dataclass(frozen=True)
class Comparison:
    """CKA between the layers of two models.

    Args:
        first, second: Names of the layers.
        values: (len(first), len(second)).
        settings: Items, time, estimator.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    values: Tensor
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """Heads of the table."""
        return ("", *self.second)

    def table(self) -> list[tuple[str, ...]]:
        """Return the values as cells."""
        rows = zip(self.first, self.values.tolist(), strict=True)
        return [(name, *(f"{value:.2f}" for value in row)) for name, row in rows]

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON."""
        made = {"first": list(self.first), "second": list(self.second), "cka": self.values.tolist()}
        return made | dict(self.settings)


def compare_layers(
    first: Any,
    second: Any,
    x: Tensor,
    *,
    layers: Layers = ALL,
    other_layers: Layers | None = None,
    other_x: Tensor | None = None,
    t: Times = DEFAULT_TIME,
    other_t: Times | None = None,
    unbiased: bool = False,
    minibatch: int | None = None,
    pool: int = 1,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    listener: Listener = silent,
) -> Comparison:
    """Return the CKA between layers of two models, or of one with itself, on pooled features of the same items.

    Both are given the same noise, item by item, where their states have one shape.

    Args:
        first, second: Models or denoisers; None as `second` means `first`.
        x: Items in model units (n, *); some 2000 give two digits.
        layers, t: Of the first model; several times stand as layers of their own.
        other_layers, other_t: Of the second; None: as for the first.
        other_x: The same items in the second's units and size; None: `x`.
        unbiased, minibatch: See `cka`.
        pool: Cells on each axis of a map; 1 is the spatial mean.
        draws, seed, batch_size: See `FeatureEncoder`.
        listener: Hears about progress.

    Raises:
        ValueError: See `cka` and `FeatureEncoder`.
    """
    common = {"pool": pool, "draws": draws, "seed": seed, "batch_size": batch_size}
    mine = FeatureEncoder(first, layers, t, **common)  # type: ignore[arg-type]
    theirs = FeatureEncoder(
        first if second is None else second,
        layers if other_layers is None else other_layers,
        t if other_t is None else other_t,
        **common,  # type: ignore[arg-type]
    )
    a = mine.maps(x, pooled=True, listener=listener)
    is_same = other_x is None and second in (None, first) and mine.settings == theirs.settings
    b = a if is_same else theirs.maps(x if other_x is None else other_x, pooled=True)
    values = torch.zeros(len(a), len(b), dtype=torch.float64)
    listener(Started("compare", len(a), "layer"))
    for row, mapped in enumerate(a.values()):
        for column, other in enumerate(b.values()):
            values[row, column] = cka(mapped, other, unbiased=unbiased, minibatch=minibatch)
        listener(Advanced("compare", row + 1))
    listener(Finished("compare"))
    made = {"items": len(x), "t": _plain(mine), "other_t": _plain(theirs), "unbiased": unbiased}
    return Comparison(tuple(a), tuple(b), values, made | {"pool": pool, "draws": draws, "seed": seed})


def _plain(encoder: FeatureEncoder) -> Sequence[Any]:
    return [float(torch.as_tensor(t).flatten()[0]) for t in encoder.times]
