"""DPM-Solver-2 with noise: diffusers' own numbers, exact means, variances of second order, the step from pure noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.oracles.continuous import normals, process_of, push, run, slope, spec_mixture
from tests.oracles.test_principles import logsnr_grid
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.noise import InjectedNoise
from undiffuse.process.grids import make_grid
from undiffuse.sampling.diffusers_setup import from_diffusers
from undiffuse.sampling.registry import make_solver


@pytest.mark.parametrize("steps", [5, 20])
def test_kdpm2_ancestral_of_diffusers_agrees(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_k_dpm_2_ancestral_discrete as module

    scheduler: Any = diffusers.KDPM2AncestralDiscreteScheduler(beta_schedule="scaled_linear")
    setup = from_diffusers(scheduler)
    scheduler.set_timesteps(steps)
    levels = scheduler.sigmas.double()
    middles = scheduler.sigmas_interpol.double()
    for name in ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down"):
        setattr(scheduler, name, getattr(scheduler, name).double())
    noises = {("step", k): normals(16, 2, seed=50 + k) for k in range(steps)}
    given = iter(noises.values())
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(given))
    process, denoiser, z = setup.process, spec_mixture(setup.process), normals(16, 2, seed=1)
    state = z * levels[0]
    for k, t in enumerate(scheduler.timesteps):
        rho = float(middles[k - 1] if k % 2 else levels[k])
        alpha = (1 + rho**2) ** -0.5
        time = float(process.schedule.time(-torch.log(torch.tensor(rho, dtype=torch.float64))))
        eps = process.eps(state * alpha, denoiser(state * alpha, time), time)
        scheduler.scale_model_input(state, t)
        state = scheduler.step(eps, t, state).prev_sample
    each = torch.cat([levels[:1], levels[1::2]])[:steps]
    grid = torch.cat([process.schedule.time(-torch.log(each)), torch.zeros(1, dtype=torch.float64)])
    start = z * levels[0] * process.schedule.alpha(grid[0])
    ours = run(denoiser, setup.solver, grid, start, noise=InjectedNoise(noises))  # type: ignore[arg-type]
    assert ours.nfe == 2 * steps - 1 == len(scheduler.timesteps)
    # Where it asks in the middle is a float32 logarithm of its table: 2e-6 of the largest sample as for the others.
    assert float((ours.x - state).abs().max() / state.abs().max()) < 2e-6


def test_means_are_exact_and_variances_of_second_order() -> None:
    """On N(0.7, 0.25), by propagating coefficients: no sampling error."""
    process, mean, variance, errors = process_of("vp"), 0.7, 0.25, []
    denoiser = GaussianDenoiser(
        torch.tensor([mean], dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64), process
    )
    for steps in (32, 128):
        grid = logsnr_grid(process, steps, low=0.005)
        (alpha, sigma), (alpha_0, sigma_0) = ([float(c[k]) for c in process.schedule.levels(grid)] for k in (0, -1))
        scale = torch.tensor([math.sqrt(alpha**2 * variance + sigma**2)], dtype=torch.float64)
        start = torch.tensor([alpha * mean], dtype=torch.float64)
        found, spread = push(denoiser, make_solver("dpm2-ancestral"), grid, start, scale)
        assert float(found) == pytest.approx(alpha_0 * mean, abs=1e-12)
        errors.append(abs(float(spread) - alpha_0**2 * variance - sigma_0**2))
    assert abs(slope(errors, 4) - 2) < 0.25, errors


def test_a_step_from_pure_noise_is_ancestral() -> None:
    process = process_of("rf")
    denoiser, x = spec_mixture(process), normals(5, 2, seed=1)
    noise = InjectedNoise({("step", 0): normals(5, 2, seed=2)})
    grid = make_grid(process.schedule, 6)[:2]
    assert float(grid[0]) == 1.0
    found, ddpm = (run(denoiser, make_solver(name), grid, x, noise=noise) for name in ("dpm2-ancestral", "ddpm"))
    assert found.nfe == 1
    torch.testing.assert_close(found.x, ddpm.x, rtol=1e-12, atol=1e-12)
