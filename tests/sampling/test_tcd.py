"""TCD steps: DDIM at gamma = 0, exact marginals at every gamma, times per item. Agreement: `oracles.test_diffusers`."""

from __future__ import annotations

import pytest
import torch

from tests.oracles.continuous import normals, run, spec_mixture
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.steps import Steps


@pytest.mark.parametrize("schedule", ["cosine", "rf", "edm", "ddpm"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_signal_and_noise_add_up_in_every_step(schedule: str, gamma: float) -> None:
    process = GaussianProcess(make_schedule(schedule))
    steps = Steps(process, make_grid(process.schedule, 7, "t", "t_min"))
    found = make_solver("tcd", gamma=gamma).coefficients(steps)  # type: ignore[attr-defined]
    noise = torch.zeros(()) if found.noise is None else found.noise
    torch.testing.assert_close(found.state * steps.alpha_t + found.mean, steps.alpha_s, rtol=0, atol=1e-12)
    kept = (found.state * steps.sigma_t) ** 2 + noise**2
    torch.testing.assert_close(kept, steps.sigma_s**2, rtol=1e-10, atol=1e-14)
    # Below the end there is less noise, so more of it is fresh; the last step ends at t_min, where nothing is.
    assert float(noise.reshape(-1)[-1]) == 0 and (gamma == 0 or bool((noise[:-1] > 0).all()))


def test_without_fresh_noise_it_is_ddim() -> None:
    process = GaussianProcess(make_schedule("ddpm"))
    denoiser, x = spec_mixture(process), normals(16, 2, seed=1)
    grid = make_grid(process.schedule, 6, "t")
    ours = run(denoiser, make_solver("tcd", gamma=0.0), grid, x).x
    assert (ours - run(denoiser, make_solver("ddim"), grid, x).x).abs().max() < 1e-12


def test_times_of_single_items_are_those_of_a_shared_grid() -> None:
    process = GaussianProcess(make_schedule("cosine"))
    denoiser, x = spec_mixture(process), normals(4, 2, seed=1)
    grid = make_grid(process.schedule, 5, "t")
    alone = run(denoiser, make_solver("tcd"), grid, x).x
    apart = run(denoiser, make_solver("tcd"), grid.view(-1, 1, 1).expand(-1, 4, 1), x).x
    assert (alone - apart).abs().max() < 1e-12


@pytest.mark.parametrize("gamma", [-0.1, 1.5, float("nan")])
def test_bad_shares_are_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma="):
        make_solver("tcd", gamma=gamma)
