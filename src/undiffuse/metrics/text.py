"""Measures of text: bits per character, n-gram baselines, unigram entropy, bigram distance.

Text is token ids: a flat int array, or `(N, L)` windows, whose rows are never joined: an n-gram lies
within one row. All information is in bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Tokens = NDArray[Any] | Tensor
_LARGEST_CODE = 2**62


def bits_per_character(nats: float) -> float:
    """Convert nats per token to bits per token."""
    return nats / math.log(2.0)


def as_windows(tokens: Tokens, name: str = "tokens", vocabulary: int | None = None) -> NDArray[np.int64]:
    """Return token ids as an int64 array (N, L); a flat text becomes one row.

    Raises:
        ValueError: The array is empty, not of integers, has more than two axes, or ids outside 0 .. vocabulary - 1.
    """
    ids = tokens.detach().cpu().numpy() if isinstance(tokens, Tensor) else np.asarray(tokens)
    if ids.ndim not in (1, 2) or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{name} is {ids.dtype} of shape {ids.shape}; expected integer ids (L,) or (N, L), not empty.")
    largest = int(ids.max())
    if ids.min() < 0 or (vocabulary is not None and largest >= vocabulary):
        raise ValueError(
            f"{name} has ids from {ids.min()} to {largest}; expected 0 .. {(vocabulary or largest + 1) - 1}."
        )
    return ids.astype(np.int64).reshape(1, -1) if ids.ndim == 1 else ids.astype(np.int64)


@dataclass(frozen=True)
class _Counts:
    """Counts of the n-grams of one order, as sorted codes in base `vocabulary`; looked up, never enumerated."""

    grams: NDArray[np.int64]
    gram_counts: NDArray[np.int64]
    contexts: NDArray[np.int64]
    context_counts: NDArray[np.int64]  # how often the context was followed by anything
    context_types: NDArray[np.int64]  # how many different characters followed it

    @classmethod
    def of(cls, codes: NDArray[np.int64], vocabulary: int) -> _Counts:
        grams, counts = np.unique(codes, return_counts=True)
        contexts, start = np.unique(grams // vocabulary, return_index=True)
        totals = np.add.reduceat(counts, start) if len(counts) else counts
        return cls(grams, counts, contexts, totals, np.diff(np.append(start, len(grams))))


def _lookup(keys: NDArray[np.int64], values: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the value of each wanted key, 0 where it is absent; `keys` are sorted."""
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)


def _codes(windows: NDArray[np.int64], vocabulary: int, order: int) -> NDArray[np.int64]:
    """Code every n-gram of the rows as one integer, the oldest character first. Returns (N, L - order + 1)."""
    length = max(windows.shape[1] - order + 1, 0)
    code = np.zeros((len(windows), length), dtype=np.int64)
    for offset in range(order):
        code = code * vocabulary + windows[:, offset : offset + length]
    return code


@dataclass(frozen=True)
class NGram:
    r"""Interpolated n-gram model with Witten-Bell weights.

    With `c` the last `k - 1` characters, `N(c)` the times it was seen and `T(c)` the number of different
    characters seen after it,

        p_k(x | c) = (N(c x) + T(c) p_{k-1}(x | c')) / (N(c) + T(c)),     p_0 = 1 / vocabulary,

    where `c'` drops the oldest character; an unseen context passes `p_{k-1}` on. Every `p_k` sums to 1
    and has no weight to fit. The first characters of a row use the orders that fit.

    Source: Witten and Bell 1991, "The zero-frequency problem", method C, in the recursive form of
        Chen and Goodman 1999, section 2.4.
    """

    vocabulary: int
    order: int
    counts: tuple[_Counts, ...] = field(repr=False)

    @classmethod
    def fit(cls, text: Tokens, vocabulary: int, order: int) -> NGram:
        """Count the n-grams of `text`, (L,) or (N, L), of orders 1 to `order`.

        Raises:
            ValueError: `order` is below 1, ids are out of range, or `vocabulary ** order` passes 62 bits.
        """
        if order < 1 or vocabulary < 1:
            raise ValueError(f"order={order}, vocabulary={vocabulary}; both must be at least 1.")
        if vocabulary**order > _LARGEST_CODE:
            raise ValueError(
                f"order={order} with {vocabulary} characters does not fit 62-bit codes; use a lower order."
            )
        windows = as_windows(text, "train", vocabulary)
        codes = (_codes(windows, vocabulary, k).ravel() for k in range(1, order + 1))
        return cls(vocabulary, order, tuple(_Counts.of(code, vocabulary) for code in codes if len(code)))

    def probabilities(self, text: Tokens) -> NDArray[np.float64]:
        """Return the probability of every character given those before it in its row, shaped like `as_windows`."""
        windows = as_windows(text, "held_out", self.vocabulary)
        chance = np.full(windows.shape, 1.0 / self.vocabulary)
        for k, counts in enumerate(self.counts, start=1):
            codes = _codes(windows, self.vocabulary, k)
            seen = _lookup(counts.grams, counts.gram_counts, codes)
            before = codes // self.vocabulary
            total = _lookup(counts.contexts, counts.context_counts, before)
            types = _lookup(counts.contexts, counts.context_types, before)
            lower = chance[:, k - 1 :]
            mixed = (seen + types * lower) / np.maximum(total + types, 1)
            chance[:, k - 1 :] = np.where(total > 0, mixed, lower)
        return chance

    def bits(self, text: Tokens) -> float:
        """Return the cross-entropy of `text` in bits per character."""
        return float(-np.log2(self.probabilities(text)).mean())


def ngram_bits(train: Tokens, held_out: Tokens, vocabulary: int, order: int) -> float:
    """Return the cross-entropy of `held_out` under an interpolated n-gram model of `train`, in bits per character.

    Args:
        train: Token ids (L,) or (N, L).
        held_out: Token ids (L,) or (N, L).
        vocabulary: Number of different ids.
        order: Length of the n-grams: 1 ignores context, 2 looks one character back.

    Raises:
        ValueError: See `NGram.fit`.
    """
    return NGram.fit(train, vocabulary, order).bits(held_out)


def unigram_entropy(sequences: Tokens) -> float:
    """Return the entropy of the frequencies of single characters, in bits (plug-in estimate)."""
    counts = np.unique(as_windows(sequences), return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def sequence_entropy(sequences: Tokens) -> float:
    """Return the mean over rows of the entropy of a row's own character frequencies, in bits.

    Repetition within a sample lowers it, which the frequencies of all samples together would hide.
    """
    return float(np.mean([unigram_entropy(row) for row in as_windows(sequences)]))


def bigram_distance(a: Tokens, b: Tokens) -> float:
    """Return the total variation distance between the bigram frequencies of two texts, in [0, 1].

    It is biased upwards for short texts: compare with the value of real text v real text at equal length.

    Raises:
        ValueError: A text has rows shorter than 2.
    """
    first, second = as_windows(a, "a"), as_windows(b, "b")
    if min(first.shape[1], second.shape[1]) < 2:
        raise ValueError("a bigram needs rows of at least 2 characters; give longer text.")
    base = int(max(first.max(), second.max())) + 1
    codes = [_codes(windows, base, 2).ravel() for windows in (first, second)]
    grams, place = np.unique(np.concatenate(codes), return_inverse=True)
    split = len(codes[0])
    share_a = np.bincount(place[:split], minlength=len(grams)) / split
    share_b = np.bincount(place[split:], minlength=len(grams)) / len(codes[1])
    return float(0.5 * np.abs(share_a - share_b).sum())
