"""The discrete-time bound, summed over all noisy sequences; see also tests/training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undiffuse.denoisers.elbo import elbo, step_kl
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.noise import KeyedNoise
from undiffuse.papers.token_chains import all_sequences, small_joint, token_chain
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess
from undiffuse.process.keep import KeepSchedule, LinearKeep, RootCosineKeep


def exact_bound(denoiser: JointDenoiser, tokens: Tensor, levels: int) -> Tensor:
    """Sum over levels of E[KL(q(x_s | x_t, x_0) || p(x_s | x_t))], nats per sequence (N,); the prior's term is 0."""
    process, length = denoiser.process, denoiser.length
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for step in range(1, levels + 1):
        t, s = torch.tensor([step / levels]).double(), torch.tensor([(step - 1) / levels]).double()
        matrix = process.transition_matrix(float(t), 0.0)
        x = all_sequences(process.states, length)
        for row, clean in enumerate(tokens):
            chance = torch.stack([matrix[clean[at], x[:, at]] for at in range(length)]).prod(0)
            seen = x[chance > 0]
            times, ends = t.expand(len(seen)), s.expand(len(seen))
            probs = denoiser(seen, times).probs
            kl = step_kl(process, seen, clean.expand(len(seen), -1), probs, times, ends).sum(1)
            total[row] += chance[chance > 0] @ kl
    return total


@pytest.mark.parametrize(
    ("kind", "keep"), [("uniform", RootCosineKeep()), ("absorbing", LinearKeep()), ("mask-replace", LinearKeep())]
)
def test_each_value_bounds_the_chain_but_not_the_joint(kind: CategoricalKind, keep: KeepSchedule) -> None:
    """Of the sampler that draws the tokens of a step independently, with as many steps as levels."""
    denoiser = JointDenoiser(small_joint(), CategoricalProcess(kind, 3, keep))
    bound = exact_bound(denoiser, all_sequences(3, 3), 4)
    own, truth = token_chain(denoiser, 3, 4).law().flatten(), small_joint().flatten()
    assert bool((bound >= -own.log() - 1e-10).all())
    assert bool((bound < -truth.log()).any())


def test_drawn_levels_and_noise_average_to_the_exact_sum():
    """Four draws of 5000 rows: within 5 standard errors."""
    denoiser = JointDenoiser(small_joint(), CategoricalProcess("uniform", 3))
    clean = torch.tensor([[0, 2, 1]])
    rows = elbo(denoiser, clean.expand(5000, 3), KeyedNoise(0, range(5000)), draws=4, levels=6)
    expected = float(exact_bound(denoiser, clean, 6)) / 3
    assert abs(rows.mean - expected) < 5 * rows.standard_error < 0.1 * expected
