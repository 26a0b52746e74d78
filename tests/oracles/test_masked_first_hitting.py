"""First-hitting sampling of enumerated joints: exact one by one, and the published budgets, over all orders."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare, kstest

from tests.oracles.masked import (
    ancestral_law,
    binary_joint,
    corrected_law,
    data_law,
    first_hitting_law,
    joint_denoiser,
    total_variation,
    triple_joint,
)
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.grids import autoregressive
from undiffuse.process.keep import KEEP_SCHEDULES, make_keep
from undiffuse.sampling.first_hitting import FirstHitting
from undiffuse.sampling.loop import sample
from undiffuse.sampling.openings import opening_times


def test_one_by_one_reproduces_the_joint():
    for table in (triple_joint(), binary_joint()):
        assert total_variation(first_hitting_law(joint_denoiser(table)), table) < 1e-12


def test_two_calls_for_three_tokens_have_the_published_error():
    assert total_variation(first_hitting_law(joint_denoiser(triple_joint()), 2), triple_joint()) == pytest.approx(
        0.1155, abs=6e-5
    )


BUDGETS = {
    (1, "probabilities"): [0.4054, 0.1838, 0.1014, 0.0632, 0.0200, 0.0],
    (2, "probabilities"): [0.4054, 0.1135, 0.0520, 0.0310, 0.0200, 0.0],
    (2, "log"): [0.4054, 0.1351, 0.0653, 0.0400, 0.0200, 0.0],
    (3, "probabilities"): [0.4054, 0.1135, 0.0514, 0.0356, 0.0200, 0.0],
    (3, "log"): [0.4054, 0.1351, 0.0640, 0.0424, 0.0200, 0.0],
}


@pytest.mark.filterwarnings("ignore:order=")
@pytest.mark.parametrize("order, space", BUDGETS)
def test_budgets_and_orders_have_the_published_errors(order, space):
    denoiser = joint_denoiser(binary_joint())
    laws = [first_hitting_law(denoiser, steps, order=order, space=space) for steps in range(1, 7)]
    found = [total_variation(law, denoiser.table) for law in laws]
    assert found == pytest.approx(BUDGETS[order, space], abs=6e-5)
    assert found[5] < 1e-12


def test_corrections_have_the_published_errors():
    """After three calls; the law of the correction is that of Gibbs sampling, which the next test holds the code to."""
    denoiser = joint_denoiser(binary_joint())
    law, found = first_hitting_law(denoiser, 3), []
    for _ in range(6):
        law = corrected_law(law, denoiser)
        found.append(total_variation(law, denoiser.table))
    assert [found[i - 1] for i in (1, 2, 4, 6)] == pytest.approx([0.0656, 0.0475, 0.0272, 0.0177], abs=6e-5)


def test_corrected_samples_follow_the_corrected_law():
    """20,000 samples, two places known; chi-square at false-alarm rate 1e-4."""
    denoiser, count = joint_denoiser(binary_joint()), 20_000
    start = torch.tensor([1, 2, 2, 0, 2, 2])
    solver = FirstHitting(steps=1, corrections=2)
    drawn = sample(
        denoiser, noise=KeyedNoise(0, range(count)), shape=(6,), solver=solver, start=start.expand(count, -1)
    )
    assert drawn.nfe == 3
    law = first_hitting_law(denoiser, 1, start)
    for _ in range(2):
        law = corrected_law(law, denoiser, free=(1, 2, 4, 5))
    expected = law[1, :, :, 0].flatten()
    found = torch.bincount(drawn.x[:, [1, 2, 4, 5]] @ torch.tensor([8, 4, 2, 1]), minlength=16)
    assert chisquare(found.numpy(), (expected / expected.sum() * count).numpy()).pvalue > 1e-4


def test_confidence_is_exact_one_at_a_time_only():
    denoiser = joint_denoiser(binary_joint())
    assert total_variation(first_hitting_law(denoiser, pick="confidence"), denoiser.table) < 1e-12
    with pytest.warns(UserWarning, match="not the model's law"):
        greedy = first_hitting_law(denoiser, 4, pick="confidence")
    assert total_variation(greedy, denoiser.table) > total_variation(first_hitting_law(denoiser, 4), denoiser.table)


def test_one_call_is_the_product_of_marginals():
    table = triple_joint()
    product = torch.einsum("i,j,k->ijk", table.sum((1, 2)), table.sum((0, 2)), table.sum((0, 1)))
    torch.testing.assert_close(first_hitting_law(joint_denoiser(table), 1), product, rtol=0, atol=1e-14)


def test_known_tokens_are_exact_conditions_and_budgets_have_the_published_errors():
    """x1 = 1 and x4 = 0, counted from 1, are given clean."""
    table = binary_joint()
    exact = torch.zeros_like(table)
    exact[1, :, :, 0] = table[1, :, :, 0] / table[1, :, :, 0].sum()
    start = torch.tensor([1, 2, 2, 0, 2, 2])
    found = [
        total_variation(first_hitting_law(joint_denoiser(table), steps, start), exact) for steps in (1, 2, 3, 4, None)
    ]
    assert found == pytest.approx([0.198, 0.0725, 0.0382, 0.0, 0.0], abs=6e-4)
    assert max(found[3:]) < 1e-12
    second = first_hitting_law(joint_denoiser(table), 2, start, order=2)
    assert total_variation(second, exact) == pytest.approx(0.0495, abs=6e-5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_any_order_one_at_a_time_is_exact_also_for_ancestral_sampling(order):
    """A grid of times per token that opens one place after the other needs no random order."""
    denoiser = joint_denoiser(triple_joint())
    grid = autoregressive(1, 3)[:, :, list(order)]
    law = data_law(ancestral_law(denoiser, grid), denoiser)
    assert total_variation(law, denoiser.table) < 1e-12


# -- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KEEP_SCHEDULES)
def test_opening_times_are_the_order_statistics_of_the_keep_schedule(name):
    """1 - a at the openings is what sorted uniforms are, so a mask is open at s with chance a_s (KS test, 1e-4)."""
    rows, length = 4000, 4
    schedule = make_keep(name)
    process = CategoricalProcess("absorbing", 3, schedule)
    uniform = KeyedNoise(0, range(rows)).uniform("time", 0, (length,))
    times = opening_times(process, torch.full((rows,), length), uniform)
    assert bool((times.diff(dim=1) <= 0).all())
    share = schedule.drop(times) / schedule.drop(torch.ones((), dtype=torch.float64))
    for index in range(length):  # the index-th largest of `length` uniforms
        assert kstest(share[:, index].numpy(), "beta", args=(length - index, index + 1)).pvalue > 1e-4


def test_the_first_opening_is_expected_at_l_over_l_plus_one():
    rows, length = 20_000, 5
    uniform = KeyedNoise(1, range(rows)).uniform("time", 0, (length,))
    first = opening_times(CategoricalProcess("absorbing", 3), torch.full((rows,), length), uniform)[:, 0]
    error = (
        length / (length + 2) / (length + 1) ** 2 / rows
    ) ** 0.5  # standard deviation of Beta(5, 1), per root of rows
    assert abs(float(first.mean()) - length / (length + 1)) < 4 * error


def test_rows_with_fewer_masks_open_them_later():
    uniform = torch.full((2, 4), 0.5, dtype=torch.float64)
    times = opening_times(CategoricalProcess("absorbing", 3), torch.tensor([4, 1]), uniform)
    assert times[0, 0] == pytest.approx(0.5 ** (1 / 4)) and times[1, 0] == pytest.approx(0.5)


# -- end to end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 2])
def test_samples_follow_the_enumerated_law(steps):
    """20,000 samples through the loop; chi-square at false-alarm rate 1e-4."""
    denoiser = joint_denoiser(triple_joint())
    count = 20_000
    x = sample(denoiser, noise=KeyedNoise(0, range(count)), shape=(3,), solver=FirstHitting(steps=steps)).x
    law = first_hitting_law(denoiser, steps).flatten()
    found = torch.bincount(x @ torch.tensor([9, 3, 1]), minlength=27)
    assert chisquare(found.numpy(), (law / law.sum() * count).numpy()).pvalue > 1e-4
