"""Judges of images, video, volumes, signals and vectors, and which of them suit which data.

Each is fitted once on real data, then called once per guidance scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from undiffuse.metrics.agreement import LabelClassifier, SupportVectorClassifier, label_agreement
from undiffuse.metrics.bench import Bench, Findings, Judge, Samples
from undiffuse.metrics.energy import energy_distance, sliced_wasserstein
from undiffuse.metrics.extractors import kind_of
from undiffuse.metrics.feature_judges import FEATURE_JUDGES, FRECHET
from undiffuse.metrics.floor import Distance, ratio_to_floor
from undiffuse.metrics.neighbours import NEAR_DUPLICATE_QUANTILE, memorisation
from undiffuse.metrics.networks import NetworkFeatures, NetworkJudge
from undiffuse.metrics.results import Row, Series

AGREEMENT = "label agreement"
_POINTS_DRAWN = 2000


def judge_agreement(bench: Bench) -> Judge:
    """Share of samples that an independent classifier gives the label asked for.

    Raises:
        ValueError: The data or the model has no labels.
    """
    train, held_out, wanted = bench.train, bench.held_out, bench.labels
    if train.labels is None or held_out.labels is None or wanted is None:
        raise ValueError("label agreement needs labelled data and a model with labels; leave 'agreement' out.")
    classifier, described = _label_judge(bench)
    own = label_agreement(classifier, held_out.x, held_out.labels)

    def judge(samples: Samples) -> Findings:
        found = label_agreement(classifier, samples.x, wanted)
        note = (
            f"{found.n} samples; the judge, {described}, is right for "
            f"{own.share:.4f} ± {own.error:.2g} of {own.n} held-out ones; ± is the binomial error"
        )
        row = Row(name=AGREEMENT, value=found.share, error=found.error, floor=own.share, better="higher", note=note)
        return Findings((replace(row, scale=samples.scale),))

    return judge


def _label_judge(bench: Bench) -> tuple[LabelClassifier, str]:
    """Return the classifier whose features are used, where it knows the classes, else a support vector machine."""
    classes, bounds = bench.spec.classes, bench.spec.range
    given = bench.extractor
    by_name = isinstance(given, str) and kind_of(given, bench.spec, labelled=True) == "classifier"
    extractor = bench.features.extractor if by_name else given
    network = extractor.classifier if isinstance(extractor, NetworkFeatures) else None
    if network is not None and bounds is not None and sorted(network.config.classes) == sorted(classes):
        return NetworkJudge(network, classes, bounds), "the classifier whose features are used"
    machine = SupportVectorClassifier(seed=bench.seed).fit(bench.train.x, bench.train.labels)
    return machine, f"a support vector machine fitted on {len(bench.train)} real items"


def judge_memorisation(bench: Bench) -> Judge:
    """Nearest-neighbour distances to equally many training and held-out items."""
    train, held_out = bench.train.x, bench.held_out.x

    def judge(samples: Samples) -> Findings:
        found = memorisation(samples.x, train, held_out, seed=bench.seed)
        sizes = f"nearest of {found.references} training v {found.references} held-out items"
        duplicates = (
            f"of {bench.n} samples, nearer than {found.threshold:.3g} to one of {len(train)} training items, as "
            f"{NEAR_DUPLICATE_QUANTILE:.0%} of held-out items are"
        )
        to_row = _row_maker(samples.scale)
        rows = (
            to_row(
                "nearest distance, train / held-out", found.median_ratio, None, 1.0, f"medians, {sizes}; low: memorised"
            ),
            to_row("closer to train", found.closer_to_train, found.closer_error, 0.5, f"share, {sizes}; ± is binomial"),
            to_row("near-duplicates", found.near_duplicates, None, found.expected_duplicates, duplicates),
        )
        nearest = {"to_train": found.to_train.tolist(), "to_held_out": found.to_held_out.tolist()}
        return Findings(rows, {"nearest": nearest})

    return judge


def judge_energy(bench: Bench) -> Judge:
    """Energy distance as a multiple of real v real, with the unbiased estimate beside it."""

    def distance(x: NDArray[Any], y: NDArray[Any]) -> float:
        return energy_distance(x, y, estimator="v")

    def judge(samples: Samples) -> Findings:
        value = energy_distance(samples.x, bench.held_out.x)
        note = f"unbiased, {bench.n} samples v {len(bench.held_out)} held-out items; 0 for equal laws"
        rows = (
            _ratio_row("energy distance / floor", distance, bench, samples),
            _row_maker(samples.scale)("energy distance", value, None, 0.0, note),
        )
        return Findings(rows, _scatter(bench, samples))

    return judge


def judge_sliced_wasserstein(bench: Bench) -> Judge:
    """Sliced 1-Wasserstein distance as a multiple of real v real."""

    def distance(x: NDArray[Any], y: NDArray[Any]) -> float:
        return sliced_wasserstein(x, y, seed=bench.seed)

    def judge(samples: Samples) -> Findings:
        return Findings((_ratio_row("sliced Wasserstein / floor", distance, bench, samples),))

    return judge


JUDGES: dict[str, Callable[[Bench], Judge]] = {
    "agreement": judge_agreement,
    **FEATURE_JUDGES,
    "memorisation": judge_memorisation,
    "energy": judge_energy,
    "sliced-wasserstein": judge_sliced_wasserstein,
}


_FEATURES = ("frechet", "kid", "precision-recall", "memorisation")
_BY_KIND = {
    "image": _FEATURES,
    "video": ("frechet", "frames", "kid", "precision-recall", "memorisation"),
    "volume": _FEATURES,
    "signal": _FEATURES,
    "vector": ("energy", "sliced-wasserstein"),
}


def suitable_judges(bench: Bench) -> tuple[str, ...]:
    """Return the names of the judges that suit the data."""
    labelled = bench.labels is not None and bench.train.labels is not None and bench.held_out.labels is not None
    return ("agreement", *_BY_KIND[bench.spec.kind]) if labelled else _BY_KIND[bench.spec.kind]


def guidance_series(rows: tuple[Row, ...]) -> dict[str, Series]:
    """Return agreement and Frechet ratio over the guidance scale, where both were measured at two scales or more."""
    agreement = {row.scale: row for row in rows if row.name == AGREEMENT and row.scale is not None}
    frechet = {row.scale: row for row in rows if row.name == FRECHET and row.scale is not None}
    scales = sorted(agreement.keys() & frechet.keys())
    if len(scales) < 2:
        return {}
    series: Series = {"scale": scales}
    for name, curve in (("agreement", agreement), ("frechet_ratio", frechet)):
        series[name] = [curve[scale].value for scale in scales]
        series[f"{name}_error"] = [curve[scale].error or 0.0 for scale in scales]
    return {"guidance": series}


def _row_maker(scale: float | None) -> Callable[[str, float, float | None, float, str], Row]:
    def make(name: str, value: float, error: float | None, floor: float, note: str) -> Row:
        return Row(name=name, value=value, error=error, floor=floor, better="floor", scale=scale, note=note)

    return make


def _ratio_row(name: str, distance: Distance, bench: Bench, samples: Samples) -> Row:
    ratio = ratio_to_floor(distance, samples.x, bench.train.x, bench.held_out.x, seed=bench.seed)
    return Row.of_ratio(name, ratio, scale=samples.scale)


def _scatter(bench: Bench, samples: Samples) -> dict[str, Series]:
    """Return the first two features of samples and real items, for a picture; nothing for other data than points."""
    if samples.x.ndim != 2 or samples.x.shape[1] < 2:
        return {}
    count = min(len(samples.x), len(bench.train), _POINTS_DRAWN)
    sets = {"samples": samples.x, "data": bench.train.x}
    columns = {f"{name}_{axis}": rows[:count, k].tolist() for name, rows in sets.items() for k, axis in enumerate("xy")}
    return {"scatter": columns}
