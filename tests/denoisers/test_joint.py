"""The enumerated joint against direct sums over all clean sequences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.process.categorical import CategoricalProcess

KINDS = ("absorbing", "uniform", "mask-replace")


def random_table(classes: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn((classes,) * length, dtype=torch.float64, generator=generator)
    return logits.flatten().softmax(0).reshape(logits.shape)


def brute_force(table: Tensor, process: CategoricalProcess, row: list[int], times: list[float]) -> Tensor:
    """p(x0_i | x_t) by a loop over all clean sequences and forward matrices, (L, K)."""
    marginals = torch.zeros(len(row), process.classes, dtype=torch.float64)
    for clean in itertools.product(range(process.classes), repeat=len(row)):
        weight = float(table[clean])
        for token, state, t in zip(clean, row, times, strict=True):
            weight *= float(process.transition_matrix(t, 0.0)[token, state])
        for position, token in enumerate(clean):
            marginals[position, token] += weight
    return marginals / marginals.sum(-1, keepdim=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_posterior_is_the_sum_over_all_clean_sequences(kind, t):
    process = CategoricalProcess(kind, 3)
    table = random_table(3, 3)
    rows = list(itertools.product(range(process.states), repeat=3))
    found = JointDenoiser(table, process)(torch.tensor(rows), t).probs
    expected = torch.stack([brute_force(table, process, list(row), [t] * 3) for row in rows])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_may_have_its_own_time(kind):
    process = CategoricalProcess(kind, 3)
    table = random_table(3, 3)
    row, times = [0, process.states - 1, 2], [0.1, 0.9, 0.4]
    found = JointDenoiser(table, process)(torch.tensor([row]), torch.tensor([times], dtype=torch.float64)).probs[0]
    torch.testing.assert_close(found, brute_force(table, process, row, times), rtol=0, atol=1e-12)


def test_masked_posterior_does_not_depend_on_the_time_and_uniform_does():
    table = random_table(3, 3, seed=3)
    x = torch.tensor(list(itertools.product(range(4), repeat=3)))
    masked = JointDenoiser(table, CategoricalProcess("absorbing", 3))
    assert not masked.time_dependent
    torch.testing.assert_close(masked(x, 0.3).probs, masked(x, 0.9).probs, rtol=0, atol=1e-12)
    uniform = JointDenoiser(table, CategoricalProcess("uniform", 3))
    x = x[(x < 3).all(-1)]
    assert uniform.time_dependent
    assert float((uniform(x, 0.3).probs - uniform(x, 0.9).probs).abs().max()) > 0.3


def test_masked_posterior_of_a_data_set_counts_the_consistent_rows():
    rows = torch.tensor([[0, 0, 1], [0, 1, 1], [0, 1, 2], [2, 1, 0]])
    table = torch.zeros(3, 3, 3, dtype=torch.float64)
    for row in rows:
        table[tuple(row)] += 0.25
    denoiser = JointDenoiser(table, CategoricalProcess("absorbing", 3))
    probs = denoiser(torch.tensor([[0, 3, 3], [3, 1, 3], [3, 3, 3]]), 0.5).probs
    third = 1 / 3
    expected = [
        [[1, 0, 0], [third, 2 * third, 0], [0, 2 * third, third]],
        [[2 * third, 0, third], [0, 1, 0], [third, third, third]],
        [[0.75, 0, 0.25], [0.25, 0.75, 0], [0.25, 0.5, 0.25]],
    ]
    torch.testing.assert_close(probs, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_tokens_given_at_full_noise_are_conditions():
    table = random_table(2, 4)
    denoiser = JointDenoiser(table, CategoricalProcess("absorbing", 2))
    probs = denoiser(torch.tensor([[2, 1, 2, 0]]), 1.0).probs[0]
    conditional = table[:, 1, :, 0] / table[:, 1, :, 0].sum()
    torch.testing.assert_close(probs[0], conditional.sum(1), rtol=0, atol=1e-15)
    torch.testing.assert_close(probs[2], conditional.sum(0), rtol=0, atol=1e-15)
    assert probs[1].tolist() == [0, 1] and probs[3].tolist() == [1, 0]


def test_entropy_and_log_prob_are_those_of_the_table():
    table = random_table(3, 3)
    denoiser = JointDenoiser(table, CategoricalProcess("absorbing", 3))
    x = torch.tensor(list(itertools.product(range(3), repeat=3)))
    log_prob = denoiser.log_prob(x)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert denoiser.entropy() == pytest.approx(float(-(log_prob.exp() * log_prob).sum()), abs=1e-12)
    half = JointDenoiser(torch.tensor([0.5, 0.5, 0.0]), CategoricalProcess("absorbing", 3))
    assert half.entropy() == pytest.approx(math.log(2), abs=1e-12)


def test_what_is_no_joint_is_refused():
    process = CategoricalProcess("absorbing", 3)
    with pytest.raises(ValueError, match="shape"):
        JointDenoiser(torch.full((3, 4), 1 / 12), process)
    with pytest.raises(ValueError, match="probabilities"):
        JointDenoiser(torch.full((3,), 0.5), process)
    denoiser = JointDenoiser(torch.tensor([0.5, 0.5, 0.0]), process)
    with pytest.raises(ValueError, match="positions"):
        denoiser(torch.zeros(1, 2, dtype=torch.int64), 0.5)
    with pytest.raises(ValueError, match="probability 0"):
        denoiser(torch.tensor([[2]]), 0.5)
