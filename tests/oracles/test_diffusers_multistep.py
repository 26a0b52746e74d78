"""Agreement of the multistep solvers with diffusers' schedulers, read from their configs, at their own noise levels.

The same exact noise is asked at the levels that the scheduler holds (not at its whole timesteps); the bound is 2e-6 of
the largest sample, since its tables are float32. Their known faults are shown at the end.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, run, spec_mixture
from tests.oracles.test_diffusers import drive, eps_at, gap, grid_of_sigmas, time_of_sigma
from undiffuse.noise import InjectedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.diffusers_setup import from_diffusers
from undiffuse.sampling.registry import make_solver

diffusers = pytest.importorskip("diffusers")

BOUND = 2e-6
TABLE: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def compare(scheduler: Any, steps: int, bound: float = BOUND, spare_last: bool = False) -> None:
    """Walk the scheduler and what its config says, from one state with one noise; compare the ends.

    Args:
        spare_last: Compare before a last step to no noise, which ours ends exactly at the mean.
    """
    setup = from_diffusers(scheduler)
    denoiser, x = spec_mixture(setup.process), normals(16, 2, seed=1)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = sigmas = scheduler.sigmas.double()
    noises = {("step", k): normals(16, 2, seed=50 + k) for k in range(steps)}
    state = x
    for k, t in enumerate(scheduler.timesteps[: steps - spare_last]):
        eps = eps_at(setup.process, denoiser, state, time_of_sigma(setup.process, float(sigmas[k])))
        noise = {"variance_noise": noises["step", k]} if setup.solver.stochastic else {}
        state = scheduler.step(eps, t, state, **noise).prev_sample
    grid = grid_of_sigmas(setup.process, sigmas[: len(sigmas) - spare_last])
    ours = run(
        denoiser, setup.solver, grid[torch.cat([grid.diff() < 0, torch.tensor([True])])], x, noise=InjectedNoise(noises)
    ).x
    assert state.isfinite().all()
    assert gap(ours, state) < bound, gap(ours, state)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++"])
def test_dpm_solver_multistep_agrees_at_every_order(algorithm: str, order: int, steps: int, final: str) -> None:
    if algorithm == "dpmsolver" and final == "zero":
        pytest.skip("deprecated there: the noise form to no noise divides by zero")
    for solver_type in ("midpoint", "heun"):
        options = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver_type}
        compare(diffusers.DPMSolverMultistepScheduler(**TABLE, **options, final_sigmas_type=final), steps)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_agrees(order: int, steps: int, final: str) -> None:
    for options in ({}, {"solver_type": "bh1"}, {"predict_x0": False}):
        if options and final == "zero":
            continue  # bh1 gives NaN there, and the noise form divides by zero
        compare(
            diffusers.UniPCMultistepScheduler(**TABLE, solver_order=order, final_sigmas_type=final, **options), steps
        )


@pytest.mark.parametrize("steps", [5, 10, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_agrees(order: int, steps: int) -> None:
    compare(diffusers.DEISMultistepScheduler(**TABLE, solver_order=order), steps, BOUND if order == 1 else 1e-5)


@pytest.mark.parametrize("name", ["LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_solvers_in_the_state_over_alpha_agree(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their state is x / alpha. LMS goes to no noise by a fourth-order step, so it is compared before its last one."""
    scheduler = getattr(diffusers, name + "Scheduler")(**TABLE)
    setup = from_diffusers(scheduler)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    denoiser, z = spec_mixture(setup.process), normals(16, 2, seed=1)
    noises = {("step", k): normals(16, 2, seed=50 + k) for k in range(steps)}
    given = iter(noises.values())
    module = __import__(type(scheduler).__module__, fromlist=["randn_tensor"])
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: next(given))
    last = name == "LMSDiscrete"
    scheduler.timesteps = scheduler.timesteps[: steps - last]
    state = drive(scheduler, setup.process, denoiser, z)
    grid = grid_of_sigmas(setup.process, scheduler.sigmas[: steps + 1 - last])
    alphas = setup.process.schedule.alpha(grid)
    start = z * scheduler.sigmas[0] * alphas[0]
    ours = run(denoiser, setup.solver, grid, start, noise=InjectedNoise(noises)).x  # type: ignore[arg-type]
    assert gap(ours / alphas[-1], state) < BOUND


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_heun_agrees(steps: int) -> None:
    """It holds every level but the first twice, once for each of its two questions."""
    scheduler = diffusers.HeunDiscreteScheduler(**TABLE)
    setup = from_diffusers(scheduler)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    denoiser, z = spec_mixture(setup.process), normals(16, 2, seed=1)
    state = drive(scheduler, setup.process, denoiser, z)
    grid = grid_of_sigmas(setup.process, torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]]))
    start = z * scheduler.sigmas[0] * setup.process.schedule.alpha(grid[0])
    ours = run(denoiser, setup.solver, grid, start)
    assert ours.nfe == len(scheduler.timesteps) == 2 * steps - 1
    assert gap(ours.x, state) < BOUND


