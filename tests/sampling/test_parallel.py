"""Parallel in time: the sequential numbers, sooner; and what cannot run that way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import CONTINUOUS_SOLVERS, ExactNetwork, ar1_video, normals, process_of, run, spec_mixture
from tests.oracles.masked import joint_denoiser, triple_joint
from undiffuse.denoisers.base import Wrapper
from undiffuse.errors import PlanError
from undiffuse.noise import KeyedNoise
from undiffuse.process.grids import make_grid, pyramid
from undiffuse.sampling.constraints import Constraint, Known, Replacement
from undiffuse.sampling.loop import sample
from undiffuse.sampling.parallel import _Run
from undiffuse.sampling.registry import make_solver

DDIM = make_solver("ddim")


def rms(gap: Tensor) -> float:
    return float(gap.square().sum(1).mean().sqrt())


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
@pytest.mark.parametrize("window", [3, 8])
def test_until_nothing_changes_it_gives_the_sequential_numbers(solver: str, window: int) -> None:
    """In at most as many sweeps as steps, since each makes one more state final; the noise is that of the run."""
    process, rule = process_of("vp"), CONTINUOUS_SOLVERS[solver]
    denoiser, x, grid = spec_mixture(process), normals(3, 2, seed=1), make_grid(process.schedule, 8)
    expected = run(denoiser, rule, grid, x, trajectory=True).trajectory
    found = run(denoiser, rule, grid, x, parallel=window, parallel_tol=0.0, trajectory=True)
    assert expected is not None and found.trajectory is not None
    torch.testing.assert_close(found.trajectory, expected, rtol=1e-10, atol=1e-10)
    assert found.sweeps is not None and found.sweeps <= 8


def test_a_window_of_one_is_the_sequential_run_at_its_cost() -> None:
    process = process_of("vp")
    grid, x = make_grid(process.schedule, 10), normals(3, 2, seed=1)
    for name in ("ddim", "heun", "dpm++2m"):
        rule = make_solver(name)
        plain = run(spec_mixture(process), rule, grid, x)
        found = run(spec_mixture(process), rule, grid, x, parallel=1)
        torch.testing.assert_close(found.x, plain.x, rtol=1e-12, atol=1e-12)
        assert (found.nfe, found.calls, found.sweeps) == (plain.nfe, plain.nfe, 10)


@pytest.mark.parametrize(
    ("tol", "window", "calls", "error"),
    [
        (0.1, 64, 8, 2.4e-3),
        (0.1, 16, 9, 2.7e-3),
        (0.1, 8, 13, 7e-4),
        (0.01, 64, 10, 2e-4),
        (0.01, 16, 12, 2e-4),
        (0.01, 8, 17, 2e-4),
    ],
)
def test_64_steps_take_as_few_batched_calls_as_the_spec_measured(
    tol: float, window: int, calls: int, error: float
) -> None:
    """The figures of principles, section 5, from its own starting points."""
    process = process_of("vp")
    network, x = ExactNetwork(spec_mixture(process), "data"), normals(64, 2, seed=0)
    ends = process.schedule.half_logsnr(torch.tensor([1.0, 0.01], dtype=torch.float64))
    grid = process.schedule.time(torch.linspace(float(ends[0]), float(ends[1]), 65, dtype=torch.float64))
    exact = run(spec_mixture(process), DDIM, grid, x).x
    found = run(network, DDIM, grid, x, parallel=window, parallel_tol=tol)
    assert found.calls == found.sweeps == network.network_calls
    assert found.calls == calls
    assert rms(found.x - exact) < 1.05 * error
    assert 64 <= found.nfe <= window * found.calls


def test_the_error_after_each_sweep_is_the_spec_s() -> None:
    """Principles, section 5: 64 steps of DDIM, whole window, RMS error after 1, 2, 3, 5, 8 and 12 sweeps."""
    process = process_of("vp")
    denoiser, x = spec_mixture(process), normals(64, 2, seed=0)
    ends = process.schedule.half_logsnr(torch.tensor([1.0, 0.01], dtype=torch.float64))
    grid = process.schedule.time(torch.linspace(float(ends[0]), float(ends[1]), 65, dtype=torch.float64))
    exact = run(denoiser, DDIM, grid, x).x
    steps = [[entry] for entry in DDIM.plan(process, grid).entries]
    picard = _Run(denoiser, lambda count: None, DDIM, (), KeyedNoise(0, range(64)), 64)
    states, errors = [x] * 65, []
    for _ in range(12):
        ahead = picard.sweep(steps, states, 0, 64)
        moved = [x, *(x + sum(f - old for f, old in zip(ahead[: j + 1], states, strict=False)) for j in range(64))]
        states = moved
        errors.append(rms(states[-1] - exact))
    for sweeps, told in ((1, 3.2e-1), (2, 1.3e-1), (3, 4.4e-2), (5, 7.7e-3), (8, 1.4e-4), (12, 3.9e-8)):
        assert errors[sweeps - 1] == pytest.approx(told, rel=0.05), (sweeps, errors)


def test_linear_problems_converge_within_the_window() -> None:
    process = process_of("trig")
    video, x, grid = ar1_video(process, 4), normals(3, 4, seed=1), pyramid(6, 4, 2)
    for name in ("ddim", "heun", "dpm++2m", "ddpm"):
        expected = run(video, make_solver(name), grid, x).x
        found = run(video, make_solver(name), grid, x, parallel=len(grid), parallel_tol=0.0)
        torch.testing.assert_close(found.x, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", ["ddim", "dpm++2m", "ddpm"])
def test_constraints_that_look_at_their_step_alone_hold(solver: str) -> None:
    process = process_of("trig")
    denoiser, x, grid = spec_mixture(process), normals(4, 2, seed=1), make_grid(process.schedule, 9)
    given, mask = normals(4, 2, seed=2), torch.tensor([[True, False]])
    for constraint in (Known(given, mask), Replacement(process, given, mask, "fresh")):
        expected = run(denoiser, make_solver(solver), grid, x, constraints=[constraint]).x
        found = run(denoiser, make_solver(solver), grid, x, constraints=[constraint], parallel=5, parallel_tol=0.0).x
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        assert torch.equal(found[:, 0], given[:, 0])


def test_corrections_that_keep_the_network_s_own_noise_hold() -> None:
    process = process_of("vp")

    class Pulled(Constraint):
        stateless = True

        def correct(self, post: object, x: Tensor, t: object, s: object) -> object:
            return process.with_mean(post, x, t, 0.9 * post.mean, "own")  # type: ignore[attr-defined, arg-type]

    grid, x = make_grid(process.schedule, 9), normals(4, 2, seed=1)
    for name in ("dpm++2m", "heun"):
        arguments = {"constraints": [Pulled()]}
        expected = run(spec_mixture(process), make_solver(name), grid, x, **arguments).x
        found = run(spec_mixture(process), make_solver(name), grid, x, **arguments, parallel=4, parallel_tol=0.0).x
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_conditions_are_those_of_the_samples() -> None:
    process = process_of("vp")
    denoiser = spec_mixture(process, labels=torch.tensor([0, 1, 2]))
    grid, noise = make_grid(process.schedule, 10), KeyedNoise(0, range(3))
    cond = {"label": torch.tensor([2, 0, 1])}
    arguments = {"noise": noise, "shape": (2,), "solver": DDIM, "grid": grid, "cond": cond, "dtype": torch.float64}
    plain = sample(denoiser, **arguments)  # type: ignore[arg-type]
    found = sample(denoiser, **arguments, parallel=10, parallel_tol=0.0)  # type: ignore[arg-type]
    torch.testing.assert_close(found.x, plain.x, rtol=1e-10, atol=1e-10)


def test_what_cannot_run_in_parallel_is_refused_before_anything_is_asked() -> None:
    process = process_of("vp")
    network, x, grid = ExactNetwork(spec_mixture(process), "v"), normals(3, 2), make_grid(process.schedule, 5)

    class Chained(Wrapper):
        @property
        def self_conditioned(self) -> bool:
            return True

    class Momentum(Constraint):
        pass

    for options, message in (
        ({"parallel": 0}, "parallel=0 must be at least 1"),
        ({"parallel": 4, "parallel_tol": -1.0}, "parallel_tol=-1"),
        ({"parallel": 4, "grad": True}, "neither grad nor callback"),
        ({"parallel": 4, "callback": print}, "neither grad nor callback"),
        ({"parallel": 4, "constraints": [Momentum()]}, "Momentum may remember earlier steps.*stateless = True"),
    ):
        with pytest.raises((PlanError, ValueError), match=message):
            run(network, DDIM, grid, x, **options)
    with pytest.raises(PlanError, match="self-conditioned"):
        run(Chained(network), DDIM, grid, x, parallel=4)
    with pytest.raises(PlanError, match="RK45 chooses its times"):
        run(network, make_solver("rk45"), torch.tensor([1.0, 0.1]), x, parallel=4)
    assert network.network_calls == 0
    with pytest.raises(PlanError, match="Ancestral walks tokens"):
        sample(
            joint_denoiser(triple_joint()),
            noise=KeyedNoise(0, range(2)),
            shape=(3,),
            solver=make_solver("ancestral"),
            grid=torch.linspace(1, 0, 4, dtype=torch.float64),
            parallel=2,
        )
