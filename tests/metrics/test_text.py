from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from undiffuse.metrics import NGram, bigram_distance, bits_per_character, ngram_bits, unigram_entropy


def _markov_chain(length: int, stay: float, seed: int) -> np.ndarray:
    flips = np.random.default_rng(seed).random(length) >= stay
    return (np.cumsum(flips) % 2).astype(np.int64)


def test_a_bigram_model_reaches_the_entropy_rate_of_a_markov_chain():
    stay, n = 0.9, 200_000
    rate = -stay * math.log2(stay) - (1 - stay) * math.log2(1 - stay)
    train, held_out = _markov_chain(n, stay, 0), _markov_chain(n, stay, 1)
    error = math.sqrt(stay * (1 - stay) / n) * math.log2(stay / (1 - stay))  # of the mean of -log2 p over held-out
    for order in (2, 3, 4):
        assert ngram_bits(train, held_out, 2, order) == pytest.approx(rate, abs=5 * error + 2e-4)
    assert ngram_bits(train, held_out, 2, 1) == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngram_probabilities_sum_to_one_after_every_context(order):
    text = np.random.default_rng(0).integers(0, 3, size=12)
    model = NGram.fit(text, vocabulary=4, order=order)  # the fourth character is never seen
    for context in itertools.product(range(4), repeat=order):
        rows = np.array([[*context, last] for last in range(4)])
        assert model.probabilities(rows)[:, -1].sum() == pytest.approx(1.0, abs=1e-12)


def test_witten_bell_by_hand():
    # "aab": N(a) = 2, N(b) = 1, two types: p1(a) = (2 + 2/2) / 5, p1(b) = (1 + 2/2) / 5.
    # After a: one a, one b, two types: p2(b | a) = (1 + 2 p1(b)) / 4.
    probabilities = NGram.fit(np.array([0, 0, 1]), vocabulary=2, order=2).probabilities(np.array([0, 1]))
    np.testing.assert_allclose(probabilities, [[3 / 5, (1 + 2 * 2 / 5) / 4]])


def test_an_ngram_never_spans_two_windows():
    windows = np.array([[0, 0], [1, 1]])
    assert NGram.fit(windows, 2, 2).probabilities(np.array([0, 1]))[0, 1] < 0.35  # "01" would be a third of the bigrams
    assert bigram_distance(windows, np.array([[1, 1], [0, 0]])) == 0.0


def test_rows_shorter_than_the_order_use_the_orders_that_fit():
    assert ngram_bits(np.array([[0, 1], [1, 0]]), np.array([[0, 1]]), 2, 5) == ngram_bits(
        np.array([[0, 1], [1, 0]]), np.array([[0, 1]]), 2, 2
    )


def test_unigram_entropy_is_log_of_the_number_of_equally_frequent_characters():
    assert unigram_entropy(np.array([[0, 5, 9, 2]] * 3)) == pytest.approx(2.0)
    assert unigram_entropy(np.zeros(7, dtype=np.int64)) == 0.0


def test_bigram_distance_is_the_total_variation_distance():
    a, b = np.array([[0, 1], [0, 1], [1, 0], [2, 2]]), np.array([[0, 1], [1, 1]])
    assert bigram_distance(a, b) == pytest.approx(0.5 * (abs(0.5 - 0.5) + 0.25 + 0.25 + 0.5))
    assert bigram_distance(a, a[::-1]) == 0.0
    assert bigram_distance(np.array([0, 0, 0]), np.array([1, 1])) == 1.0


def test_one_nat_is_log2_of_e_bits():
    assert bits_per_character(math.log(2)) == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: ngram_bits(np.array([0, 4]), np.array([0]), 4, 1),
        lambda: ngram_bits(np.array([0.0, 1.0]), np.array([0]), 4, 1),
        lambda: ngram_bits(np.array([0, 1]), np.array([], dtype=int), 4, 1),
        lambda: ngram_bits(np.array([0, 1]), np.array([0]), 4, 0),
        lambda: ngram_bits(np.array([0, 1]), np.array([0]), 256, 8),
        lambda: bigram_distance(np.array([[1], [2]]), np.array([1, 2])),
    ],
)
def test_bad_text_is_refused(call):
    with pytest.raises(ValueError, match=r"expected|at least|lower order"):
        call()
