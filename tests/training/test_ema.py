"""The power-function average against its closed form."""

from __future__ import annotations

import pytest
import torch

from undiffuse.training.ema import PowerEMA, gamma_of_width


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
