"""Ancestral sampling of an enumerated joint, propagated exactly as matrices over all states: no sampling error."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.masked import (
    all_states,
    ancestral_law,
    binary_joint,
    data_law,
    joint_denoiser,
    total_variation,
    triple_joint,
)
from undiffuse.process.keep import CosineKeep, PolynomialKeep
from undiffuse.sampling.ancestral import Ancestral, transition_probs
from undiffuse.sampling.loop import sample

STEPS = (1, 2, 4, 8, 16, 32, 64, 128)


def uniform_grid(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def test_the_joints_are_those_of_the_published_tables():
    assert joint_denoiser(triple_joint()).entropy() == pytest.approx(2.7514, abs=5e-5)
    assert joint_denoiser(binary_joint()).entropy() == pytest.approx(3.6096, abs=5e-5)


@pytest.mark.parametrize(
    ("kind", "published"),
    [
        ("absorbing", (0.350, 0.192, 0.100, 0.0512, 0.0259, 0.0130, 0.0065, 0.0033)),
        ("mask-replace", (0.350, 0.194, 0.0965, 0.0473, 0.0233, 0.0115, None, 0.0029)),
        ("uniform", (0.350, 0.253, 0.146, 0.0747, 0.0369, 0.0181, None, 0.0044)),
    ],
)
def test_total_variation_follows_the_published_table(kind, published):
    denoiser = joint_denoiser(triple_joint(), kind)
    for steps, expected in zip(STEPS, published, strict=True):
        if expected is not None:
            law = data_law(ancestral_law(denoiser, uniform_grid(steps)), denoiser)
            assert total_variation(law, denoiser.table) == pytest.approx(expected, abs=6e-4 if steps < 8 else 6e-5)


@pytest.mark.parametrize("kind", ["absorbing", "mask-replace", "uniform"])
def test_the_error_halves_when_the_steps_double(kind):
    denoiser = joint_denoiser(triple_joint(), kind)
    errors = [
        total_variation(data_law(ancestral_law(denoiser, uniform_grid(steps)), denoiser), denoiser.table)
        for steps in (32, 64, 128)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.05)


def test_other_keep_schedules_only_move_the_times_of_an_absorbing_chain():
    """Steps at equal keep probabilities are the same chain."""
    linear = joint_denoiser(triple_joint())
    expected = ancestral_law(linear, uniform_grid(6))
    for keep in (CosineKeep(), PolynomialKeep(2.0)):
        found = ancestral_law(joint_denoiser(triple_joint(), keep=keep), keep.time(1 - uniform_grid(6)))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [8, 64])
def test_tokens_given_clean_are_an_exact_condition_up_to_the_chain_s_own_error(steps):
    denoiser = joint_denoiser(triple_joint())
    table = denoiser.table
    start = torch.zeros(4**3, dtype=torch.float64)
    start[(all_states(4, 3) == torch.tensor([0, 3, 3])).all(-1).nonzero()[0, 0]] = 1.0  # first token is 0
    law = data_law(ancestral_law(denoiser, uniform_grid(steps), start), denoiser)
    exact = torch.zeros_like(table)
    exact[0] = table[0] / table[0].sum()
    assert float(law[1:].sum()) == 0
    # Two open questions instead of three; the error of the full chain bounds that of this one here.
    assert total_variation(law, exact) < {8: 0.03, 64: 0.004}[steps]


class GridOfUniforms:
    """A noise source whose rows run through the midpoints of a grid, one axis per stream; for one token."""

    def __init__(self, whether: Tensor, which: Tensor) -> None:
        self.streams = {"step": whether, "class": which}

    def uniform(self, stream: str, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.streams[stream].reshape(-1, *shape)


@pytest.mark.parametrize("kind", ["absorbing", "mask-replace", "uniform"])
@pytest.mark.parametrize("state", [0, 2])
def test_the_solver_draws_from_the_law_that_is_propagated(kind, state):
    """One token, uniforms on a fine grid: frequencies of `step` are `transition_probs` up to a cell per boundary."""
    table = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    denoiser = joint_denoiser(table, kind)
    cells = 600
    axis = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    whether, which = (u.flatten() for u in torch.meshgrid(axis, axis, indexing="ij"))
    solver, process = Ancestral(), denoiser.process
    x = torch.full((cells * cells, 1), process.states - 1 if state == 2 else state)
    stage = solver.plan(process, torch.tensor([0.8, 0.5, 0.0], dtype=torch.float64)).stages[0]
    z = solver.draw(stage, x, GridOfUniforms(whether, which))  # type: ignore[arg-type]
    drawn, _ = solver.step(stage, x, denoiser(x, 0.8), None, z)  # type: ignore[arg-type]
    found = torch.bincount(drawn.flatten(), minlength=process.states).double() / cells**2
    law = transition_probs(process, x[:1], denoiser(x[:1], 0.8), 0.8, 0.5)[0, 0]
    torch.testing.assert_close(found, law, rtol=0, atol=2.1 / cells)


def test_one_step_is_the_product_of_marginals():
    denoiser = joint_denoiser(triple_joint())
    table = denoiser.table
    law = data_law(ancestral_law(denoiser, uniform_grid(1)), denoiser)
    product = torch.einsum("i,j,k->ijk", table.sum((1, 2)), table.sum((0, 2)), table.sum((0, 1)))
    torch.testing.assert_close(law, product, rtol=0, atol=1e-14)


def test_samples_follow_the_propagated_law():
    """End to end through the loop: 20,000 samples of the 8-step chain, chi-square at false-alarm rate 1e-4."""
    from scipy.stats import chisquare

    from undiffuse.noise import KeyedNoise

    denoiser = joint_denoiser(triple_joint())
    count = 20_000
    law = data_law(ancestral_law(denoiser, uniform_grid(8)), denoiser).flatten()
    x = sample(denoiser, noise=KeyedNoise(0, range(count)), shape=(3,), solver=Ancestral(), grid=uniform_grid(8)).x
    found = torch.bincount(x @ torch.tensor([9, 3, 1]), minlength=27)
    assert chisquare(found.numpy(), (law / law.sum() * count).numpy()).pvalue > 1e-4
