"""DDRM: what it adds up to at every level, and what it is the same as. SNIPS: the law that its steps leave alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import process_of
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.operators.diagonal import Diagonal, Mask
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.ddim import DDIM
from undiffuse.sampling.loop import sample
from undiffuse.sampling.plan import Stage
from undiffuse.sampling.solver import NOTHING
from undiffuse.tasks.restore.constraints import StateFit
from undiffuse.tasks.restore.exact import exact_posterior
from undiffuse.tasks.restore.registry import make_restorer
from undiffuse.tasks.restore.restorer import Problem
from undiffuse.tasks.restore.snips import SpectralLangevin
from undiffuse.tasks.restore.spectral import SpectralStep

VP = process_of("vp")


def prior(process: GaussianProcess = VP, size: int = 4) -> GaussianDenoiser:
    root = KeyedNoise(1, [0]).normal("data", 0, (size, size), torch.float64)[0]
    mean = KeyedNoise(2, [0]).normal("data", 0, (size,), torch.float64)[0]
    return GaussianDenoiser(mean, root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64), process)


@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (1.0, 0.6), (0.0, 1.0)])
def test_noise_adds_up_to_the_level_in_all_three_cases(eta: float, eta_b: float) -> None:
    """With the true x_0 for an answer, x / alpha ~ N(x_0, S^2) after every step, whatever was measured.

    100 000 draws: a variance has a relative standard error of sqrt(2 / N) = 0.45 %; 2.5 % is above 5 of them, so a
    false alarm in 24 checks is below 1e-4. A stray 1 / sqrt(2) in the noise would be 50 %.
    """
    rows, sy = 100_000, 0.3
    weights = torch.tensor([0.0, 0.02, 0.5, 2.0], dtype=torch.float64)  # not measured, n = 15, 0.6 and 0.15
    operator = Diagonal((4,), weights)
    x0 = torch.tensor([0.7, -0.4, 1.1, -1.3], dtype=torch.float64).expand(rows, 4)
    noise = KeyedNoise(0, range(rows))
    y = operator(x0) + sy * (weights > 0) * noise.normal("data", 0, (4,), torch.float64)
    solver = SpectralStep(operator=operator, y=y, noise_std=sy, process=VP, eta=eta, eta_b=eta_b)
    times = [float(VP.schedule.time(-torch.tensor(s, dtype=torch.float64).log())) for s in (30.0, 5.0, 0.5, 0.4, 0.1)]
    x = solver.first(noise.normal("init", 0, (4,), torch.float64), times[0])
    # Where nothing is known the walk starts at N(0, S^2), for data of any mean; here as if that were the level's law.
    x = x + VP.schedule.alpha(torch.tensor(times[0], dtype=torch.float64)) * x0 * (weights == 0)
    for step, (t, s) in enumerate(pairwise(times)):
        check_level(x, x0, t)
        z = noise.normal("step", step, (4,), torch.float64)
        x, _ = solver.step(Stage(step=step, t=t, s=s), x, Posterior(x0), NOTHING, z)
    check_level(x, x0, times[-1])


def check_level(x: Tensor, x0: Tensor, t: float) -> None:
    alpha, sigma = (float(c) for c in VP.schedule.levels(torch.tensor(t, dtype=torch.float64)))
    rest = x / alpha - x0
    level = sigma / alpha
    torch.testing.assert_close(rest.var(0), torch.full((4,), level**2, dtype=torch.float64), rtol=0.025, atol=0)
    assert (rest.mean(0).abs() < 5 * level / len(x) ** 0.5).all()


def test_without_a_measurement_it_is_the_plain_sampler() -> None:
    operator = Diagonal((4,), torch.zeros(4))
    y, noise = torch.zeros(3, 4, dtype=torch.float64), KeyedNoise(0, range(3))
    grid = make_grid(VP.schedule, 12, "t")
    solver = SpectralStep(operator=operator, y=y, noise_std=0.1, process=VP)
    options = {"noise": noise, "shape": (4,), "grid": grid, "dtype": torch.float64}
    ours = sample(prior(), solver=solver, **options).x
    plain = sample(prior(), solver=DDIM(eta=0.85, rule="mixed"), **options).x
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10)


def test_on_a_mask_without_noise_it_is_repaint_draw_for_draw() -> None:
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    operator, steps = Mask((4,), mask), 10
    y = operator(KeyedNoise(4, range(2)).normal("data", 0, (4,), torch.float64))
    source = KeyedNoise(0, range(2))
    drawn = {("step", k): source.normal("step", k, (4,), torch.float64) for k in range(steps)}
    both = InjectedNoise(drawn | {("corrector", k): drawn["step", k] for k in range(steps)}, source)
    grid = make_grid(VP.schedule, steps, "t")
    solver = SpectralStep(operator=operator, y=y, noise_std=0.0, process=VP, eta=1.0)
    z = source.normal("init", 0, (4,), torch.float64)
    start = solver.first(z, 1.0)
    options = {"noise": both, "shape": (4,), "grid": grid, "dtype": torch.float64, "start": start}
    ours = sample(prior(), solver=solver, **options).x
    repaint = sample(prior(), solver=DDIM(eta=1.0, rule="mixed"), constraints=[StateFit(VP, operator, y)], **options).x
    torch.testing.assert_close(ours, repaint, rtol=0, atol=1e-12)
    torch.testing.assert_close(operator(ours), y, rtol=0, atol=1e-12)


def ddnm_plus(denoiser: Denoiser, operator: Diagonal, y: Tensor, sy: float, grid: Tensor, x: Tensor, zs: list[Tensor]):
    """The rule of DDNM+ as written: lam and the noise of each coefficient of a diagonal operator."""
    eta, s = 0.85, operator.singulars()[0]
    c = (1 - eta**2) ** 0.5
    n = torch.where(s > 0, sy / s.clamp(min=1e-30), torch.inf)
    for t, r, z in zip(grid.tolist(), grid.tolist()[1:], zs, strict=False):
        (a, b), (a_r, b_r) = (VP.schedule.levels(torch.tensor(v, dtype=torch.float64)) for v in (t, r))
        mean = denoiser(x, t).mean
        eps = (x - a * mean) / b
        noisy = b_r < a_r * n
        lam = torch.where(noisy, c * b_r / (a_r * n), torch.ones_like(n))
        fitted = mean + torch.where(s > 0, lam * (y / s.clamp(min=1e-30) - mean), torch.zeros_like(mean))
        std = torch.where(noisy, eta * b_r, (b_r**2 - a_r**2 * n**2).clamp(min=0).sqrt())
        x = a_r * fitted + torch.where(s > 0, torch.zeros_like(eps), c * b_r * eps) + std * z
    return x


def test_with_eta_b_1_it_is_ddnm_plus() -> None:
    operator, sy = Diagonal((4,), torch.tensor([0.0, 0.3, 1.0, 2.0])), 0.4
    y = KeyedNoise(5, range(3)).normal("data", 0, (4,), torch.float64)
    noise, grid = KeyedNoise(0, range(3)), make_grid(VP.schedule, 15, "t")
    solver = SpectralStep(operator=operator, y=y, noise_std=sy, process=VP)
    start = solver.first(noise.normal("init", 0, (4,), torch.float64), 1.0)
    ours = sample(prior(), noise=noise, shape=(4,), solver=solver, grid=grid, dtype=torch.float64, start=start).x
    zs = [noise.normal("step", k, (4,), torch.float64) for k in range(15)]
    torch.testing.assert_close(ours, ddnm_plus(prior(), operator, y, sy, grid, start, zs), rtol=0, atol=1e-10)
    # From plain noise what y says is missing at S = 157 alone, of which the answer takes 1 / S^2.
    plain = VP.schedule.sigma(torch.ones((), dtype=torch.float64)) * noise.normal("init", 0, (4,), torch.float64)
    torch.testing.assert_close(ours, ddnm_plus(prior(), operator, y, sy, grid, plain, zs), rtol=0, atol=1e-4)


def test_snips_keeps_the_posterior_of_each_level() -> None:
    """For N(0, v) a step is z <- p z + q + r xi for each coefficient: mean and variance that it keeps are known.

    A measured coefficient less noisy than the level is y with noise S^2 - n^2; any other has the prior N(0, v + S^2),
    and where it is measured y as a measurement of variance n^2 - S^2. Langevin steps of length c a widen a variance by
    1 / (1 - c a / (2 variance)).
    """
    v, sy, size = 0.7, 0.3, 0.05
    weights = torch.tensor([0.0, 0.02, 0.5, 2.0], dtype=torch.float64)  # not measured, n = 15, 0.6 and 0.15
    y = torch.tensor([[0.0, 0.4, -0.3, 1.0]], dtype=torch.float64)
    operator = Diagonal((4,), weights)
    white = GaussianDenoiser(torch.zeros(4), v * torch.eye(4), VP)
    solver = SpectralLangevin(operator=operator, y=y, noise_std=sy, process=VP, size=size)
    for level in (0.4, 3.0):
        t = float(VP.schedule.time(-torch.tensor(level, dtype=torch.float64).log()))
        alpha = float(VP.schedule.alpha(torch.tensor(t, dtype=torch.float64)))
        stage = next(entry for entry in solver.plan(VP, torch.tensor([t, 0.0])).entries)

        def moved(value: float, z: float, t: float = t, alpha: float = alpha, stage: Stage = stage) -> Tensor:
            x = torch.full((1, 4), alpha * value, dtype=torch.float64)
            return solver.step(stage, x, white(x, t), NOTHING, torch.full((1, 4), z).double())[0][0] / alpha

        q = moved(0.0, 0.0)
        p, r = moved(1.0, 0.0) - q, moved(0.0, 1.0) - q
        n = sy / weights
        wide = torch.full((4,), v + level**2, dtype=torch.float64)
        rest = (n**2 - level**2).abs()
        mean = torch.where(n < level, y[0] / weights, wide / (wide + rest) * (y[0] / weights))
        variance = torch.where(n < level, rest, wide * rest / (wide + rest))
        mean, variance = torch.where(weights > 0, mean, 0.0), torch.where(weights > 0, variance, wide)
        torch.testing.assert_close(q / (1 - p), mean)
        torch.testing.assert_close(r**2 / (1 - p**2), variance / (1 - (1 - p) / 2))


def test_snips_ends_with_an_answer_near_the_posterior() -> None:
    """A Gaussian prior: the mean of 2000 draws within 5 standard errors and a tenth of the deviation.

    Variances are a little wide, for the noise of earlier levels fades slowly; the more levels, the less.
    """
    prior_, operator, sy = prior(), Mask((4,), torch.tensor([1.0, 0.0, 1.0, 0.0])), 0.2
    y = operator(prior_.moments()[0][None] + 0.5)
    exact = exact_posterior(prior_, y, operator, sy)
    rows = 2000
    told = Problem(
        denoiser=prior_, y=y.expand(rows, 4), operator=operator, noise_std=sy, shape=(4,), dtype=torch.float64
    )
    found = make_restorer("snips").solve(told, KeyedNoise(0, range(rows)), 100)
    assert found.nfe == 100 * 5 + 1
    std = exact.variance[0].sqrt()
    assert ((found.x.mean(0) - exact.mean[0]).abs() < (0.1 + 5 / rows**0.5) * std).all()
    assert (found.x.var(0) / std**2 - 1).abs().max() < 0.35


def test_snips_begins_at_a_finite_level_where_alpha_vanishes_at_1() -> None:
    """The cosine schedule has alpha(1) = 0; a flat prior of variance 1 and a measurement of variance 1 give y / 2."""
    process = GaussianProcess(make_schedule("cosine"))
    white = GaussianDenoiser(torch.zeros(2), torch.eye(2), process)
    rows, y = 1000, torch.tensor([2.0, -1.0], dtype=torch.float64)
    told = Problem(
        denoiser=white,
        y=y.expand(rows, 2),
        operator=Diagonal((2,), torch.ones(2, dtype=torch.float64)),
        noise_std=1.0,
        shape=(2,),
        dtype=torch.float64,
    )
    found = make_restorer("snips").solve(told, KeyedNoise(0, range(rows)), 40)
    assert ((found.x.mean(0) - y / 2).abs() < (0.1 + 5 / rows**0.5) * 0.5**0.5).all()
