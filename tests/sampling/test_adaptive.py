"""Solvers that choose their own steps, per sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import ExactNetwork, normals, process_of, run, spec_mixture
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.errors import PlanError, UndiffuseError
from undiffuse.noise import KeyedNoise
from undiffuse.process.grids import known, sync
from undiffuse.sampling.constraints import Constraint, Known
from undiffuse.sampling.loop import Snapshot, sample
from undiffuse.sampling.registry import make_solver

NAMES = ("dpm-adaptive-12", "dpm-adaptive-23", "rk45")
ENDS = torch.tensor([1.0, 0.01], dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_errors_fall_with_the_tolerance(name: str) -> None:
    """On a Gaussian, whose end point is known; the error of a run is a modest multiple of that allowed per step."""
    process, spread = process_of("vp"), 0.6
    mean = torch.tensor([0.7, -0.2], dtype=torch.float64)
    denoiser, x = GaussianDenoiser(mean, spread**2 * torch.eye(2).double(), process), normals(16, 2, seed=3)
    (a, s), (a0, s0) = (process.coefficients(t, x) for t in (1.0, 0.01))
    exact = a0 * mean + ((a0**2 * spread**2 + s0**2) / (a**2 * spread**2 + s**2)) ** 0.5 * (x - a * mean)
    errors, costs = [], []
    for tol in (1e-2, 1e-3, 1e-4):
        result = run(denoiser, make_solver(name, rtol=tol, atol=tol), ENDS, x)
        errors.append(float((result.x - exact).abs().max()))
        costs.append(result.nfe)
    assert all(error < 20 * tol for error, tol in zip(errors, (1e-2, 1e-3, 1e-4), strict=True)), errors
    assert errors[2] < 0.2 * errors[0]
    assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    denoiser, x, rule = spec_mixture(process_of("vp")), normals(6, 2, seed=5), make_solver(name)
    x[1] *= 8  # far out: it takes other steps than the rest
    together = run(denoiser, rule, ENDS, x)
    alone = [run(denoiser, rule, ENDS, x[i : i + 1]) for i in range(len(x))]
    torch.testing.assert_close(torch.cat([one.x for one in alone]), together.x, rtol=1e-11, atol=1e-11)
    assert together.nfe == max(one.nfe for one in alone)
    assert len({one.nfe for one in alone}) > 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["vp", "rf", "edm", "ddpm"])
def test_the_ends_are_exact_and_the_evaluations_counted(name: str, schedule: str) -> None:
    """From pure noise to x = mean at t = 0, without a question about clean data."""
    process = process_of(schedule)
    network = ExactNetwork(spec_mixture(process), "v")
    shots: list[Snapshot] = []
    result = sample(
        network,
        noise=KeyedNoise(0, range(3)),
        shape=(2,),
        solver=make_solver(name, rtol=1e-2, atol=1e-2),
        dtype=torch.float64,
        callback=shots.append,
    )
    assert torch.equal(result.x, shots[-1].post.mean)
    assert result.nfe == network.network_calls == len(shots)
    assert all(bool((torch.as_tensor(shot.t) > 0).all()) for shot in shots)


@pytest.mark.parametrize("name", NAMES)
def test_frames_with_times_of_their_own(name: str) -> None:
    process = process_of("trig")
    cov = torch.block_diag(torch.eye(1), 0.3 * torch.eye(1), 2.0 * torch.eye(1)).double()
    denoiser, x = GaussianDenoiser(normals(3, seed=5), cov, process), normals(4, 3, seed=1)
    ends, rule = torch.tensor([0.9, 0.1], dtype=torch.float64), make_solver(name, rtol=1e-4, atol=1e-4)
    held = run(denoiser, rule, known(ends, 3, [1], level=0.0), x).x
    assert torch.equal(held[:, 1], x[:, 1])
    free = run(denoiser, rule, ends, x).x
    # Independent frames: those that move end where they do without the one that is held, to the tolerance.
    torch.testing.assert_close(held[:, [0, 2]], free[:, [0, 2]], rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(run(denoiser, rule, sync(ends, 3), x).x, free, rtol=1e-9, atol=1e-9)
    apart = torch.stack([ends, ends * 0.9, ends**2], dim=1)[:, None]
    staggered = run(denoiser, rule, apart, x).x
    alone = GaussianDenoiser(normals(3, seed=5)[2:], 2.0 * torch.eye(1).double(), process)
    torch.testing.assert_close(staggered[:, 2:], run(alone, rule, ends**2, x[:, 2:]).x, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_constraints_hold_and_edits_are_seen(name: str) -> None:
    process = process_of("trig")
    denoiser, x = spec_mixture(process), normals(4, 2, seed=1)
    given, mask = normals(4, 2, seed=2), torch.tensor([[True, False]])
    grid = known(torch.tensor([1.0, 0.0], dtype=torch.float64), 2, [0])
    assert torch.equal(run(denoiser, make_solver(name), grid, x, constraints=[Known(given, mask)]).x[:, 0], given[:, 0])

    class Halved(Constraint):
        """Edits the state after the second step; afterwards the run is one that starts there."""

        where: tuple[Tensor, Tensor] | None = None

        def leave(self, x: Tensor, s: object, k: int, noise: object) -> tuple[Tensor, bool]:
            if k != 2:
                return x, False
            self.where = torch.as_tensor(s, dtype=torch.float64), 0.5 * x
            return 0.5 * x, True

    edit, rule = Halved(), make_solver(name, rtol=1e-4, atol=1e-4)
    edited = run(denoiser, rule, ENDS, x, constraints=[edit]).x
    assert edit.where is not None
    times, state = edit.where
    again = torch.stack([times, torch.full_like(times, 0.01)])[:, :, None]
    torch.testing.assert_close(run(denoiser, rule, again, state).x, edited, rtol=5e-3, atol=5e-3)


def test_gradients_pass_through() -> None:
    denoiser, x = spec_mixture(process_of("vp")), normals(2, 2, seed=1)
    for name in ("dpm-adaptive-23", "rk45"):
        # Tight: with loose tolerances the step sizes, which are held fixed, move with x.
        rule = make_solver(name, rtol=1e-4, atol=1e-4)
        start = x.clone().requires_grad_()
        run(denoiser, rule, ENDS, start, grad=True).x.sum().backward()
        assert start.grad is not None
        step, push = 1e-2, normals(2, 2, seed=7)
        ends = [run(denoiser, rule, ENDS, x + sign * step * push).x.sum() for sign in (1, -1)]
        assert float((start.grad * push).sum()) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-2)


def test_what_cannot_work_is_refused() -> None:
    denoiser, x = spec_mixture(process_of("vp")), normals(2, 2)
    three = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
    for name in NAMES:
        rule = make_solver(name)
        with pytest.raises(PlanError, match="chooses its own times"):
            run(denoiser, rule, three, x)
        with pytest.raises(PlanError, match="no common times"):
            run(denoiser, rule, ENDS, x, trajectory=True)
        with pytest.raises(PlanError, match="depend on the answers"):
            rule.plan(denoiser.process, ENDS)
        with pytest.raises(PlanError, match="only downwards"):
            run(denoiser, rule, ENDS, x, up=True)
        with pytest.raises(UndiffuseError, match="max_steps=2"):
            run(denoiser, make_solver(name, max_steps=2), ENDS, x)
        with pytest.raises(ValueError, match="must be positive"):
            make_solver(name, rtol=0.0)
    with pytest.raises(ValueError, match="order=4"):
        make_solver("dpm-adaptive-23", order=4)
    with pytest.raises(ValueError, match="first=0"):
        make_solver("dpm-adaptive-12", first=0.0)
