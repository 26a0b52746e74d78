"""Figures of matching: accuracy in which ties are wrong, retrieval, pairs, bias; with intervals and paired tests.

Scores are higher where a text fits a picture better. Nothing here knows of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def chosen_right(scores: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Return which items are answered right, and which are tied at the top, both bool (N,).

    Right means that the right candidate scores above all others: a tie is wrong.

    Args:
        scores: (N, C); NaN where an item has fewer candidates.
        answers: int64 (N,).
    """
    filled = scores.nan_to_num(nan=-math.inf)
    right = filled.gather(1, answers[:, None])
    others = filled.scatter(1, answers[:, None], -math.inf).amax(1, keepdim=True)
    best = torch.maximum(right, others)
    return (right > others)[:, 0], (filled == best).sum(1) > 1


def retrieved(scores: Tensor, answers: Tensor, k: int) -> Tensor:
    """Return whether the right candidate is among the first `k`, bool (N,); candidates that tie with it come first.

    Raises:
        ValueError: `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1.")
    filled = scores.nan_to_num(nan=-math.inf)
    right = filled.gather(1, answers[:, None])
    return (filled >= right).sum(1) <= k  # the right one counts itself


def pair_scores(scores: Tensor) -> dict[str, Tensor]:
    """Return text, image and group score of pairs, bool (N,) each.

    Args:
        scores: (N, 2, 2), scores[:, i, c] of picture i and text c; picture i belongs to text i.

    Source: Thrush et al. 2022, "Winoground", arXiv:2204.03162, equations 1 to 3.
    """
    own = scores.diagonal(dim1=1, dim2=2)  # (N, 2)
    text = (own > torch.stack((scores[:, 0, 1], scores[:, 1, 0]), 1)).all(1)
    image = (own > torch.stack((scores[:, 1, 0], scores[:, 0, 1]), 1)).all(1)
    return {"text": text, "image": image, "group": text & image}


PAIR_CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
"""Shares that scores drawn independently reach."""


def effect_size(scores: Tensor, image_groups: Sequence[int], text_groups: Sequence[int]) -> Tensor:
    """Return Cohen's d of every pair of groups, (K, K): how much more set 0 of the texts fits group i than group j.

    phi of a picture is its mean score with set 0 minus that with set 1; d is the difference of the groups' means over
    the standard deviation of phi over both. Groups without any difference have 0.

    Args:
        scores: (I, T).
        image_groups: Group of each picture.
        text_groups: Set of each text, 0 or 1.

    Source: Caliskan et al. 2017, "Semantics derived automatically from language corpora contain human-like biases".
    """
    sets, groups = torch.tensor(text_groups), torch.tensor(image_groups)
    phi = scores[:, sets == 0].mean(1) - scores[:, sets == 1].mean(1)
    names = groups.unique()
    found = torch.zeros(len(names), len(names), dtype=scores.dtype)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            both = phi[(groups == first) | (groups == second)]
            apart = phi[groups == first].mean() - phi[groups == second].mean()
            found[i, j] = 0.0 if i == j or apart == 0 else apart / both.std(correction=1)
    return found


@dataclass(frozen=True)
class McNemar:
    """Whether two models differ on the same items.

    Args:
        only_first: Items that only the first has right.
        only_second: Items that only the second has right.
        p: Two-sided exact p-value of both being equally likely.
    """

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Tensor | Sequence[bool], second: Tensor | Sequence[bool]) -> McNemar:
    """Return McNemar's exact test of two models on the same items, bool (N,) each.

    Raises:
        ValueError: The numbers of items differ.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions"; the binomial
        form.
    """
    a, b = torch.as_tensor(first, dtype=torch.bool), torch.as_tensor(second, dtype=torch.bool)
    if a.shape != b.shape:
        raise ValueError(f"the models answered {len(a)} and {len(b)} items; a paired test needs the same items.")
    one, two = int((a & ~b).sum()), int((~a & b).sum())
    n = one + two
    tail = sum(math.comb(n, k) for k in range(min(one, two) + 1)) / 2**n
    return McNemar(one, two, min(1.0, 2.0 * tail))
