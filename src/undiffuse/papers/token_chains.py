r"""Laws of token chains, propagated exactly over all sequences: no sampling error in the tables that compare them.

A law is a vector over all states of the tokens that are not known. Known tokens are drawn anew in every step,
independently of the rest, so they never need a state: a step's matrix is the average over their draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.process.categorical import CategoricalProcess

Method = Literal["replacement", "clamp", "clamp at 0"]
StepLaw = Callable[[CategoricalProcess, Tensor, Tensor, float, float], Tensor]
"""From process, x_t (B, L), the denoiser's probabilities (B, L, K), t and s to p(x_s | x_t) of each token."""


def small_joint() -> Tensor:
    """Return p(x) prop. to exp(1.5 g) over 3 tokens of 3 classes, g normal of seed 3: entropy 2.7514 nats."""
    logits = 1.5 * torch.randn(3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return logits.flatten().softmax(0).view(3, 3, 3)


def all_sequences(states: int, length: int) -> Tensor:
    """Return every sequence, int64 (states^length, length), the last token running fastest."""
    return torch.tensor(list(itertools.product(range(states), repeat=length))).view(-1, length)


def sequence_law(token_laws: Tensor) -> Tensor:
    """Map laws of independent tokens (B, L, S) to laws of sequences (B, S^L), ordered as `all_sequences`."""
    law = token_laws.new_ones(len(token_laws), 1)
    for position in range(token_laws.shape[1]):
        law = (law[:, :, None] * token_laws[:, None, position]).flatten(1)
    return law


def marginal_step(process: CategoricalProcess, x: Tensor, probs: Tensor, t: float, s: float) -> Tensor:
    """Return sum_j q(x_s | x_t, j) p(j): what `Ancestral` draws from."""
    return process.reverse(x, probs, t, s)


def plug_in_step(process: CategoricalProcess, x: Tensor, probs: Tensor, t: float, s: float) -> Tensor:
    """Return q(x_t | x_s) sum_j q(x_s | j) r(j), normalised: the step of multinomial diffusion and VQ-DDM."""
    reached = process.transition_matrix(t, s)[:, x].movedim(0, -1)  # (B, L, states)
    joint = (probs @ process.transition_matrix(s, 0.0)[: process.classes]) * reached
    return joint / joint.sum(-1, keepdim=True)


@dataclass(frozen=True)
class TokenChain:
    """The matrices of a chain of equal steps from noise to data, over the states of the tokens that are not known.

    Args:
        down: p(x_s | x_t) of each step, (S^n, S^n).
        up: q(x_t | x_s) of each step.
        first: Law at t = 1.
        shape: (S,) * n.
        classes: K.
    """

    down: list[Tensor]
    up: list[Tensor]
    first: Tensor
    shape: tuple[int, ...]
    classes: int

    def law(self, passes: int = 1) -> Tensor:
        """Return the law at t = 0 with each step but the last taken `passes` times: float64 (K,) * n."""
        law = self.first
        for number, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            law = law @ down
            for _ in range(passes - 1 if number < len(self.down) - 1 else 0):
                law = law @ up @ down
        return law.view(self.shape)[(slice(self.classes),) * len(self.shape)]


def token_chain(
    denoiser: Denoiser,
    length: int,
    steps: int,
    known: Mapping[int, int] | None = None,
    method: Method = "replacement",
    step_law: StepLaw = marginal_step,
) -> TokenChain:
    """Compute the matrices of a chain.

    Args:
        denoiser: Of a categorical process.
        length: Tokens of a sequence.
        steps: Number of steps N.
        known: Position -> clean token.
        method: "replacement" draws known tokens from q(x_t | x_0) before each step, "clamp" gives them clean, and
            "clamp at 0" also tells the denoiser that their time is 0.
        step_law: What tokens of one step are drawn from.
    """
    process, known = denoiser.process, known or {}
    assert isinstance(process, CategoricalProcess)
    free = [position for position in range(length) if position not in known]
    states = all_sequences(process.states, len(free))
    down, up = [], []
    for t, s in itertools.pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()):
        shown, chances = _shown(process, known, t, method)
        reached = (_noise(process, t) > 0)[states].all(1)  # at t = 1 not every state occurs
        x = torch.cat([_with_known(states[reached], free, {**known, **row}, length) for row in shown])
        times = torch.full((1, length), t, dtype=torch.float64)
        times[:, list(known)] = 0.0
        post = denoiser(x, times if method == "clamp at 0" else t)
        laws = sequence_law(step_law(process, x, post.probs, t, s)[:, free]).unflatten(0, (len(shown), -1))
        matrix = laws.new_zeros(len(states), len(states))
        matrix[reached] = (torch.tensor(chances, dtype=torch.float64)[:, None, None] * laws).sum(0)
        down.append(matrix)
        up.append(sequence_law(process.transition_matrix(t, s)[states]))
    first = sequence_law(_noise(process, 1.0).expand(1, len(free), -1))[0]
    return TokenChain(down, up, first, (process.states,) * len(free), process.classes)


def opening_law(denoiser: JointDenoiser, known: Mapping[int, int]) -> Tensor:
    """Return the law of `FirstHitting`, one mask at a time in random order, with known tokens given, (K,) * n."""
    free = [position for position in range(denoiser.length) if position not in known]
    classes = denoiser.process.classes
    sequences = all_sequences(classes, len(free))
    orders = list(itertools.permutations(range(len(free))))
    total = torch.zeros(len(sequences), dtype=torch.float64)
    for order in orders:
        x = _with_known(torch.full_like(sequences, classes), free, known, denoiser.length)
        drawn = torch.ones(len(sequences), dtype=torch.float64)
        for place in order:
            probs = denoiser(x, 1.0).probs[:, free[place]]
            drawn = drawn * probs.gather(1, sequences[:, place, None])[:, 0]
            x[:, free[place]] = sequences[:, place]
        total += drawn / len(orders)
    return total.view((classes,) * len(free))


def conditional(table: Tensor, known: Mapping[int, int]) -> Tensor:
    """Return the exact law of the unknown tokens given the known ones, from a joint (K,) * L."""
    place: tuple[int | slice, ...] = tuple(known.get(position, slice(None)) for position in range(table.ndim))
    part = table[place]
    return part / part.sum()


def total_variation(p: Tensor, q: Tensor) -> float:
    """Return half the sum of absolute differences."""
    return 0.5 * float((p - q).abs().sum())


def _shown(
    process: CategoricalProcess, known: Mapping[int, int], t: float, method: Method
) -> tuple[list[dict[int, int]], list[float]]:
    """Return what the denoiser is shown at the known positions, and how likely each is."""
    if method != "replacement":
        return [dict(known)], [1.0]
    matrix = process.transition_matrix(t, 0.0)
    rows, chances = [], []
    for row in itertools.product(range(process.states), repeat=len(known)):
        chance = math.prod(float(matrix[clean, state]) for clean, state in zip(known.values(), row, strict=True))
        if chance > 0:
            rows.append(dict(zip(known, row, strict=True)))
            chances.append(chance)
    return rows, chances


def _noise(process: CategoricalProcess, t: float) -> Tensor:
    """Return the law of one token at `t` whose clean class is uniform, (states,)."""
    return process.marginal(torch.full((1, process.classes), 1 / process.classes, dtype=torch.float64), t)[0]


def _with_known(x: Tensor, free: list[int], known: Mapping[int, int], length: int) -> Tensor:
    """Put the unknown tokens (B, n) and the known ones at their positions, (B, length)."""
    whole = x.new_empty(len(x), length)
    whole[:, free] = x
    for position, token in known.items():
        whole[:, position] = token
    return whole
