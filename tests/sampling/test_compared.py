"""Steps compared with those of lower order: the samples stay, the difference is the one meant, and has its order."""

from __future__ import annotations

import pytest
import torch

from tests.oracles.continuous import normals, process_of, run, slope, spec_mixture
from tests.oracles.test_principles import logsnr_grid
from undiffuse.errors import PlanError
from undiffuse.process.grids import make_grid, pyramid
from undiffuse.sampling.compared import Compared, StepError
from undiffuse.sampling.registry import make_solver


@pytest.mark.parametrize(
    "name", ["dpm++2m", "sde-dpm++3m", "deis-3", "dpm-solver-3m", "heun", "dpm-solver-3", "dpm-fast"]
)
def test_samples_are_those_of_the_solver(name: str) -> None:
    process, seen = process_of("rf"), []
    denoiser, x, grid = spec_mixture(process), normals(5, 2, seed=1), make_grid(process.schedule, 9)
    plain = run(denoiser, make_solver(name), grid, x)
    compared = run(denoiser, Compared(solver=make_solver(name), heard=seen.append), grid, x)
    assert torch.equal(compared.x, plain.x) and compared.nfe == plain.nfe
    assert seen and all(told.error.shape == (5,) and bool((told.error > 0).all()) for told in seen)


@pytest.mark.parametrize(("name", "order"), [("heun", 2), ("dpm++2m", 2), ("deis-3", 3)])
def test_differences_fall_at_the_order_of_the_lower_step_and_one_more(name: str, order: int) -> None:
    """At the same place of the path, where steps are half as long: 2^p for a lower order of p - 1."""
    process = process_of("vp")
    denoiser, x, found = spec_mixture(process), normals(64, 2, seed=0), []
    for steps in (32, 128):
        seen: list[StepError] = []
        run(denoiser, Compared(solver=make_solver(name), heard=seen.append), logsnr_grid(process, steps), x)
        middle = next(told for told in seen if told.step == steps // 2)
        found.append(float(middle.error.square().mean().sqrt()))
    assert abs(slope(found, 4) - order) < 0.25, found


def test_the_step_of_lower_order_is_ddim_from_the_same_state() -> None:
    process, seen = process_of("vp"), []
    denoiser, x, grid = spec_mixture(process), normals(6, 2, seed=1), logsnr_grid(process, 20)
    for name in ("dpm++2m", "heun", "dpm-solver-2"):
        seen.clear()
        path = run(denoiser, Compared(solver=make_solver(name), heard=seen.append), grid, x, trajectory=True).trajectory
        assert path is not None
        assert [told.step for told in seen] == list(range(1 if name == "dpm++2m" else 0, 20))
        for told in seen:
            lower = run(denoiser, make_solver("ddim"), grid[told.step : told.step + 2], path[told.step]).x
            expected = (path[told.step + 1] - lower).square().mean(1).sqrt()
            torch.testing.assert_close(told.error, expected, rtol=1e-9, atol=1e-12)


def test_steps_of_first_order_have_nothing_to_be_compared_with() -> None:
    process = process_of("vp")
    denoiser, x = spec_mixture(process), normals(4, 2, seed=1)
    for name, steps in (("ddim", []), ("dpm++2m", [1, 2, 3, 4]), ("heun", [0, 1, 2, 3, 4])):
        seen: list[StepError] = []
        run(denoiser, Compared(solver=make_solver(name), heard=seen.append), make_grid(process.schedule, 6), x)
        assert [told.step for told in seen] == steps


def test_elements_that_wait_have_no_error() -> None:
    process, seen = process_of("rf"), []
    denoiser, x = spec_mixture(process), normals(4, 2, seed=1)
    for name in ("dpm++2m", "heun"):
        solver = make_solver(name)
        found = run(denoiser, Compared(solver=solver, heard=seen.append), pyramid(5, 2, 2), x).x
        assert torch.equal(found, run(denoiser, solver, pyramid(5, 2, 2), x).x)
    assert seen and all(bool(told.error.isfinite().all()) for told in seen)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unipc", "corrector=False"),
        ("rk45", "no steps on a grid"),
        ("pc-langevin", "not all affine"),
        ("ancestral", "no steps"),
    ],
)
def test_what_cannot_be_compared_is_refused(name: str, message: str) -> None:
    process = process_of("vp")
    with pytest.raises(PlanError, match=message):
        Compared(solver=make_solver(name), heard=print).plan(process, make_grid(process.schedule, 4))
