"""`bench_match`: PCK of several choices of features on labelled pairs, each beside the others on the same pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from undiffuse.data.keypoint_pairs import Pair, Points, open_pairs
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.metrics.key_points import (
    CONVENTIONS,
    Average,
    Convention,
    PairErrors,
    SizeOf,
    pair_errors,
    pck_gain,
    pck_interval,
)
from undiffuse.metrics.resampling import Interval
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.tasks.match.matcher import Matcher
from undiffuse.tasks.match.options import OWNERS, MatchOptions
from undiffuse.tasks.match.run import match, match_dense
from undiffuse.words import plain_json


@dataclass(frozen=True, kw_only=True)
class MatchRow:
    """One choice of features at one threshold.

    Args:
        name: What it is called.
        alpha: Threshold, a share of the size.
        value: PCK with its interval over pairs.
        gain: PCK minus that of the first choice on the same pairs; None for the first itself.
    """

    name: str
    alpha: float
    value: Interval
    gain: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class MatchBench:
    """What was found.

    Args:
        rows: One for each choice and threshold.
        convention: Size, thresholds and average.
        strict: Whether an error of alpha times the size counts as wrong.
        errors: Choice -> errors of each pair.
        pairs: How many pairs.
        points: How many key points in them.
        settings: Choice -> how pictures were matched; and the data.
    """

    rows: tuple[MatchRow, ...]
    convention: Convention
    strict: bool
    errors: Mapping[str, tuple[PairErrors, ...]]
    pairs: int
    points: int
    settings: dict[str, Any] = field(default_factory=dict)

    columns: ClassVar[tuple[str, ...]] = ("features", "PCK at", "PCK", "95 % over pairs", "gain on the first, paired")

    def table(self) -> list[tuple[str, ...]]:
        """Return the cells of a table."""
        return [
            (
                row.name,
                f"{row.alpha:g} {self.convention.size}",
                f"{100 * row.value.value:.1f}",
                f"{100 * row.value.low:.1f} .. {100 * row.value.high:.1f}",
                "" if row.gain is None else f"{100 * row.gain.value:+.1f} ({_ends(row.gain)})",
            )
            for row in self.rows
        ]

    def to_json(self) -> dict[str, Any]:
        """Return everything but the single errors as plain JSON."""
        rows = [
            {"features": row.name, "alpha": row.alpha, "pck": vars(row.value), "gain": row.gain and vars(row.gain)}
            for row in self.rows
        ]
        found = {"rows": rows, "convention": vars(self.convention), "strict": self.strict}
        return plain_json(found | {"pairs": self.pairs, "points": self.points, "settings": self.settings})


def bench_match(
    model: Model | None,
    data: str | Path | Sequence[Pair],
    choices: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    layout: str = "auto",
    split: str = "test",
    category: str | None = None,
    per_category: int | None = None,
    size_of: SizeOf | None = None,
    alphas: Sequence[float] | None = None,
    average: Average | None = None,
    strict: bool = True,
    resamples: int = 500,
    listener: Listener = silent,
    **options: Any,
) -> MatchBench:
    """Measure how well features correspond.

    Args:
        model: A model of images; None where no choice needs one.
        data: The folder of SPair-71k, PF-Pascal or TSS (see `undiffuse.data.keypoint_pairs`), or pairs, for which the
            convention of SPair-71k holds.
        choices: Name -> options of `match` for this choice; None: what `options` say, and position alone beside it.
        layout: Of the folder.
        split: Of the data set.
        category: This one alone.
        per_category: So many pairs of each, drawn by the seed.
        size_of: "bbox" or "image"; None: the data set's own, as alphas and average.
        alphas: Thresholds.
        average: See `undiffuse.metrics.key_points.pck`.
        strict: An error of exactly alpha times the size is wrong.
        resamples: Draws of the bootstrap over pairs.
        listener: Hears about progress.
        options: Of `match`, for all choices.

    Raises:
        DataError: The folder or a picture cannot be read.
        ValueError: An unknown category or convention, options of `match` that do not fit, or points that lie more than
            a pixel outside their picture.
    """
    if idle := [name for name in ("mutual", "ratio") if options.get(name)]:
        raise ValueError(f"{' and '.join(idle)} would drop points, and PCK counts them all; leave them out.")
    from_disk = isinstance(data, str | Path)
    name, pairs = open_pairs(data, layout, split) if isinstance(data, str | Path) else ("spair", list(data))
    seed = int(options.get("seed", 0))
    pairs = _chosen(pairs, category, per_category, seed)
    own = CONVENTIONS[name]
    convention = Convention(
        size=size_of or own.size, alphas=tuple(alphas or own.alphas), average=average or own.average
    )
    chosen = choices or {"chosen": {}, "position": {"features": ("position",), "alpha": None, "dino": None}}
    matchers = {label: Matcher(model, read) for label, read in _read_choices(chosen, options).items()}
    errors: dict[str, list[PairErrors]] = {label: [] for label in chosen}
    listener(Started("match", len(pairs), "pair"))
    for number, pair in enumerate(pairs, 1):
        for label, matcher in matchers.items():
            errors[label].append(_errors(matcher, pair, convention))
        listener(Advanced("match", number))
    listener(Finished("match"))
    first = next(iter(errors))
    how: dict[str, Any] = {"average": convention.average, "strict": strict, "draws": resamples, "seed": seed}
    rows = [
        MatchRow(
            name=label,
            alpha=alpha,
            value=pck_interval(found, alpha, **how),
            gain=None if label == first else pck_gain(found, errors[first], alpha, **how),
        )
        for alpha in convention.alphas
        for label, found in errors.items()
    ]
    settings = {"data": name, "split": split} if from_disk else {"data": "pairs that were given"}
    return MatchBench(
        rows=tuple(rows),
        convention=convention,
        strict=strict,
        errors={label: tuple(found) for label, found in errors.items()},
        pairs=len(pairs),
        points=sum(len(pair.errors) for pair in errors[first]),
        settings=settings | {"seed": seed} | {label: matcher.settings() for label, matcher in matchers.items()},
    )


def _read_choices(choices: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> dict[str, MatchOptions]:
    """Return the options of each choice: its own and those for all that its features read.

    Raises:
        ValueError: Options that do not fit, or one for all that no choice reads.
    """
    found, used = {}, set()
    for label, more in choices.items():
        sources = MatchOptions(**{**_named(options), **_named(more)}).sources
        shared = {name: value for name, value in options.items() if OWNERS.get(name, sources[0]) in sources}
        used |= set(shared)
        found[label] = MatchOptions(**{**shared, **more})
    if idle := [name for name in options if name not in used and options[name] != getattr(MatchOptions, name)]:
        raise ValueError(f"{', '.join(idle)} is read by none of the choices {', '.join(choices)}; leave it out.")
    return found


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that say which features there are."""
    return {name: value for name, value in options.items() if name in ("features", "dino")}


