"""PCK, the percentage of correct key points, in all conventions; with intervals over pairs.

A key point counts as correct where its error is below alpha times a size. What the size is, and what is averaged over
what, differs between papers by several points, so both are always named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from undiffuse.metrics.resampling import Interval, bootstrap

Average = Literal["point", "image", "category", "category-pairs", "category-image"]
SizeOf = Literal["bbox", "image"]
_ONE = np.zeros((1, 1))  # `bootstrap` draws two sets; this one says nothing


@dataclass(frozen=True)
class PairErrors:
    """The errors of the key points of one pair of pictures.

    Args:
        errors: Distance of each visible point to the truth in pixels, (n,).
        size: What alpha is a share of, in the same pixels, above 0.
        category: Of the pair.

    Raises:
        ValueError: A size that is not above 0, or errors that are not finite.
    """

    errors: NDArray[np.float64]
    size: float
    category: str = ""

    def __post_init__(self) -> None:
        if not self.size > 0:
            raise ValueError(f"size={self.size}; alpha is a share of a size above 0.")
        if not np.isfinite(self.errors).all():
            raise ValueError("errors hold NaN or infinity; leave points without a match out, or count them as wrong.")


@dataclass(frozen=True, kw_only=True)
class Convention:
    """How a data set is reported.

    Args:
        size: "bbox": the longer side of the target's box; "image": the longer side of the target picture, which is the
            side of its padded frame.
        alphas: Thresholds.
        average: See `pck`.

    Raises:
        ValueError: An unknown word, or thresholds that are not above 0.
    """

    size: SizeOf
    alphas: tuple[float, ...]
    average: Average

    def __post_init__(self) -> None:
        for name, kinds in (("size", SizeOf), ("average", Average)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose {' or '.join(get_args(kinds))}.")
        if not self.alphas or not all(alpha > 0 for alpha in self.alphas):
            raise ValueError(f"alphas={self.alphas}; expected thresholds above 0, such as 0.1.")


CONVENTIONS: dict[str, Convention] = {
    "spair": Convention(size="bbox", alphas=(0.1, 0.05, 0.01), average="point"),
    "pf-pascal": Convention(size="image", alphas=(0.05, 0.1, 0.15), average="point"),
    "tss": Convention(size="image", alphas=(0.05,), average="image"),
}
"""Data set -> convention of Zhang et al. 2023, arXiv:2305.15347, and of Taniai et al. 2016 for TSS."""


def pair_errors(pred: Any, truth: Any, size: float, *, visible: Any = None, category: str = "") -> PairErrors:
    """Return the errors of predicted points.

    Args:
        pred: (n, 2), pixels.
        truth: (n, 2).
        size: What alpha is a share of.
        visible: Which points count, bool (n,); None: all.
        category: Of the pair.

    Raises:
        ValueError: Shapes that differ.
    """
    a, b = np.asarray(pred, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    shown = np.ones(len(b), dtype=bool) if visible is None else np.asarray(visible, dtype=bool)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2 or shown.shape != (len(a),):
        raise ValueError(f"points {a.shape}, truth {b.shape}, visible {shown.shape}; expected (n, 2), (n, 2), (n,).")
    return PairErrors(np.linalg.norm(a - b, axis=1)[shown], size, category)


def pck(pairs: Sequence[PairErrors], alpha: float = 0.1, *, average: Average = "point", strict: bool = True) -> float:
    """Return the share of correct key points, 0 to 1.

    Args:
        pairs: One for each pair; those without visible points count in no average.
        alpha: Share of the size.
        average: "point": all points of all pairs in one; "image": first within each pair, then over pairs; "category":
            points within each category, then over categories; "category-pairs": the same, categories weighted by
            their pairs; "category-image": pairs within each category, then over categories.
        strict: Correct is error < alpha size (as reference codes have it); else error <= alpha size.

    Raises:
        ValueError: No visible point at all, an unknown average, or an alpha not above 0.
    """
    return _share(_rows(pairs, alpha, average, strict)[:, [0, 2, 3]], average)


def pck_interval(
    pairs: Sequence[PairErrors],
    alpha: float = 0.1,
    *,
    average: Average = "point",
    strict: bool = True,
    draws: int = 500,
    seed: int = 0,
) -> Interval:
    """Return PCK with its 95 % bootstrap interval over pairs; arguments and errors as for `pck`."""
    rows = _rows(pairs, alpha, average, strict)[:, [0, 2, 3]]
    return _interval(lambda drawn: _share(drawn, average), rows, draws, seed)


def pck_gain(
    pairs: Sequence[PairErrors],
    base: Sequence[PairErrors],
    alpha: float = 0.1,
    *,
    average: Average = "point",
    strict: bool = True,
    draws: int = 500,
    seed: int = 0,
) -> Interval:
    """Return PCK minus that of `base` on the same pairs, with its 95 % interval: paired, both are drawn together.

    Raises:
        ValueError: As for `pck`; or the two are not of the same pairs.
    """
    both = [_rows(given, alpha, average, strict) for given in (pairs, base)]
    if both[0].shape != both[1].shape or not np.array_equal(both[0][:, 2:], both[1][:, 2:]):
        raise ValueError("pairs and base are not errors of the same points; a paired interval needs the same pairs.")
    rows = np.concatenate([both[0], both[1][:, :1]], axis=1)
    metric = lambda drawn: _share(drawn[:, [0, 2, 3]], average) - _share(drawn[:, [4, 2, 3]], average)  # noqa: E731
    return _interval(metric, rows, draws, seed)


def _interval(metric: Any, rows: NDArray[np.float64], draws: int, seed: int) -> Interval:
    return bootstrap(lambda drawn, _: metric(drawn), rows, _ONE, draws=draws, seed=seed, method="percentile")


def _rows(pairs: Sequence[PairErrors], alpha: float, average: Average, strict: bool) -> NDArray[np.float64]:
    """Return a row for each pair with visible points: hits, size, points, number of the category."""
    if average not in get_args(Average):
        raise ValueError(f"average={average!r} is unknown; choose one of {', '.join(get_args(Average))}.")
    if not alpha > 0:
        raise ValueError(f"alpha={alpha} must be above 0.")
    names = sorted({pair.category for pair in pairs})
    rows = []
    for pair in (pair for pair in pairs if len(pair.errors)):
        limit = alpha * pair.size
        hits = (pair.errors < limit if strict else pair.errors <= limit).sum()
        rows.append((hits, pair.size, len(pair.errors), names.index(pair.category)))
    if not rows:
        raise ValueError(f"none of {len(pairs)} pairs has a visible key point, so there is nothing to average.")
    return np.array(rows, dtype=np.float64)


def _share(rows: NDArray[np.float64], average: Average) -> float:
    """Return the average of rows of hits, points and category."""
    hits, points, category = rows.T
    if average == "point":
        return float(hits.sum() / points.sum())
    if average == "image":
        return float((hits / points).mean())
    _, place, pairs = np.unique(category, return_inverse=True, return_counts=True)
    if average == "category-image":
        return float((np.bincount(place, hits / points) / pairs).mean())
    within = np.bincount(place, hits) / np.bincount(place, points)
    return float(np.average(within, weights=pairs if average == "category-pairs" else None))
