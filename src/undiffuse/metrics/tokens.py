"""Judges of token models: bits per token by the bound, n-grams beside it, and the statistics of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from undiffuse.metrics.bench import Bench, Findings, Judge, Samples
from undiffuse.metrics.floor import ratio_to_floor
from undiffuse.metrics.results import Row
from undiffuse.metrics.text import NGram, bigram_distance, bits_per_character, sequence_entropy, unigram_entropy

NGRAM_ORDERS = (2, 3)
MOST_WINDOWS = 512  # the bound costs several network calls a window; its standard error is printed beside it
_UNIT = "bits per token"


def judge_bits(bench: Bench) -> Judge:
    """Bound of the model's bits per token on held-out text, beside interpolated n-grams. Looks at no samples.

    Model and n-grams read the same windows, each by itself: all of the held-out text, or a seeded part of it where
    there are more than `MOST_WINDOWS`. How many samples are drawn changes nothing here.

    Raises:
        ValueError: The model has no `elbo`.
    """
    if bench.elbo is None:
        raise ValueError("this model has no elbo(tokens), so it has no bits per token; leave 'bits' out.")
    rows = _held_out_rows(bench, MOST_WINDOWS)
    windows = bench.held_out.x[rows]

    def judge(samples: Samples) -> Findings:
        nats, error = bench.held_out_bound(rows)
        kind = "exact" if bench.exact else "upper bound (ELBO)"
        given = ", given their conditions" if bench.held_out.cond else ""
        note = f"{kind} over {windows.size} held-out tokens{given}; ± is the standard error"
        bits = (bits_per_character(value) for value in (nats, error))
        row = Row(name="held-out text", value=next(bits), error=next(bits), unit=_UNIT, note=note)
        perplexity = math.exp(nats)  # and by the delta method its error
        chance = Row(name="held-out perplexity", value=perplexity, error=perplexity * error, note=f"per token; {note}")
        return Findings((row, chance, *(_ngram_row(bench, order, windows) for order in NGRAM_ORDERS)))

    return judge


def judge_unigrams(bench: Bench) -> Judge:
    """Entropy of the token frequencies of samples; a collapsed model repeats itself and falls below real text."""

    def judge(samples: Samples) -> Findings:
        note = f"plug-in estimate of {samples.x.size} tokens; floor: held-out text of that length"
        floor = unigram_entropy(_held_out(bench, len(samples.x)))
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
        floor, value = ngram.bits(_held_out(bench, len(samples.x))), ngram.bits(samples.x)
        name = f"samples under the {order}-gram"
        return Findings((Row(name=name, value=value, floor=floor, unit=_UNIT, better="floor", note=note),))

    return judge


def judge_generated(bench: Bench) -> Judge:
    """Perplexity of samples under a reference, and their entropy beside it: a low temperature buys one with the other.

    Raises:
        ValueError: There is no reference.
    """
    if bench.reference is None:
        raise ValueError(
            "'generative' needs a reference, a model that reads from left to right: reference=FOLDER (--reference)."
        )
    reference = bench.reference

    def judge(samples: Samples) -> Findings:
        real = _held_out(bench, len(samples.x))
        found, floor = (reference.score(x, bench.spec) for x in (samples.x, real))
        note = f"per token of {reference.name}, {int(found.tokens.sum())} of them; floor: held-out text of that length"
        beside = "mean over samples of the entropy of each one's tokens; read it with the perplexity"
        return Findings(
            (
                Row(name="generative perplexity", value=found.perplexity, floor=floor.perplexity, note=note),
                Row(
                    name="entropy per sample",
                    value=sequence_entropy(samples.x),
                    floor=sequence_entropy(real),
                    unit="bits",
                    better="floor",
                    note=beside,
                ),
            )
        )

    return judge


TOKEN_JUDGES: dict[str, Callable[[Bench], Judge]] = {
    "bits": judge_bits,
    "unigrams": judge_unigrams,
    "bigrams": judge_bigrams,
    "plausibility": judge_plausibility,
    "generative": judge_generated,
}


def _ngram(bench: Bench, order: int) -> NGram:
    return NGram.fit(_training_text(bench), bench.spec.categories, order)


def _ngram_row(bench: Bench, order: int, windows: NDArray[Any]) -> Row:
    note = f"interpolated, counted on {_training_text(bench).size} training tokens; on the same {windows.size} tokens"
    return Row(name=f"held-out text, {order}-gram", value=_ngram(bench, order).bits(windows), unit=_UNIT, note=note)


def _training_text(bench: Bench) -> NDArray[Any]:
    """Return the whole text where there is one, else the items."""
    return bench.train.x if bench.train.text is None else bench.train.text


def _held_out(bench: Bench, most: int) -> NDArray[Any]:
    """Return held-out windows (N, L): all, or `most` of them chosen by the seed."""
    return bench.held_out.x[_held_out_rows(bench, most)]


def _held_out_rows(bench: Bench, most: int) -> NDArray[np.int64]:
    return np.random.default_rng(bench.seed).permutation(len(bench.held_out))[:most]