def _chosen(pairs: Sequence[Pair], category: str | None, per_category: int | None, seed: int) -> list[Pair]:
    """Return the pairs of one category, or so many of each, in their order.

    Raises:
        ValueError: There is no such category, or fewer than 1 pair is asked for.
    """
    known = sorted({pair.category for pair in pairs})
    if category is not None and category not in known:
        raise ValueError(f"category {category!r} is none of the data's: {', '.join(known)}.")
    kept = [pair for pair in pairs if category in (None, pair.category)]
    if per_category is None:
        return kept
    if per_category < 1:
        raise ValueError(f"per_category={per_category} must be at least 1.")
    keys = KeyedNoise(seed, range(len(kept))).uniform("order", 0, (1,)).flatten().tolist()
    numbers: list[int] = []
    for name in known:
        own = [number for number, pair in enumerate(kept) if pair.category == name]
        numbers += sorted(own, key=keys.__getitem__)[:per_category]
    return [kept[number] for number in sorted(numbers)]


def _errors(matcher: Matcher, pair: Pair, convention: Convention) -> PairErrors:
    """Return the errors of one pair."""
    points, truth = pair.truth()
    target = matcher.describe(pair.dst)
    size = float(max(target.picture.size))
    if convention.size == "bbox":
        if pair.dst_box is None:
            raise ValueError(f"the pair {pair.name} has no box of the object; use size_of='image'.")
        left, top, right, bottom = pair.dst_box
        size = max(right - left, bottom - top)
    if not len(points):
        return PairErrors(np.empty(0), size, pair.category)
    if pair.dense:
        flow = match_dense(matcher, pair.src, target).positions
        column, row = torch.from_numpy(points).long().unbind(1)
        found = flow[row, column]
    else:
        source = matcher.describe(pair.src)
        found = match(matcher, source, _on_picture(points, source.picture.size), target).positions
    return pair_errors(found.numpy(), truth, size, category=pair.category)


def _on_picture(points: Points, size: tuple[int, int]) -> Points:
    """Return points with those that lie at most a pixel outside moved to the edge: some labels count from 1."""
    ends = np.array([size[1], size[0]]) - 0.5
    moved = points.clip(-0.5, ends)
    return np.where(np.abs(moved - points) <= 1, moved, points)


def _ends(found: Interval) -> str:
    return f"{100 * found.low:+.1f} .. {100 * found.high:+.1f}"
