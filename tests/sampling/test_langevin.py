"""Euler-Maruyama, predictor-corrector and annealed Langevin: exact moments, formulas, and samples of one batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, push, run, slope, spec_mixture
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.solver import NOTHING


def levels(process: GaussianProcess, t: float) -> tuple[float, float]:
    time = torch.tensor(t, dtype=torch.float64)
    return float(process.schedule.alpha(time)), float(process.schedule.sigma(time))


def variance_error(name: str, steps: int, streams: list[tuple[str, int]] | None = None, **options: object) -> float:
    """Exact variance error of a run on N(0.7, 0.25) from t = 1 to 0.005, `vp`, even in half log-SNR."""
    process, mean, variance, low = process_of("vp"), 0.7, 0.25, 0.005
    denoiser = GaussianDenoiser(torch.tensor([mean]).double(), torch.tensor([[variance]]).double(), process)
    (a, s), (a0, s0) = levels(process, 1.0), levels(process, low)
    ends = process.schedule.half_logsnr(torch.tensor([1.0, low], dtype=torch.float64))
    grid = process.schedule.time(torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64))
    start, scale = (torch.tensor([c], dtype=torch.float64) for c in (a * mean, math.sqrt(a**2 * variance + s**2)))
    extra = {} if streams is None else {"streams": streams}
    return abs(
        float(push(denoiser, make_solver(name, **options), grid, start, scale, **extra)[1]) - a0**2 * 0.25 - s0**2
    )


def test_euler_maruyama_has_the_table_s_variances() -> None:
    """Principles, section 5: 6.7e-2 at 16 steps to 3.3e-3 at 256, order 1."""
    errors = [variance_error("euler-maruyama", steps) for steps in (16, 64, 256)]
    assert 1 / 1.5 < errors[0] / 6.7e-2 < 1.5
    assert 1 / 1.5 < errors[-1] / 3.3e-3 < 1.5
    assert abs(slope(errors[1:], 4) - 1) < 0.25, errors


def test_euler_maruyama_is_its_formula_and_euler_at_temperature_zero() -> None:
    process = process_of("vp")
    denoiser, x, z = spec_mixture(process), normals(8, 2, seed=1), normals(8, 2, seed=2)
    t, s, tau = 0.6, 0.55, 0.7
    schedule, time = process.schedule, torch.tensor(t, dtype=torch.float64)
    drift = schedule.alpha_slope(time) / schedule.alpha(time)
    heat = schedule.diffusion(time)
    score = process.score(x, denoiser(x, t), t)
    expected = x + (s - t) * (drift * x - (1 + tau**2) / 2 * heat * score) + tau * torch.sqrt(heat * (t - s)) * z
    grid = torch.tensor([t, s], dtype=torch.float64)
    rule = make_solver("euler-maruyama", tau=tau)
    found = run(denoiser, rule, grid, x, noise=InjectedNoise({("step", 0): z})).x
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    whole = make_grid(schedule, 12)
    cold = run(denoiser, make_solver("euler-maruyama", tau=0.0), whole, x).x
    torch.testing.assert_close(cold, run(denoiser, make_solver("euler"), whole, x).x, rtol=1e-12, atol=1e-12)


def test_euler_maruyama_agrees_with_torchsde_on_the_same_path() -> None:
    torchsde = pytest.importorskip("torchsde")
    process = process_of("vp")
    denoiser, x, steps = spec_mixture(process), normals(4, 2, seed=1), 8
    grid = torch.linspace(0.9, 0.5, steps + 1, dtype=torch.float64)

    class Reverse(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, u: Tensor, y: Tensor) -> Tensor:
            t = float(0.9 - u)
            time, score = torch.tensor(t, dtype=torch.float64), process.score(y, denoiser(y, t), t)
            schedule = process.schedule
            return -(schedule.alpha_slope(time) / schedule.alpha(time) * y - schedule.diffusion(time) * score)

        def g(self, u: Tensor, y: Tensor) -> Tensor:
            return process.schedule.diffusion((0.9 - u).double()).sqrt() * torch.ones_like(y)

    path = torchsde.BrownianInterval(0.0, 0.4, size=(4, 2), dtype=torch.float64, entropy=1)
    marks = (0.9 - grid).tolist()
    draws = {("step", k): path(marks[k], marks[k + 1]) / math.sqrt(0.4 / steps) for k in range(steps)}
    theirs = torchsde.sdeint(Reverse(), x, 0.9 - grid, bm=path, method="euler", dt=0.4 / steps)[-1]
    ours = run(denoiser, make_solver("euler-maruyama"), grid, x, noise=InjectedNoise(draws)).x
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_edm_churn_has_the_table_s_variances() -> None:
    errors = [variance_error("edm-heun", steps, churn=10.0) for steps in (16, 256)]
    assert 1 / 1.5 < errors[0] / 4.7e-2 < 1.5
    assert 1 / 1.5 < errors[1] / 2.1e-4 < 1.5


def test_a_correction_is_the_paper_s_formula_with_the_norms_of_the_sample() -> None:
    process, x = process_of("vp"), normals(3, 12, seed=1)
    denoiser = GaussianDenoiser(normals(12, seed=4), 0.3 * torch.eye(12).double(), process)
    t, s, snr = 0.6, 0.5, 0.2
    z, xi = normals(3, 12, seed=2), [normals(3, 12, seed=seed) for seed in (5, 6)]
    grid = torch.tensor([t, s], dtype=torch.float64)
    state = run(denoiser, make_solver("ddpm"), grid, x, noise=InjectedNoise({("step", 0): z})).x
    kept = (levels(process, t)[0] / levels(process, s)[0]) ** 2
    for draw in xi:
        score = process.score(state, denoiser(state, s), s)
        size = 2 * kept * (snr * draw.norm(dim=1, keepdim=True) / score.norm(dim=1, keepdim=True)) ** 2
        state = state + size * score + torch.sqrt(2 * size) * draw
    noise = InjectedNoise({("step", 0): z, ("langevin", 0): xi[0], ("langevin", 1): xi[1]})
    rule = make_solver("pc-langevin", corrections=2, snr=snr)
    torch.testing.assert_close(run(denoiser, rule, grid, x, noise=noise).x, state, rtol=1e-11, atol=1e-11)
    one = InjectedNoise({key: value[1:2] for key, value in noise.given.items()})
    torch.testing.assert_close(run(denoiser, rule, grid, x[1:2], noise=one).x, state[1:2], rtol=1e-11, atol=1e-11)


def test_corrections_mend_the_variance_of_coarse_steps() -> None:
    """N(m, 0.3) in 12 dimensions from 10 steps: spread of 4000 samples, whose own standard error is below 1 %."""
    process = process_of("vp")
    denoiser = GaussianDenoiser(torch.ones(12).double(), 0.3 * torch.eye(12).double(), process)
    grid, errors = make_grid(process.schedule, 10, end="t_min"), []
    for rule in (make_solver("ddpm"), make_solver("pc-langevin", corrections=3)):
        x = run(denoiser, rule, grid, normals(4000, 12, seed=1), noise=KeyedNoise(0, range(4000))).x
        errors.append(abs(float(x.var(0).mean()) - 0.3))
    assert errors[1] < 0.7 * errors[0], errors


def test_annealed_langevin_is_the_published_update() -> None:
    process, x = process_of("ve"), normals(3, 2, seed=1) * 5
    denoiser, updates = spec_mixture(process), 3
    grid = process.schedule.time(-torch.log(torch.tensor([5.0, 1.0, 0.2], dtype=torch.float64)))
    rule = make_solver("annealed-langevin", updates=updates, size=0.2)
    draws = {("langevin", k): normals(3, 2, seed=10 + k) for k in range(3 * updates)}
    state, count = x, 0
    for time in grid.tolist():
        rho = levels(process, time)[1]
        for _ in range(updates):
            size = 0.2 * rho**2  # 2e-5 rho^2 / 0.01^2
            score = process.score(state, denoiser(state, time), time)
            state = state + size / 2 * score + math.sqrt(size) * draws["langevin", count]
            count += 1
    end = denoiser(state, float(grid[-1])).mean
    whole = torch.cat([grid, grid.new_zeros(1)])
    found = run(denoiser, rule, whole, x, noise=InjectedNoise(draws))  # type: ignore[arg-type]
    torch.testing.assert_close(found.x, end, rtol=1e-10, atol=1e-10)
    assert found.nfe == 3 * updates + 1


def test_annealed_langevin_reaches_the_law_with_enough_updates() -> None:
    """The variance of N(0.7, 0.25), exactly: few updates per level leave it far off, many come close.

    What is left is the law of the last level but one, whose state goes on to the last as it is.
    """
    found = []
    for updates in (5, 40):
        streams = [("langevin", k) for k in range(10 * updates)]
        found.append(variance_error("annealed-langevin", 10, streams, updates=updates))
    assert found[1] < 0.1 * found[0]


@pytest.mark.parametrize("size", [0.2, 1.5])
def test_langevin_steps_widen_a_normal_law_by_a_known_factor(size: float) -> None:
    """A step is z <- p z + r xi; for N(0, V) the variance that it keeps is V / (1 - a / (4 V)) with a = size rho^2."""
    process, v = process_of("ve"), 0.7
    white = GaussianDenoiser(torch.zeros(1).double(), v * torch.eye(1).double(), process)
    grid = process.schedule.time(-torch.log(torch.tensor([1.3, 0.9], dtype=torch.float64)))
    rule = make_solver("annealed-langevin", updates=2, size=size)
    stage, t = rule.plan(process, grid).entries[0], float(grid[0])

    def moved(z: float, xi: float) -> float:
        x = torch.full((1, 1), z, dtype=torch.float64)
        return float(rule.step(stage, x, white(x, t), NOTHING, torch.full((1, 1), xi).double())[0])

    p, r = moved(1.0, 0.0), moved(0.0, 1.0)
    law = v + 1.3**2
    assert r**2 / (1 - p**2) == pytest.approx(law / (1 - size * 1.3**2 / (4 * law)), rel=1e-9)
