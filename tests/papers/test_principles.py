"""The parts of the principles reproduction: exact figures where there are any, and that each could come out short."""

from __future__ import annotations

import math

import pytest

from undiffuse.papers import principles
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.registry import make_solver


def test_the_variance_of_one_ancestral_step_is_the_closed_form():
    process = GaussianProcess(make_schedule("vp"))
    mean, std, latest = 0.7, 0.5, 0.005
    (alpha, sigma), (alpha_s, sigma_s) = ((float(c) for c in process.coefficients(t, _plain())) for t in (1.0, latest))
    start = (alpha * std) ** 2 + sigma**2
    # D = m + gain (x - alpha m), x_s = c_x x + c_D D + n z: the variance is (c_x + c_D gain)^2 start + n^2.
    gain = alpha * std**2 / start
    bridge = process.bridge(1.0, latest, "ddim", 1.0)
    c_x = float(bridge.eps) / sigma
    slope = c_x + (float(bridge.x0) - c_x * alpha) * gain
    exact = (alpha_s * std) ** 2 + sigma_s**2
    expected = abs(slope**2 * start + float(bridge.std) ** 2 - exact)
    found = principles.variance_error(make_solver("ddim", eta=1.0), 1, mean, std, latest)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("solver", "errors"),
    [
        (make_solver("ddim", eta=1.0), (9.7e-2, 5.7e-2, 3.1e-2)),
        (make_solver("sde-dpm++2m", variant="heun"), (5.2e-2, 1.3e-2, 3.1e-3)),
        (make_solver("sde-dpm++3m"), (2.5e-2, None, None)),
        (make_solver("edm-heun", churn=10.0), (4.7e-2, None, None)),
    ],
)
def test_variance_errors_are_those_of_the_table(solver, errors):
    for steps, expected in zip((16, 32, 64), errors, strict=True):
        if expected is not None:
            assert principles.variance_error(solver, steps) == pytest.approx(expected, rel=0.03)


def test_an_exact_gaussian_run_of_many_steps_has_no_error_left():
    assert principles.variance_error(make_solver("sde-dpm++3m"), 256) < 1e-4


def test_parallel_runs_reach_the_sequential_one():
    part = principles.picard(True, 0)
    assert all(measure.met for measure in part.measures)
    calls = [int(row[2]) for row in part.rows]
    assert max(calls) < 64 and [int(row[3]) for row in part.rows] > calls


@pytest.mark.slow
def test_grids_matter_more_than_orders():
    part = principles.grids(True, 1)
    assert part.measures[0].met
    cells = {(row[0], row[1]): row[2:] for row in part.rows}
    assert float(cells["logsnr to 0", "20"][3]) < min(map(float, cells["trailing to 0", "20"])) / 5


@pytest.mark.slow
def test_likelihood_errors_fall_and_are_left_by_a_wrong_end():
    part = principles.likelihoods(True, 0)
    own, plain = ([float(cell) for cell in row[1:]] for row in part.rows)
    assert own[-1] < own[0] / 8 and plain[-1] > 2 * own[-1]


@pytest.mark.slow
def test_the_orders_of_the_quick_version_are_near():
    part = principles.orders(True, 0)
    for row in part.rows:
        assert math.isclose(float(row[-2]), float(row[-1]), abs_tol=0.7), row


def _plain():
    import torch

    return torch.zeros(1, dtype=torch.float64)
