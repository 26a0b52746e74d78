"""The power-function average against its closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from undiffuse.training.ema import PowerEMA, Profile, _inner_products, combine_profiles, gamma_of_width


@pytest.mark.parametrize("width", [0.02, 0.05, 0.10, 0.25])
def test_gamma_solves_the_definition_of_the_width(width):
    gamma = gamma_of_width(width)
    assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(width, rel=1e-9)


def test_published_gammas():
    assert gamma_of_width(0.05) == pytest.approx(16.97, abs=0.01)  # Karras et al. 2024, appendix C.2
    assert gamma_of_width(0.10) == pytest.approx(6.94, abs=0.01)


def test_the_average_is_the_closed_form_sum():
    exponent = gamma_of_width(0.1) + 1
    steps = 200
    weights = torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    average = PowerEMA([torch.zeros(3, dtype=torch.float64)], 0.1)
    for step in range(1, steps + 1):
        average.update([weights[step - 1]], step)
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    # prod_{k > t} (1 - 1/k)^e = (t / T)^e, so step t counts with (t/T)^e (1 - (1 - 1/t)^e)
    shares = (t / steps) ** exponent * (1 - (1 - 1 / t) ** exponent)
    assert float(shares.sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(average.average[0], shares @ weights, rtol=1e-10, atol=1e-12)


def test_an_average_of_every_fifth_step_is_the_closed_form_sum_at_every_step():
    exponent, steps, every = gamma_of_width(0.1) + 1, 203, 5
    weights = torch.randn(steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    average = PowerEMA([torch.zeros(3, dtype=torch.float64)], 0.1, every)
    for step in range(1, steps + 1):
        average.update([weights[step - 1]], step)
        if step not in (3, every, 2 * every, 77, 200, steps):
            continue
        ends = sorted({*range(every, step + 1, every), step})  # each stands for the steps since the one before it
        t = torch.tensor(ends, dtype=torch.float64)
        shares = (t / step) ** exponent - (torch.tensor([0, *ends[:-1]], dtype=torch.float64) / step) ** exponent
        assert float(shares.sum()) == pytest.approx(1.0, abs=1e-12)
        found = average.at([weights[step - 1]], step)[0]
        torch.testing.assert_close(found, shares @ weights[t.long() - 1], rtol=1e-10, atol=1e-12)
    assert not torch.equal(average.average[0], found)  # what was asked at a step between did not change the average


def test_the_profile_has_the_stated_relative_width():
    steps, exponent = 20_000, gamma_of_width(0.1) + 1
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    shares = (t / steps) ** exponent * (1 - (1 - 1 / t) ** exponent)
    mean = (shares * t).sum()
    std = ((shares * (t - mean) ** 2).sum()) ** 0.5
    assert float(std) / steps == pytest.approx(0.1, rel=1e-3)


def test_the_first_step_copies_the_weights():
    average = PowerEMA([torch.full((2,), 7.0)], 0.05)
    average.update([torch.tensor([1.0, 2.0])], 1)
    assert average.average[0].tolist() == [1.0, 2.0]


def test_a_width_out_of_range_is_refused():
    with pytest.raises(ValueError, match="such as"):
        gamma_of_width(0.3)


def snapshots_of(
    course, steps: int, kept_every: int, widths=(0.05, 0.10), every: int = 1
) -> tuple[list[Profile], np.ndarray]:
    """Run averages over weights (steps, D); return the profiles of those kept now and then, and their values."""
    weights = [course(torch.tensor([step / steps], dtype=torch.float64)) for step in range(1, steps + 1)]
    averages = [PowerEMA([torch.zeros(1, dtype=torch.float64)], width, every) for width in widths]
    profiles, kept = [], []
    for step, now in enumerate(weights, 1):
        for average in averages:
            average.update([now], step)
            if step % kept_every == 0:
                profiles.append(Profile(step, average.width))
                kept.append(float(average.at([now], step)[0]))
    return profiles, np.array(kept)


COURSES = {
    "linear": lambda t: t,
    "quadratic": lambda t: 3 - t + 2 * t**2,
    "settling": lambda t: 1 + torch.exp(-5 * t),
    "waves": lambda t: 2 + torch.sin(9 * t),
}


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.20])
def test_twenty_snapshots_give_the_averages_between_and_around_their_widths(course, width):
    steps = 1000
    profiles, kept = snapshots_of(COURSES[course], steps, steps // 20)
    direct = snapshots_of(COURSES[course], steps, steps, (width,))[1][-1]
    found = combine_profiles(profiles, Profile(steps, width))
    assert found.coefficients.sum() == pytest.approx(1.0, abs=1e-12)
    assert float(found.coefficients @ kept) == pytest.approx(direct, rel=1e-3)  # the figure that was asked for


def test_snapshots_of_an_average_of_every_tenth_step_combine_as_well():
    steps, every = 1000, 10
    direct = snapshots_of(COURSES["waves"], steps, steps, (0.07,))[1][-1]
    profiles, kept = snapshots_of(COURSES["waves"], steps, steps // 20, every=every)
    found = combine_profiles(profiles, Profile(steps, 0.07))
    # A step stands for the ten up to it, so all is seen half of that later: 4.5 / 1000 of a slope of at most 9.
    assert float(found.coefficients @ kept) == pytest.approx(direct, abs=1e-3 * direct + 0.0045 * 9)
    coarse = snapshots_of(COURSES["waves"], steps, steps // 20, every=1)[1]
    assert not np.allclose(kept, coarse, atol=1e-3)


def test_a_width_that_was_tracked_is_that_average_alone():
    profiles, _ = snapshots_of(COURSES["linear"], 200, 20)
    for index in (-1, -2):
        found = combine_profiles(profiles, profiles[index])
        expected = np.zeros(len(profiles))
        expected[index] = 1.0
        np.testing.assert_allclose(found.coefficients, expected, atol=1e-9)
        assert found.misfit < 1e-7


def test_inner_products_are_the_integrals_of_the_profiles():
    profiles = [Profile(300, 0.05), Profile(800, 0.1), Profile(1000, 0.2)]
    t = (np.arange(200_000) + 0.5) / 200  # midpoints on [0, 1000]
    density = []
    for step, width in profiles:
        gamma = gamma_of_width(width)
        density.append(np.where(t <= step, (gamma + 1) / step * (t / step) ** gamma, 0.0))
    expected = np.array([[np.sum(a * b) / 200 for b in density] for a in density])
    np.testing.assert_allclose(_inner_products(profiles), expected, rtol=1e-3)  # the jump at the end: half a cell


def test_the_misfit_grows_as_the_profile_becomes_narrower_than_the_snapshots_are_apart():
    profiles, _ = snapshots_of(COURSES["linear"], 200, 20)
    misfits = [combine_profiles(profiles, Profile(200, width)).misfit for width in (0.04, 0.02, 0.01)]
    assert misfits == sorted(misfits) and misfits[0] < 0.05 and misfits[-1] > 0.3


def test_a_fixed_sum_lowers_the_error_of_few_snapshots():
    profiles, kept = snapshots_of(COURSES["linear"], 1000, 100)
    target = Profile(1000, 0.03)
    direct = snapshots_of(COURSES["linear"], 1000, 1000, (0.03,))[1][-1]
    inner = _inner_products([*profiles, target])
    free = np.linalg.lstsq(inner[:-1, :-1], inner[:-1, -1], rcond=None)[0]
    error = abs(combine_profiles(profiles, target).coefficients @ kept / direct - 1)
    assert error < 1.1e-3 < 3e-3 < abs(free @ kept / direct - 1)


def test_nothing_cannot_be_combined():
    with pytest.raises(ValueError, match="at least one"):
        combine_profiles([], Profile(10, 0.05))
