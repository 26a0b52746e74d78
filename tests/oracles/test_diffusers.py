"""Agreement with diffusers' schedulers, given the same noise prediction at their own noise levels.

The schedulers are driven as their pipelines do, in float64; ours get the times whose noise levels are exactly
theirs, from the table they hold. Bound: 2e-6 relative to the largest sample (their tables are float32).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, run, spec_mixture
from undiffuse.noise import InjectedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.registry import make_schedule
from undiffuse.process.tables import TableSchedule
from undiffuse.sampling.diffusers_setup import from_diffusers
from undiffuse.sampling.registry import make_solver

diffusers = pytest.importorskip("diffusers")

BOUND = 2e-6
TABLES = {"linear": ("ddpm", 1e-4, 0.02), "scaled_linear": ("scaled-linear", 0.00085, 0.012)}


def betas(kind: str) -> dict[str, Any]:
    return {
        "num_train_timesteps": 1000,
        "beta_schedule": kind,
        "beta_start": TABLES[kind][1],
        "beta_end": TABLES[kind][2],
    }


def gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def eps_at(process: GaussianProcess, denoiser: Any, x: Tensor, time: float) -> Tensor:
    """Noise that the exact mixture expects in a variance-preserving state."""
    return process.eps(x, denoiser(x, time), time)


def time_of_sigma(process: GaussianProcess, rho: float) -> float:
    return float(process.schedule.time(-torch.log(torch.tensor(rho, dtype=torch.float64))))


@pytest.fixture(params=list(TABLES))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_ddim_agrees(kind: str, steps: int) -> None:
    process = GaussianProcess(make_schedule(TABLES[kind][0]))
    denoiser, x = spec_mixture(process), normals(16, 2, seed=1)
    theirs = diffusers.DDIMScheduler(
        **betas(kind), clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading", steps_offset=0
    )
    theirs.set_timesteps(steps)
    state = x
    for t in theirs.timesteps:
        state = theirs.step(eps_at(process, denoiser, state, (int(t) + 1) / 1000), t, state, eta=0.0).prev_sample
    # Its last step, from index 0 "to the first alpha", stays at index 0; ours is the grid without that step.
    grid = make_grid(process.schedule, steps, "leading")[:-1]
    ours = run(denoiser, make_solver("ddim"), grid, x).x
    assert [round(float(t) * 1000) - 1 for t in grid] == theirs.timesteps.tolist()
    assert gap(ours, state) < BOUND


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_ddim_to_the_clean_end_and_with_noise_agrees(kind: str, steps: int) -> None:
    process = GaussianProcess(make_schedule(TABLES[kind][0]))
    denoiser, x = spec_mixture(process), normals(16, 2, seed=1)
    theirs = diffusers.DDIMScheduler(
        **betas(kind), clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    z = {("step", k): normals(16, 2, seed=10 + k) for k in range(steps)}
    for eta in (0.0, 0.6, 1.0):
        state = x
        for k, t in enumerate(theirs.timesteps):
            eps = eps_at(process, denoiser, state, (int(t) + 1) / 1000)
            noise = z["step", k] if eta else None
            state = theirs.step(eps, t, state, eta=eta, variance_noise=noise).prev_sample
        grid = make_grid(process.schedule, steps, "trailing")
        ours = run(denoiser, make_solver("ddim", eta=eta), grid, x, noise=InjectedNoise(z)).x  # type: ignore[arg-type]
        assert gap(ours, state) < BOUND


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("gamma", [None, 0.0, 0.3, 0.7, 1.0])
def test_few_step_schedulers_agree(gamma: float | None, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = diffusers.LCMScheduler() if gamma is None else diffusers.TCDScheduler()
    setup = from_diffusers(theirs)
    denoiser, x = spec_mixture(setup.process), normals(16, 2, seed=1)
    z = {("step", k): normals(16, 2, seed=10 + k) for k in range(steps)}
    theirs.set_timesteps(steps)
    state, extra = x, {} if gamma is None else {"eta": gamma}
    for k, t in enumerate(theirs.timesteps):
        monkeypatch.setitem(type(theirs).step.__globals__, "randn_tensor", lambda *args, k=k, **kwargs: z["step", k])
        eps = eps_at(setup.process, denoiser, state, (int(t) + 1) / 1000)
        state = theirs.step(eps, t, state, **extra).prev_sample
    solver = setup.solver if gamma is None else make_solver("tcd", gamma=gamma)
    ours = run(denoiser, solver, setup.grid(steps), x, noise=InjectedNoise(z)).x  # type: ignore[arg-type]
    assert gap(ours, state) < (BOUND if gamma is not None else 1e-5)  # LCM: its boundary scaling, up to 7e-6


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_scm_agrees(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = diffusers.SCMScheduler(sigma_data=1.0)
    setup = from_diffusers(theirs)
    denoiser, x = spec_mixture(setup.process), normals(16, 2, seed=1)
    z = {("step", k): normals(16, 2, seed=10 + k) for k in range(steps)}
    theirs.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    state = x
    for k, t in enumerate(theirs.timesteps[:-1]):
        monkeypatch.setitem(type(theirs).step.__globals__, "randn_tensor", lambda *args, k=k, **kwargs: z["step", k])
        time = min(1.0, float(t) / (np.pi / 2))
        mean, (alpha, sigma) = denoiser(state, time).mean, setup.process.coefficients(time, state)
        eps = setup.process.eps(state, denoiser(state, time), time)
        state = theirs.step(alpha * eps - sigma * mean, t, state).prev_sample
    ours = run(denoiser, setup.solver, setup.grid(steps), x, noise=InjectedNoise(z)).x  # type: ignore[arg-type]
    # Their first angle is 1.57080, 4e-6 above a right one, times states of up to 3.
    assert float((ours - state).abs().max()) < 2e-5


def drive(scheduler: Any, process: GaussianProcess, denoiser: Any, z: Tensor, **step: Any) -> Tensor:
    """Run a scheduler whose state is x / alpha, asking at its own sigmas; z is the state over its first sigma."""
    state = z * scheduler.sigmas[0].double()
    for k, t in enumerate(scheduler.timesteps):
        rho = float(scheduler.sigmas[k])
        alpha = (1 + rho**2) ** -0.5
        eps = eps_at(process, denoiser, state * alpha, time_of_sigma(process, rho))
        scheduler.scale_model_input(state, t)
        state = scheduler.step(eps, t, state, **step).prev_sample
    return state


def grid_of_sigmas(process: GaussianProcess, sigmas: Tensor) -> Tensor:
    """Times with the scheduler's noise levels; its 0 is the clean end."""
    positive = sigmas[sigmas > 0].double()
    times = process.schedule.time(-torch.log(positive))
    return torch.cat([times, times.new_zeros(len(sigmas) - len(positive))])


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_euler_agrees(kind: str, spacing: str, steps: int) -> None:
    process = GaussianProcess(make_schedule(TABLES[kind][0]))
    denoiser, z = spec_mixture(process), normals(16, 2, seed=1)
    theirs = diffusers.EulerDiscreteScheduler(**betas(kind), timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    theirs.sigmas = theirs.sigmas.double()
    state = drive(theirs, process, denoiser, z)
    grid = grid_of_sigmas(process, theirs.sigmas)
    sigma0 = float(theirs.sigmas[0])
    start = z * sigma0 * (1 + sigma0**2) ** -0.5
    ours = run(denoiser, make_solver("ddim"), grid, start).x
    assert gap(ours, state) < BOUND
    if spacing in ("trailing",):  # linspace and leading end at index 0 and go on to the clean end as make_grid does
        made = make_grid(process.schedule, steps, spacing)  # type: ignore[arg-type]
        torch.testing.assert_close(grid, made, rtol=0, atol=2e-6)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_dpm_solver_multistep_agrees(algorithm: str, solver_type: str, steps: int, final: str, spacing: str) -> None:
    process = GaussianProcess(make_schedule("scaled-linear"))
    denoiser, x = spec_mixture(process), normals(16, 2, seed=1)
    theirs = diffusers.DPMSolverMultistepScheduler(
        **betas("scaled_linear"),
        algorithm_type=algorithm,
        solver_order=2,
        solver_type=solver_type,
        final_sigmas_type=final,
        timestep_spacing=spacing,
        lower_order_final=True,
    )
    theirs.set_timesteps(steps)
    sigmas, state = theirs.sigmas.double(), x
    theirs.sigmas = sigmas
    noises = {("step", k): normals(16, 2, seed=50 + k) for k in range(steps)}
    for k, t in enumerate(theirs.timesteps):
        eps = eps_at(process, denoiser, state, time_of_sigma(process, float(sigmas[k])))
        state = theirs.step(eps, t, state, variance_noise=noises["step", k]).prev_sample
    tau = 1.0 if algorithm.startswith("sde") else 0.0
    grid = grid_of_sigmas(process, sigmas)
    rule = make_solver("dpm++2m", tau=tau, variant=solver_type)
    ours = run(denoiser, rule, grid, x, noise=InjectedNoise(noises)).x  # type: ignore[arg-type]
    assert state.isfinite().all()
    assert gap(ours, state) < BOUND


# -- spacings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 20, 50, 999])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_integer_spacings_are_those_of_diffusers(spacing: str, steps: int) -> None:
    theirs = diffusers.DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=0)
    theirs.set_timesteps(steps)
    grid = make_grid(make_schedule("ddpm"), steps, spacing)  # type: ignore[arg-type]
    assert float(grid[-1]) == 0.0
    index = (grid[:-1] * 1000).round().long() - 1
    assert index.tolist() == theirs.timesteps.tolist()
    assert np.allclose((grid[:-1] * 1000).numpy() % 1, 0, atol=1e-9) or np.allclose(
        (grid[:-1] * 1000).numpy(), np.rint((grid[:-1] * 1000).numpy()), atol=1e-9
    )


@pytest.mark.parametrize("steps", [1, 7, 20, 50])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
def test_spacings_that_end_at_the_smallest_level_are_those_of_the_dpm_solvers(spacing: str, steps: int) -> None:
    theirs = diffusers.DPMSolverMultistepScheduler(
        **betas("linear"), timestep_spacing=spacing, steps_offset=0, final_sigmas_type="sigma_min"
    )
    theirs.set_timesteps(steps)
    grid = make_grid(make_schedule("ddpm"), steps, spacing, end="t_min")  # type: ignore[arg-type]
    assert float(grid[-1]) == make_schedule("ddpm").t_min
    index = (grid[:-1] * 1000).round().long() - 1
    assert index.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("kind", list(TABLES))
@pytest.mark.parametrize("rescale", [False, True])
def test_tables_are_those_of_diffusers(kind: str, rescale: bool) -> None:
    theirs = diffusers.DDIMScheduler(**betas(kind), rescale_betas_zero_snr=rescale).alphas_cumprod.double()
    schedule = make_schedule(TABLES[kind][0], zero_terminal_snr=rescale)
    assert isinstance(schedule, TableSchedule)
    ours = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=3e-5, atol=1e-7)
