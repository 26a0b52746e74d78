"""Laws of first-hitting sampling by enumeration of all orders and all sequences: tables without sampling error."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.papers.token_chains import all_sequences
from undiffuse.sampling.first_hitting import FirstHitting, OpeningStage


def first_hitting_law(
    denoiser: JointDenoiser, steps: int | None = None, start: Tensor | None = None, **options: Any
) -> Tensor:
    """Return the law of `FirstHitting` from `start` (L,), default all masks, as a table (K,) * L, over all orders.

    The plan, the places and the laws of the classes are the solver's own, for a batch whose rows are all pairs of an
    order and a clean sequence. What it would have to draw on the way is known for each, and so is how likely that is.
    """
    process, length = denoiser.process, denoiser.length
    start = torch.full((length,), process.classes) if start is None else start
    clean, orders = all_sequences(process.classes, length), torch.tensor(list(itertools.permutations(range(length))))
    x, ranks = clean.repeat(len(orders), 1), orders.repeat_interleave(len(clean), 0)
    solver = FirstHitting(steps=steps, **options)
    noise = InjectedNoise({("order", 0): ranks.double() / length}, KeyedNoise(0, range(len(x))))
    plan = solver.prepare(process, None, start.expand(len(x), -1), noise)
    known = denoiser(all_sequences(process.states, length), 1.0).logits
    code = process.states ** torch.arange(length - 1, -1, -1)
    state, past = start.expand(len(x), -1), ()
    chance = ((state == x) | (state == process.classes)).all(1).double()
    for stage in plan.stages:
        assert isinstance(stage, OpeningStage)
        answers = (known[state @ code], *past)
        at = solver.places(stage, state, answers[0])
        law = solver.law(stage, at, answers)
        one = (law / law.sum(-1, keepdim=True)).gather(-1, x.gather(1, at)[..., None])[..., 0]
        opens = stage.active & (state.gather(1, at) == process.classes)
        chance = chance * torch.where(opens, one, 1.0).prod(1)
        state = state.scatter(1, at, torch.where(opens, x.gather(1, at), state.gather(1, at)))
        past = answers[: solver.order - 1]
    total = chance.view(len(orders), -1).mean(0)
    return total.reshape((process.classes,) * length)


def corrected_law(law: Tensor, denoiser: JointDenoiser, free: Sequence[int] | None = None) -> Tensor:
    """Return the law after one step of Gibbs sampling at a uniformly drawn place among `free`, default all."""
    places = range(law.ndim) if free is None else free
    conditional = (denoiser.table / denoiser.table.sum(place, keepdim=True) for place in places)
    return torch.stack(
        [law.sum(place, keepdim=True) * given for place, given in zip(places, conditional, strict=True)]
    ).mean(0)
