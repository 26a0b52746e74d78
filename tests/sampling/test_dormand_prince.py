"""The adaptive integrator against closed forms and scipy's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals
from undiffuse.errors import UndiffuseError
from undiffuse.sampling.dormand_prince import ERROR, MATRIX, NODES, integrate

State = tuple[Tensor, ...]


def swing(y: State, t: Tensor) -> State:
    """y_0 = c exp(sin(5 t) / 5), y_1 = c exp(-t^2 / 2)."""
    return torch.cos(5 * t)[:, None] * y[0], -t * y[1]


def test_the_tableau_meets_its_order_conditions() -> None:
    """Sums of b_i c_i^(k-1) = 1/k up to order 5, rows sum to their nodes, and the error row vanishes up to order 4."""
    for node, row in zip(NODES[1:], MATRIX, strict=True):
        assert sum(row) == pytest.approx(node, abs=1e-14)
    for k in range(1, 6):
        assert sum(b * c ** (k - 1) for b, c in zip(MATRIX[-1], NODES, strict=False)) == pytest.approx(1 / k, abs=1e-14)
    for k in range(1, 5):
        assert abs(sum(e * c ** (k - 1) for e, c in zip(ERROR, NODES, strict=True))) < 1e-14
    assert abs(sum(e * c**4 for e, c in zip(ERROR, NODES, strict=True))) > 1e-4


@pytest.mark.parametrize("tol", [1e-4, 1e-7, 1e-10])
def test_it_reaches_the_closed_form_up_and_down(tol: float) -> None:
    y = normals(5, 3, seed=1), torch.ones(5, dtype=torch.float64)
    (first, second), calls = integrate(swing, y, 0.0, 2.0, tol, tol)
    assert calls < 60 * tol**-0.15 + 40
    torch.testing.assert_close(first, y[0] * math.exp(math.sin(10) / 5), rtol=200 * tol, atol=200 * tol)
    torch.testing.assert_close(second, y[1] * math.exp(-2), rtol=200 * tol, atol=200 * tol)
    back, _ = integrate(swing, (first, second), 2.0, 0.0, tol, tol)
    torch.testing.assert_close(back[0], y[0], rtol=2000 * tol, atol=2000 * tol)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    """One sample is much stiffer than the others, and the steps of the others are not those it needs."""
    rates = torch.tensor([0.5, 40.0, 3.0], dtype=torch.float64)

    def decay(rate: Tensor) -> object:
        return lambda y, t: (-rate[:, None] * y[0],)

    y = normals(3, 2, seed=2)
    together, calls = integrate(decay(rates), (y,), 0.0, 1.0)  # type: ignore[arg-type]
    alone_calls = []
    for i in range(3):
        alone, count = integrate(decay(rates[i : i + 1]), (y[i : i + 1],), 0.0, 1.0)  # type: ignore[arg-type]
        alone_calls.append(count)
        assert torch.equal(alone[0][0], together[0][i])
    assert calls == max(alone_calls) > 1.5 * min(alone_calls)


def test_it_is_as_good_as_scipy_s_at_the_same_tolerance() -> None:
    integrate_scipy = pytest.importorskip("scipy.integrate").solve_ivp

    def rule(t: float, y: object) -> object:
        return math.cos(5 * t) * y  # type: ignore[operator]

    theirs = integrate_scipy(rule, (0, 2), [1.0], rtol=1e-6, atol=1e-6, method="RK45")
    ours, calls = integrate(swing, (torch.ones(1, 1).double(), torch.ones(1).double()), 0.0, 2.0, 1e-6, 1e-6)
    exact = math.exp(math.sin(10) / 5)
    assert abs(float(ours[0]) - exact) < 10 * abs(theirs.y[0, -1] - exact) + 1e-6
    assert calls < 1.5 * theirs.nfev


def test_gradients_are_those_of_finite_differences() -> None:
    y = normals(2, 3, seed=3).requires_grad_()
    end = integrate(swing, (y, torch.ones(2, dtype=torch.float64)), 0.0, 1.0)[0][0]
    end.sum().backward()
    assert y.grad is not None
    torch.testing.assert_close(y.grad, torch.full_like(y, math.exp(math.sin(5) / 5)), rtol=1e-4, atol=1e-4)


def test_bad_input_and_slopes_are_refused() -> None:
    y = (torch.ones(2, 1).double(),)
    with pytest.raises(ValueError, match="must be positive"):
        integrate(lambda y, t: y, y, 0.0, 1.0, rtol=0.0)
    with pytest.raises(UndiffuseError, match="2 of 2 samples have not arrived after max_steps=3"):
        integrate(lambda y, t: (torch.cos(1000 * t)[:, None] * y[0],), y, 0.0, 1.0, max_steps=3)
    with pytest.raises(UndiffuseError, match="vanished at t=0"):
        integrate(lambda y, t: (torch.full_like(y[0], torch.nan),), y, 0.0, 1.0)
    assert integrate(lambda y, t: y, y, 0.5, 0.5) == (y, 0)
