"""Laws of sequences whose masks open in groups, added up over all paths: no sampling error."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import PURITY
from undiffuse.process.categorical import CategoricalProcess

Rule = Literal["random", "purity", "greedy"]


def grouped_law(denoiser: Denoiser, groups: Sequence[int], rule: Rule) -> Tensor:
    """Return the law of sequences when groups of masks open at once, each from one answer: float64 (K,) * L.

    Args:
        denoiser: Of an absorbing process; with `Sharpen` around it places go by the purity before sharpening.
        groups: How many masks open with each answer; they add up to the length L.
        rule: Places at random, by successive draws in proportion to purity, or the purest.
    """
    process = denoiser.process
    assert isinstance(process, CategoricalProcess)
    mask, length = process.classes, sum(groups)
    law: dict[tuple[int, ...], float] = {(mask,) * length: 1.0}
    for count in groups:
        after: dict[tuple[int, ...], float] = {}
        for state, chance in law.items():
            post = denoiser(torch.tensor([state]), 1.0)
            probs = post.probs[0]
            purity = post.extras.get(PURITY, post.probs.amax(-1))[0]
            masks = [place for place, token in enumerate(state) if token == mask]
            weight = torch.ones(len(masks), dtype=torch.float64) if rule == "random" else purity[masks]
            for chosen, share in _choices(weight, count, rule == "greedy").items():
                places = [masks[i] for i in chosen]
                for tokens in itertools.product(range(mask), repeat=count):
                    reached, p = list(state), chance * share
                    for place, token in zip(places, tokens, strict=True):
                        reached[place], p = token, p * float(probs[place, token])
                    after[tuple(reached)] = after.get(tuple(reached), 0.0) + p
        law = after
    table = torch.zeros((mask,) * length, dtype=torch.float64)
    for state, chance in law.items():
        table[state] = chance
    return table


def _choices(weight: Tensor, count: int, greedy: bool) -> dict[tuple[int, ...], float]:
    """Return the law of the set of places that successive draws choose."""
    if greedy:
        return {tuple(sorted(weight.topk(count).indices.tolist())): 1.0}
    law: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(len(weight)), count):
        chance, left = 1.0, float(weight.sum())
        for place in order:
            chance, left = chance * float(weight[place]) / left, left - float(weight[place])
        law[tuple(sorted(order))] = law.get(tuple(sorted(order)), 0.0) + chance
    return law
