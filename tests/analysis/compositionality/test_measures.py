"""Figures of matching against truth tables, closed forms and Monte Carlo."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from undiffuse.analysis.compositionality.measures import (
    PAIR_CHANCE,
    chosen_right,
    effect_size,
    mcnemar,
    pair_scores,
    retrieved,
)
from undiffuse.metrics.shares import share


def test_the_truth_table_of_pairs():
    """All 16 sign patterns of the four comparisons that are possible, and ties, by the definition in words."""
    seen = set()
    for values in itertools.product((0.0, 1.0, 2.0, 3.0), repeat=4):
        a, b, c, d = values  # scores[i, c]: picture 0 with texts 0 and 1, picture 1 with texts 0 and 1
        found = {k: bool(v) for k, v in pair_scores(torch.tensor([[[a, b], [c, d]]])).items()}
        signs = (a > b, d > c, a > c, d > b)
        seen.add(signs)
        assert found == {"text": signs[0] and signs[1], "image": signs[2] and signs[3], "group": all(signs)}
        assert found["group"] <= min(found["text"], found["image"])
    assert len(seen) == 14  # a > b, b >= d, d > c, c >= a is a circle, and so is its opposite


def test_random_scores_reach_chance():
    """20 000 pairs: within 4 standard errors, false alarm below 1e-4 each."""
    scores = torch.rand(20_000, 2, 2, generator=torch.Generator().manual_seed(0))
    for name, hits in pair_scores(scores).items():
        found = share(hits)
        assert abs(found.value - PAIR_CHANCE[name]) < 4 * found.error


def test_ties_are_wrong_and_counted():
    scores = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, math.nan]])
    right, tied = chosen_right(scores, torch.tensor([0, 0, 0, 1]))
    assert right.tolist() == [True, False, False, True]
    assert tied.tolist() == [False, True, True, False]
    assert retrieved(scores, torch.tensor([0, 0, 0, 1]), 1).tolist() == [True, False, False, True]
    assert retrieved(scores, torch.tensor([0, 0, 0, 0]), 2).tolist() == [True, True, False, True]


def test_the_paired_test_is_a_sign_test():
    first = [True] * 8 + [False] * 2 + [True] * 5
    second = [False] * 8 + [True] * 2 + [True] * 5
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (8, 2)
    assert found.p == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert mcnemar(first, first).p == 1.0
    with pytest.raises(ValueError, match="the same items"):
        mcnemar(first, second[:-1])


def test_groups_that_do_not_differ_have_no_effect():
    phi = torch.tensor([1.0, 2.0, 3.0, 4.0])
    scores = torch.stack([phi, torch.zeros(4), 2 * phi, phi], 1)  # sets 0 and 1 in turn
    groups, sets = [0, 0, 1, 1], [0, 1, 0, 1]
    found = effect_size(scores, groups, sets)
    assert found[0, 1] == -found[1, 0]
    own = torch.tensor([1.0, 2.0, 3.0, 4.0])  # mean of set 0 minus mean of set 1
    assert float(found[0, 1]) == pytest.approx(float((own[:2].mean() - own[2:].mean()) / own.std()))
    assert effect_size(scores, [1, 1, 0, 0], sets)[0, 1] == found[1, 0]
    assert effect_size(torch.cat([scores[:2], scores[:2]]), groups, sets).abs().max() == 0
