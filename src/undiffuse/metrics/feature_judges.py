"""Judges that compare samples with real items in the features of an extractor.

Real data v real data, the floor, is always held-out v training items, at the number of items that the samples have.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.metrics.bench import Bench, Findings, Judge, Samples
from undiffuse.metrics.distances import Matrix
from undiffuse.metrics.floor import ratio_to_floor
from undiffuse.metrics.frechet import FrechetInterval, frechet_distance, frechet_interval
from undiffuse.metrics.items import Items
from undiffuse.metrics.kernels import Estimate, kid, median_distance, mmd, rational_quadratic
from undiffuse.metrics.manifold import density_coverage, precision_recall
from undiffuse.metrics.results import Row
from undiffuse.metrics.two_sample import classifier_two_sample
from undiffuse.noise import permutation

FRECHET = "Frechet distance / floor"
FEW = 2048
"""Fewer images than this, or no more than the features, and a Frechet distance comes with a warning."""

Compare = Callable[[Matrix, Matrix], Estimate]


def judge_frechet(bench: Bench) -> Judge:
    """Frechet distance: as a multiple of real v real, and without the bias of few items, with its interval."""
    real = bench.features
    train, held_out = _by_class(real.train, bench.train), _by_class(real.held_out, bench.held_out)
    floor = frechet_interval(held_out, train)

    def judge(samples: Samples) -> Findings:
        x = samples.features
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few rows; the warning below says it in the user's terms
            ratio = ratio_to_floor(frechet_distance, x, real.train, real.held_out, seed=bench.seed)
        found = frechet_interval(x, train)
        rows = (
            Row.of_ratio(FRECHET, ratio, scale=samples.scale, note=real.note),
            _frechet_row(found, floor, bench, samples),
        )
        return Findings(rows, warnings=_few(bench, x.shape[1]))

    return judge


def judge_kid(bench: Bench) -> Judge:
    """Kernel inception distance: the unbiased MMD^2 with a cubic kernel."""
    return _judge_estimate(bench, "KID", kid, "unbiased MMD² with the cubic kernel; ± is the jackknife's error")


def judge_mmd(bench: Bench) -> Judge:
    """Unbiased MMD^2 with rational quadratic kernels of several lengths, around the median distance of real items."""
    kernel = rational_quadratic(median_distance(bench.features.train, bench.features.held_out))

    def compare(a: Matrix, b: Matrix) -> Estimate:
        return mmd(a, b, kernel=kernel)

    return _judge_estimate(bench, "MMD²", compare, "unbiased, rational quadratic kernels; ± is the jackknife's error")


def judge_precision_recall(bench: Bench) -> Judge:
    """Precision (do samples look real?) and recall (could real items have been made?)."""
    return _judge_pair(bench, precision_recall, ("precision", "recall"), "nearest 3; ± is binomial")


def judge_density_coverage(bench: Bench) -> Judge:
    """Density and coverage: precision and recall that one outlier cannot spoil."""
    return _judge_pair(bench, density_coverage, ("density", "coverage"), "nearest 5; ± takes the balls as given")


def _judge_pair(bench: Bench, compare: Callable[[Matrix, Matrix], Any], names: tuple[str, str], how: str) -> Judge:
    """Judge by two figures of one comparison, fields of its result beside their `_error`."""
    train, held_out, n = _equal_sets(bench)
    floor = compare(train, held_out)

    def judge(samples: Samples) -> Findings:
        found = compare(train, _part(samples.features, n, bench.seed))
        note = f"{n} samples v {n} training items, {how}; {bench.features.name}"
        rows = (
            _row(name, getattr(found, name), getattr(found, f"{name}_error"), getattr(floor, name), samples, note)
            for name in names
        )
        return Findings(tuple(rows))

    return judge


def judge_two_sample(bench: Bench) -> Judge:
    """Accuracy of a classifier that tells samples from held-out items: 0.5 where it cannot."""
    real = bench.features
    floor = classifier_two_sample(
        *(_part(rows, bench.n, bench.seed) for rows in (real.train, real.held_out)), seed=bench.seed
    )

    def judge(samples: Samples) -> Findings:
        found = classifier_two_sample(samples.features, real.held_out, seed=bench.seed)
        note = (
            f"logistic regression on features, {found.n} items in 5 folds, p = {found.p_value:.2g}; real data: "
            f"training v held-out items, p = {floor.p_value:.2g}; {real.name}"
        )
        return Findings((_row("told from real", found.accuracy, found.error, floor.accuracy, samples, note),))

    return judge


def judge_frames(bench: Bench) -> Judge:
    """Frechet distance of single frames as a multiple of real v real, for video: how frames look, not how they move.

    Raises:
        ValueError: The data are no video.
    """
    from undiffuse.metrics.features import PCAFeatures

    if bench.spec.kind != "video":
        raise ValueError(f"frames are those of video, and the data are {bench.spec.kind} items; leave 'frames' out.")
    extractor = PCAFeatures(seed=bench.seed).fit(_frames(bench.train.x))
    train, held_out = (extractor.features(_frames(items.x)) for items in (bench.train, bench.held_out))

    def judge(samples: Samples) -> Findings:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            x = extractor.features(_frames(samples.x))
            ratio = ratio_to_floor(frechet_distance, x, train, held_out, seed=bench.seed)
        note = "single frames, which are not independent; features are principal components of real frames"
        return Findings((Row.of_ratio("Frechet distance of frames / floor", ratio, scale=samples.scale, note=note),))

    return judge


FEATURE_JUDGES: dict[str, Callable[[Bench], Judge]] = {
    "frechet": judge_frechet,
    "kid": judge_kid,
    "precision-recall": judge_precision_recall,
    "density-coverage": judge_density_coverage,
    "mmd": judge_mmd,
    "two-sample": judge_two_sample,
    "frames": judge_frames,
}


def _judge_estimate(bench: Bench, name: str, compare: Compare, how: str) -> Judge:
    real = bench.features
    train = _by_class(real.train, bench.train)
    floor = compare(_by_class(real.held_out, bench.held_out, bench.n), train)

    def judge(samples: Samples) -> Findings:
        found = compare(samples.features, train)
        note = (
            f"{how}; {bench.n} samples v {len(real.train)} training items; real data ± {floor.error:.2g}, of at most "
            f"{bench.n} held-out items; {real.name}"
        )
        return Findings((_row(name, found.corrected, found.error, floor.corrected, samples, note),))

    return judge


def _frechet_row(found: FrechetInterval, floor: FrechetInterval, bench: Bench, samples: Samples) -> Row:
    note = (
        f"as of infinitely many items, 95% interval; of {bench.n} samples v {len(bench.train)} training items as they "
        f"are: {found.distance:.4g}; real data: {len(bench.held_out)} held-out items, "
        f"{floor.low:.3g} to {floor.high:.3g}"
    )
    return Row(
        name="Frechet distance",
        value=found.corrected,
        error=found.error,
        floor=floor.corrected,
        interval=(found.low, found.high),
        better="floor",
        scale=samples.scale,
        note=note,
    )


def _few(bench: Bench, width: int) -> tuple[str, ...]:
    fewest = min(bench.n, len(bench.train), len(bench.held_out))
    if fewest >= FEW and fewest > width:
        return ()
    return (
        f"warning: {bench.n} samples, {len(bench.train)} training and {len(bench.held_out)} held-out items for {width} "
        f"features are few for a Frechet distance, which wants {max(FEW, width + 1)}; read it by its interval, and "
        "compare it with none of another number of items",
    )


def _equal_sets(bench: Bench) -> tuple[Matrix, Matrix, int]:
    """Return equally many training and held-out features, as many as there are samples where that many there are."""
    real = bench.features
    n = min(bench.n, len(real.train), len(real.held_out))
    return _part(real.train, n, bench.seed), _part(real.held_out, n, bench.seed), n


def _by_class(rows: Matrix, items: Items, most: int | None = None) -> Matrix:
    """Return rows in order of their labels, at most so many, in which case classes keep their proportions.

    Data sets are split, and samples asked for, in fixed proportions of the classes. The jackknife leaves out every
    tenth row; in this order it leaves those proportions alone, and so sees only what did vary.
    """
    ordered = rows if items.labels is None else rows[np.argsort(items.labels, kind="stable")]
    if most is None or most >= len(rows):
        return ordered
    return ordered[np.linspace(0, len(rows), most, endpoint=False).astype(np.int64)]


def _part(rows: Matrix, n: int, seed: int) -> Matrix:
    """Return n rows chosen by the seed, or all where there are no more."""
    return rows if len(rows) <= n else rows[permutation(seed, 0, len(rows))[:n].numpy()]


def _frames(clips: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(clips).reshape(-1, *clips.shape[2:])


def _row(name: str, value: float, error: float | None, floor: float, samples: Samples, note: str) -> Row:
    return Row(name=name, value=value, error=error, floor=floor, better="floor", scale=samples.scale, note=note)
