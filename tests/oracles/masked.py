"""The two small joints of the masked-diffusion oracles, and exact propagation of laws over all states."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.papers.opening_laws import corrected_law, first_hitting_law
from undiffuse.papers.token_chains import total_variation
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess
from undiffuse.process.keep import KeepSchedule, LinearKeep
from undiffuse.sampling.ancestral import transition_probs
from undiffuse.sampling.plan import row_time

__all__ = ["corrected_law", "first_hitting_law", "total_variation"]  # passed on


def seeded_normal(*shape: int) -> Tensor:
    """What torch.randn gives on the CPU after torch.manual_seed(3), without touching the global generator."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def triple_joint() -> Tensor:
    """p(x) proportional to exp(1.5 g), three tokens of three classes; entropy 2.7514 nats."""
    return _softmax(1.5 * seeded_normal(3, 3, 3))


def binary_joint() -> Tensor:
    """The same for six tokens of two classes; entropy 3.6096 nats."""
    return _softmax(1.5 * seeded_normal(2, 2, 2, 2, 2, 2))


def joint_denoiser(
    table: Tensor, kind: CategoricalKind = "absorbing", keep: KeepSchedule | None = None
) -> JointDenoiser:
    """The exact denoiser of `table`."""
    return JointDenoiser(table, CategoricalProcess(kind, table.shape[0], keep or LinearKeep()))


def all_states(states: int, length: int) -> Tensor:
    """Every sequence, int64 (states^length, length), the last token running fastest."""
    return torch.tensor(list(itertools.product(range(states), repeat=length)))


def sequence_law(token_laws: Tensor) -> Tensor:
    """Laws of independent tokens (B, L, S) -> laws of sequences (B, S^L), ordered as `all_states`."""
    law = token_laws[:, 0]
    for position in range(1, token_laws.shape[1]):
        law = (law[:, :, None] * token_laws[:, None, position]).flatten(1)
    return law


def ancestral_law(denoiser: JointDenoiser, grid: Tensor, law: Tensor | None = None) -> Tensor:
    """Push a law over all sequences (default: the prior) through the steps of `Ancestral`, without sampling."""
    process, length = denoiser.process, denoiser.length
    x = all_states(process.states, length)
    if law is None:
        noise = process.marginal(
            torch.full((1, length, process.classes), 1 / process.classes, dtype=torch.float64), 1.0
        )
        law = sequence_law(noise)[0]
    for t, s in itertools.pairwise(row_time(row) for row in grid):
        reached = law > 0
        steps = sequence_law(transition_probs(process, x[reached], denoiser(x[reached], t), t, s))
        law = law[reached] @ steps
    return law


def data_law(law: Tensor, denoiser: JointDenoiser) -> Tensor:
    """The part of a law over states that lies on clean sequences, as a table (K,) * L."""
    process = denoiser.process
    table = law.reshape((process.states,) * denoiser.length)
    return table[(slice(process.classes),) * denoiser.length]


def _softmax(logits: Tensor) -> Tensor:
    return logits.flatten().softmax(0).reshape(logits.shape)
