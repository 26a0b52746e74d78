"""What an evaluation works on: real items in data units, samples beside them, and what a judge returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from undiffuse.errors import DataError
from undiffuse.metrics.distances import Matrix
from undiffuse.metrics.extractors import RealFeatures
from undiffuse.metrics.features import FeatureExtractor
from undiffuse.metrics.items import Items
from undiffuse.metrics.reference import Reference
from undiffuse.metrics.results import Row, Series
from undiffuse.models.conditions import Fitted
from undiffuse.spec import DataSpec


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Everything a judge may ask for.

    Args:
        spec: What one item is.
        train: Real items that the model learned from (a seeded part of them where there are many).
        held_out: Real items that it did not.
        labels: Labels asked for, (n,), in the proportions of the training data; None for a model without.
        conditional: Whether samples are asked for with conditions, labels or others, so that guidance has a meaning.
        draw: Maps a guidance scale to samples (n, *shape) in data units.
        elbo: Maps tokens (N, L) to an upper bound of their mean nats per token, and its standard error; with their
            conditions as `cond` where the held-out items have some.
        exact: Whether that is no bound but the figure itself.
        reference: What judges texts by their likelihood; None for nothing.
        n: Number of samples.
        seed: Seed of the subsets and judges.
        extractor: What to compare images in: a name (see `extractors.make_extractor`) or a feature extractor.
        cache: Whether features of real items are kept in the cache.
        device: Where networks that give features run.
    """

    spec: DataSpec
    train: Items
    held_out: Items
    labels: NDArray[np.int64] | None = None
    conditional: bool = False
    draw: Callable[[float | None], NDArray[Any]]
    elbo: Callable[..., tuple[float, float]] | None = None
    exact: bool = False
    reference: Reference | None = None
    n: int
    seed: int = 0
    extractor: str | FeatureExtractor = "auto"
    cache: bool = True
    device: str = "cpu"

    def held_out_bound(self, rows: NDArray[np.int64]) -> tuple[float, float]:
        """Return what `elbo` says of held-out items by their numbers (M,), given their own conditions.

        Raises:
            ValueError: There is no `elbo`.
        """
        if self.elbo is None:
            raise ValueError("this model has no elbo(tokens), so it has no bits; leave 'bits' out.")
        tokens, chosen = torch.from_numpy(self.held_out.x[rows]), torch.from_numpy(rows)
        cond = Fitted((name, values[chosen]) for name, values in self.held_out.cond.items())
        nats, error = self.elbo(tokens, cond=cond) if cond else self.elbo(tokens)
        return float(nats), float(error)

    @cached_property
    def features(self) -> RealFeatures:
        """The real items in the eyes of the extractor, which is fitted when a judge first asks."""
        return RealFeatures.of(
            self.extractor, self.spec, self.train, self.held_out, seed=self.seed, cache=self.cache, device=self.device
        )


@dataclass
class Samples:
    """Samples at one guidance scale (None for a model without), drawn when a judge first looks at them."""

    bench: Bench
    scale: float | None

    @cached_property
    def x(self) -> NDArray[Any]:
        """The samples (n, *shape), in data units."""
        return self.bench.draw(self.scale)

    @cached_property
    def features(self) -> Matrix:
        """The samples in the eyes of the bench's extractor, (n, D)."""
        return self.bench.features.extractor.features(self.x)

    @property
    def drawn(self) -> bool:
        """Whether anyone has looked."""
        return "x" in vars(self)


@dataclass(frozen=True)
class Findings:
    """Rows of figures, columns to draw (name -> column -> values), and warnings for people."""

    rows: tuple[Row, ...] = ()
    series: dict[str, Series] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Judge(Protocol):
    """A metric that has seen the real data."""

    def __call__(self, samples: Samples) -> Findings:
        """Judge the samples of one guidance scale."""
        ...


def proportional_labels(labels: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return n labels, ascending, in the proportions of `labels` (largest remainders get the places left over)."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (n / counts.sum())
    places = np.floor(exact).astype(np.int64)
    order = np.argsort(places - exact, kind="stable")
    places[order[: n - places.sum()]] += 1
    return np.repeat(classes, places)


def check_fit(model: DataSpec, data: DataSpec) -> None:
    """Raise `DataError` where samples of the model cannot be compared with the data."""
    if (model.kind, model.shape) != (data.kind, data.shape):
        raise DataError(
            f"the model makes {model.kind} items of shape {model.shape} but the data has {data.kind} items of shape "
            f"{data.shape}; give the data (and size) that the model was trained on."
        )
    for name in ("classes", "vocabulary"):
        mine, theirs = getattr(model, name), getattr(data, name)
        if mine and theirs and mine != theirs:
            raise DataError(
                f"the model's {len(mine)} {name} are not the data's {len(theirs)}; give the data it was trained on."
            )
