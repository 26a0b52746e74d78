"""Judges of token models: bits per token by the bound, n-grams beside it, and the statistics of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from undiffuse.metrics.bench import Bench, Findings, Items, Judge, Samples
from undiffuse.metrics.floor import ratio_to_floor
from undiffuse.metrics.results import Row
from undiffuse.metrics.text import NGram, bigram_distance, bits_per_character, unigram_entropy

NGRAM_ORDERS = (2, 3)
_UNIT = "bits per token"


def judge_bits(bench: Bench) -> Judge:
    """Bound of the model's bits per token on held-out text, beside interpolated n-grams. Looks at no samples.

    Raises:
        ValueError: The model has no `elbo`.
    """
    if bench.elbo is None:
        raise ValueError("this model has no elbo(tokens), so it has no bits per token; leave 'bits' out.")
    elbo, held_out = bench.elbo, bench.held_out.x

    def judge(samples: Samples) -> Findings:
        windows = held_out[: bench.n]
        nats, error = (bits_per_character(float(value)) for value in elbo(torch.from_numpy(windows)))
        note = f"upper bound (ELBO) over {windows.size} held-out tokens; ± is the standard error"
        row = Row(name="held-out text", value=nats, error=error, unit=_UNIT, note=note)
        return Findings((row, *(_ngram_row(bench, order) for order in NGRAM_ORDERS)))

    return judge


def judge_unigrams(bench: Bench) -> Judge:
    """Entropy of the token frequencies of samples; a collapsed model repeats itself and falls below real text."""

    def judge(samples: Samples) -> Findings:
        note = f"plug-in estimate of {samples.x.size} tokens; floor: held-out text of that length"
        floor = unigram_entropy(_as_many(bench, samples))
        value = unigram_entropy(samples.x)
        return Findings(
            (Row(name="unigram entropy", value=value, floor=floor, unit="bits", better="floor", note=note),)
        )

    return judge


def judge_bigrams(bench: Bench) -> Judge:
    """Total variation distance of bigram frequencies to training text, as a multiple of held-out v training text."""

    def judge(samples: Samples) -> Findings:
        ratio = ratio_to_floor(bigram_distance, samples.x, bench.train.x, bench.held_out.x, seed=bench.seed)
        return Findings((Row.of_ratio("bigram distance / floor", ratio),))

    return judge


def judge_plausibility(bench: Bench) -> Judge:
    """Cross-entropy of samples under the 3-gram of the training text: high is gibberish, low is repetition."""
    order = max(NGRAM_ORDERS)
    ngram = _ngram(bench, order)

    def judge(samples: Samples) -> Findings:
        note = f"{samples.x.size} tokens; floor: as much held-out text"
        floor, value = ngram.bits(_as_many(bench, samples)), ngram.bits(samples.x)
        name = f"samples under the {order}-gram"
        return Findings((Row(name=name, value=value, floor=floor, unit=_UNIT, better="floor", note=note),))

    return judge


TOKEN_JUDGES: dict[str, Callable[[Bench], Judge]] = {
    "bits": judge_bits,
    "unigrams": judge_unigrams,
    "bigrams": judge_bigrams,
    "plausibility": judge_plausibility,
}


def _ngram(bench: Bench, order: int) -> NGram:
    return NGram.fit(_whole(bench.train), bench.spec.categories, order)


def _ngram_row(bench: Bench, order: int) -> Row:
    train, held_out = _whole(bench.train), _whole(bench.held_out)
    note = f"interpolated, counted on {train.size} training tokens, on {held_out.size} held-out ones"
    return Row(name=f"held-out text, {order}-gram", value=_ngram(bench, order).bits(held_out), unit=_UNIT, note=note)


def _whole(items: Items) -> NDArray[Any]:
    """Return the whole text where there is one, else the items."""
    return items.x if items.text is None else items.text


def _as_many(bench: Bench, samples: Samples) -> NDArray[Any]:
    """Return as many held-out windows as there are samples, or all."""
    rows = np.random.default_rng(bench.seed).permutation(len(bench.held_out))
    return bench.held_out.x[rows[: len(samples.x)]]