@pytest.mark.parametrize("steps", [5, 20])
def test_walking_up_is_the_inverse_scheduler(steps: int) -> None:
    """From index 0, since theirs begins at data without noise; its timestep is that at which a step ends."""
    scheduler = diffusers.DDIMInverseScheduler(**TABLE, clip_sample=False)
    scheduler.set_timesteps(steps)
    process = GaussianProcess(make_schedule("scaled-linear"))
    denoiser, state = spec_mixture(process), 0.5 * normals(16, 2, seed=1)
    indices = scheduler.timesteps.tolist()
    grid = (torch.tensor(indices, dtype=torch.float64).flip(0) + 1) / 1000
    ours = run(denoiser, make_solver("ddim"), grid, state, up=True).x
    for before, after in pairwise(indices):
        state = scheduler.step(eps_at(process, denoiser, state, (before + 1) / 1000), after, state).prev_sample
    assert gap(ours, state) < BOUND


@pytest.mark.parametrize("name", ["FlowMatchEuler", "FlowMatchHeun"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_flow_matching_agrees(name: str, steps: int) -> None:
    """Their levels are times, and they are told velocities."""
    scheduler = getattr(diffusers, name + "DiscreteScheduler")(shift=3.0)
    setup = from_diffusers(scheduler)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    denoiser, state = spec_mixture(setup.process), normals(16, 2, seed=1)
    each = scheduler.sigmas if name == "FlowMatchEuler" else torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1::2]])
    ours = run(denoiser, setup.solver, each, state).x
    for time, t in zip(scheduler.sigmas.tolist(), scheduler.timesteps, strict=False):
        velocity = setup.process.velocity(state, denoiser(state, time), time)
        state = scheduler.step(velocity, t, state).prev_sample
    assert gap(ours, state) < BOUND


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_ipndm_agrees_from_its_second_step_on(steps: int) -> None:
    """Its first answer, at alpha = 0, enters later steps there and is no memory here: so both start after it.

    And both stop before the last step, which ours ends at the mean and theirs by a fourth-order step.
    """
    scheduler = diffusers.IPNDMScheduler()
    setup = from_diffusers(scheduler)
    scheduler.set_timesteps(steps)
    scheduler.betas, scheduler.alphas = scheduler.betas.double(), (1 - scheduler.betas.double() ** 2).sqrt()
    denoiser, x = spec_mixture(setup.process), normals(16, 2, seed=1)
    state, times = x, setup.grid(steps)
    scheduler.set_begin_index(1)
    for k, t in enumerate(scheduler.timesteps[1:-1], start=1):
        post = denoiser(state, float(times[k]))
        state = scheduler.step(setup.process.v(state, post, float(times[k])), t, state).prev_sample
    ours = run(denoiser, setup.solver, times[1:-1], x).x
    assert gap(ours, state) < BOUND


def test_a_whole_setup_samples_as_its_scheduler_does() -> None:
    """Grid and solver both from the config, against the scheduler driven by itself."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**TABLE, use_karras_sigmas=True)
    setup = from_diffusers(scheduler)
    denoiser, x = spec_mixture(setup.process), normals(16, 2, seed=1)
    scheduler.set_timesteps(12)
    state = x
    for sigma, t in zip(scheduler.sigmas.double(), scheduler.timesteps, strict=False):
        eps = eps_at(setup.process, denoiser, state, time_of_sigma(setup.process, float(sigma)))
        state = scheduler.step(eps, t, state).prev_sample
    assert gap(run(denoiser, setup.solver, setup.grid(12), x).x, state) < 1e-3  # float32 levels, 4e-4 at the lowest


# -- known faults of public implementations ---------------------------------------------------------------


def error_of_diffusers(
    options: dict[str, Any], steps: int, process: GaussianProcess, x: Tensor, exact: Tensor
) -> float:
    """RMS error of their multistep scheduler on a grid even in half log-SNR that ends at its lowest level."""
    scheduler = diffusers.DPMSolverMultistepScheduler(**TABLE, **options, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(steps)
    schedule = process.schedule
    grid = make_grid(schedule, steps, "logsnr", "t_min")
    scheduler.sigmas = torch.exp(-schedule.half_logsnr(grid))
    state, denoiser = x, spec_mixture(process)
    for k, t in enumerate(scheduler.timesteps):
        eps = eps_at(process, denoiser, state, time_of_sigma(process, float(scheduler.sigmas[k])))
        state = scheduler.step(eps, t, state).prev_sample
    return float((state - exact).square().sum(1).mean().sqrt())


def test_their_third_order_solver_is_of_second_order_for_want_of_a_factor_2() -> None:
    process = GaussianProcess(make_schedule("scaled-linear"))
    denoiser, x = spec_mixture(process), normals(32, 2, seed=0)
    fine = run(denoiser, make_solver("unipc-3"), make_grid(process.schedule, 300, "logsnr", "t_min"), x).x
    counts = (40, 160)
    theirs = [error_of_diffusers({"solver_order": 3}, n, process, x, fine) for n in counts]
    ours = [
        float((run(denoiser, make_solver("dpm++3m"), make_grid(process.schedule, n, "logsnr", "t_min"), x).x - fine)
              .square().sum(1).mean().sqrt())
        for n in counts
    ]  # fmt: skip
    assert 12 < theirs[0] / theirs[1] < 24  # 4^2
    assert 40 < ours[0] / ours[1] < 100  # 4^3
    assert theirs[1] > 4 * ours[1]


def test_their_leading_spacing_never_sees_pure_noise() -> None:
    """Ten of 1000 steps begin at entry 900, whose signal is two and a half times that of the last entry."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading")
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) == 900
    abar = scheduler.alphas_cumprod.double()
    assert float((abar[900] / abar[999]).sqrt()) == pytest.approx(2.55, rel=0.02)
    trailing = diffusers.DDIMScheduler(timestep_spacing="trailing")
    trailing.set_timesteps(10)
    assert int(trailing.timesteps[0]) == 999


@pytest.mark.parametrize("options", [{"solver_type": "bh1"}, {"lower_order_final": False}])
def test_their_unipc_ends_in_nan_where_ours_ends_at_the_mean(options: dict[str, Any]) -> None:
    scheduler = diffusers.UniPCMultistepScheduler(**TABLE, **options, final_sigmas_type="zero")
    scheduler.set_timesteps(5)
    setup = from_diffusers(scheduler)
    state = x = normals(4, 2, seed=1)
    for t in scheduler.timesteps:
        state = scheduler.step(torch.zeros_like(state), t, state).prev_sample
    assert not state.isfinite().all()
    assert run(spec_mixture(setup.process), setup.solver, setup.grid(5), x).x.isfinite().all()


def test_their_table_with_zero_terminal_snr_rises_at_its_last_entry() -> None:
    abar = diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True).alphas_cumprod
    assert float(abar[-1]) > float(abar[-2])
    ours = from_diffusers(diffusers.EulerDiscreteScheduler(rescale_betas_zero_snr=True)).process.schedule
    assert bool((ours.half_logsnr(torch.tensor([0.999, 1.0], dtype=torch.float64)).diff() < 0).all())


def test_their_ddim_with_linspace_steps_past_its_next_timestep() -> None:
    """Ten timesteps 111 apart and steps of 100: each ends above the level that the next begins with."""
    scheduler = diffusers.DDIMScheduler(**TABLE, clip_sample=False, timestep_spacing="linspace")
    scheduler.set_timesteps(10)
    abar, x = scheduler.alphas_cumprod.double(), normals(4, 2, seed=1)
    first, following = scheduler.timesteps[:2].tolist()
    moved = scheduler.step(torch.zeros_like(x), first, x).prev_sample  # without noise: x alpha' / alpha
    assert following == 888
    torch.testing.assert_close(moved, x * (abar[first - 100] / abar[first]).sqrt(), rtol=1e-5, atol=0)
