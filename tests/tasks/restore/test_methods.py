"""What restorers must be: consistent without noise, exact for Gaussian data, plain samplers where told nothing."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from tests.guidance.test_measurement import ByAutograd
from tests.oracles.continuous import process_of, spec_mixture
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.errors import ConfigError
from undiffuse.guidance.push import GradientPush
from undiffuse.metrics.energy import sliced_wasserstein
from undiffuse.noise import KeyedNoise
from undiffuse.operators.diagonal import Identity, Mask
from undiffuse.operators.mri import MRI, SingleCoilMRI, simulate_coils
from undiffuse.operators.noise import GaussianNoise
from undiffuse.operators.sensing import Matrix
from undiffuse.operators.separable import Downsample
from undiffuse.process.grids import make_grid
from undiffuse.sampling.ddim import DDIM
from undiffuse.sampling.euler import Heun
from undiffuse.sampling.loop import sample
from undiffuse.sampling.plan import Renoise
from undiffuse.sampling.pushed import Pushed
from undiffuse.sampling.resampling import Resampled
from undiffuse.sampling.solver import NOTHING
from undiffuse.tasks.restore.constraints import CoilFit, DataFit, RangeProjection
from undiffuse.tasks.restore.exact import dense, exact_posterior
from undiffuse.tasks.restore.misfit import misfit_descent
from undiffuse.tasks.restore.particles import Twist
from undiffuse.tasks.restore.registry import make_restorer
from undiffuse.tasks.restore.restorer import Problem
from undiffuse.tasks.restore.run import restore

VP = process_of("vp")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return KeyedNoise(seed, range(shape[0])).normal("data", 0, tuple(shape[1:]), torch.float64)


def image_prior() -> GaussianDenoiser:
    root = normal(16, 16, seed=1) / 4
    return GaussianDenoiser(normal(1, 1, 4, 4, seed=2)[0], root @ root.T + 0.05 * torch.eye(16).double(), VP)


def problem(prior, operator, y: Tensor, sy: float, **more) -> Problem:
    return Problem(
        denoiser=prior, y=y, operator=operator, noise_std=sy, shape=operator.in_shape, dtype=torch.float64, **more
    )


MASK = (torch.arange(16).reshape(1, 4, 4) % 3 > 0).double()


@pytest.mark.parametrize("name", ["ddnm", "ddrm", "repaint", "mcg", "ilvr", "ddnm+"])
def test_without_noise_the_answer_fits_exactly(name: str) -> None:
    operators = [Mask((1, 4, 4), MASK)] + ([] if name == "repaint" else [Downsample((1, 4, 4), 2)])
    for operator in operators:
        y = operator(normal(2, 1, 4, 4, seed=3))
        x = make_restorer(name).solve(problem(image_prior(), operator, y, 0.0), KeyedNoise(0, range(2)), 8).x
        assert (operator(x) - y).abs().max() < 1e-5


def test_matched_moments_are_exact_in_three_levels() -> None:
    """A Gaussian prior: mean and covariance within 5 standard errors of 40 000 draws (false alarm below 1e-4)."""
    rows, sy = 40_000, 0.3
    root = normal(3, 3, seed=1)
    prior = GaussianDenoiser(normal(1, 3, seed=2)[0], root @ root.T + 0.1 * torch.eye(3).double(), VP)
    operator = Matrix((3,), normal(2, 3, seed=3))
    y = normal(1, 2, seed=4)
    exact = exact_posterior(prior, y, operator, sy)
    restorer = make_restorer("daps-moments", iterations=4)
    x = restorer.solve(problem(prior, operator, y.expand(rows, 2), sy), KeyedNoise(0, range(rows)), 3).x
    cov = exact.covs[0, 0]
    error = (cov.diagonal() / rows).sqrt()
    assert ((x.mean(0) - exact.mean[0]).abs() < 5 * error).all()
    spread = (cov.diagonal()[:, None] * cov.diagonal() + cov**2) / rows
    assert ((x.T.cov() - cov).abs() < 5 * spread.sqrt() + 1e-3).all()


def test_matched_moments_without_information_are_the_plain_sampler() -> None:
    """y with noise 1e4, isotropic: the same draws as around the plain mean."""
    prior = image_prior()
    operator, y = Identity((1, 4, 4)), normal(2, 1, 4, 4)
    restorer = make_restorer("daps-moments", covariance="isotropic")
    far, farther = (
        restorer.solve(problem(prior, operator, seen, 1e4), KeyedNoise(0, range(2)), 5).x for seen in (y, y + 1)
    )
    torch.testing.assert_close(far, farther, rtol=0, atol=1e-3)


def test_the_published_step_of_pigdm_without_information_is_ancestral_sampling() -> None:
    prior, operator, noise = image_prior(), Mask((1, 4, 4), MASK), KeyedNoise(0, range(2))
    ours = make_restorer("pigdm-step").solve(problem(prior, operator, normal(2, 1, 4, 4), 1e4), noise, 10).x
    options = {"noise": noise, "shape": (1, 4, 4), "grid": make_grid(VP.schedule, 10, "t"), "dtype": torch.float64}
    torch.testing.assert_close(ours, sample(prior, solver=DDIM(eta=1.0), **options).x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["pigdm", "pigdm-step"])
def test_known_pixels_are_replaced_and_not_pushed(name: str) -> None:
    """What is known is y; of the published step the rest moves by DDIM of the replaced answer, plus its push there."""
    prior, operator, noise = image_prior(), Mask((1, 4, 4), MASK), KeyedNoise(0, range(2))
    y = operator(normal(2, 1, 4, 4, seed=8))
    replaced = make_restorer(name, replace_known=True)
    asked = problem(prior, operator, y, 0.0)
    torch.testing.assert_close(operator(replaced.solve(asked, noise, 10).x), y, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="replaces the known pixels of a mask, and identity"):
        replaced.check(problem(prior, Identity((1, 4, 4)), y, 0.0))
    assert replaced.check(asked) == [] and "will be reproduced" in replaced.check(problem(prior, operator, y, 0.1))[0]
    if name == "pigdm":  # exact posterior means know their known pixels already, once V is r^2 I
        white = GaussianDenoiser(torch.zeros(1, 4, 4).double(), 0.3 * torch.eye(16).double(), VP)
        found = [
            make_restorer(name, data_var=0.3, replace_known=r).solve(problem(white, operator, y, 0.0), noise, 10).x
            for r in (True, False)
        ]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9)
        return
    step = GradientPush(prior, replaced.direction(asked, 1))
    x, t, s = normal(2, 1, 4, 4), 0.6, 0.5
    post = step(x, t, None)
    held = replaced.constraints(asked)[0].correct(post, x, t, s)
    push = post.extras["push"]
    torch.testing.assert_close(held.mean, torch.where(MASK > 0, y, post.mean))
    torch.testing.assert_close(held.extras["push"], torch.where(MASK > 0, 0.0, push))
    torch.testing.assert_close(VP.eps(x, held, t), VP.eps(x, prior(x, t), t))


def test_mmps_draws_from_the_posterior_of_a_scan() -> None:
    """A Gaussian prior on complex pictures, half of k-space: moments within 5 standard errors and 5 % of 100 steps."""
    rows, sy = 800, 0.3
    root = normal(18, 18, seed=1) / 18**0.5
    cov = root @ root.T + 0.1 * torch.eye(18).double()
    prior = GaussianDenoiser(normal(1, 2, 3, 3, seed=2)[0], cov, VP)
    operator = SingleCoilMRI((2, 3, 3), (torch.arange(9).reshape(3, 3) % 2).double())
    y = operator(normal(1, 2, 3, 3, seed=3))
    exact = exact_posterior(prior, y, operator, sy)
    told = problem(prior, operator, y.expand(rows, *operator.out_shape), sy)
    x = make_restorer("mmps", iterations=5, repeats=1).solve(told, KeyedNoise(0, range(rows)), 100).x
    std = exact.variance[0].sqrt()
    assert ((x.mean(0) - exact.mean[0]).abs() < (5 / rows**0.5 + 0.05) * std).all()
    assert ((x.var(0) / std**2 - 1).abs() < 5 * (2 / rows) ** 0.5 + 0.05).all()


def test_coils_by_themselves_are_combined_every_few_steps() -> None:
    """With one coil it is the plain form, draw for draw; with four, coils are combined the better the oftener."""
    at = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).double()
    part = 0.3 * torch.exp(-torch.cdist(at, at).square() / 4) + 0.01 * torch.eye(64).double()
    prior = GaussianDenoiser(torch.zeros(2, 8, 8).double(), torch.block_diag(part, part), process_of("ve"))
    x = prior.sample_data(normal(2, 2, 8, 8, seed=5), torch.zeros(2).double())
    lines = torch.zeros(8, 8)
    lines[:, [0, 2, 3, 4, 5, 6]] = 1

    def solved(scan, **options):
        return restore(prior, scan(x), scan, "score-mri", samples=3, steps=40, options=options).mean

    alone = solved(MRI((2, 8, 8), lines))
    for scan in (MRI((2, 8, 8), lines), SingleCoilMRI((2, 8, 8), lines)):
        torch.testing.assert_close(solved(scan, combine_every=3), alone, rtol=0, atol=1e-12)
    four = MRI((2, 8, 8), lines, simulate_coils(4, 8, 8))
    exact = exact_posterior(prior, four(x), four, 1e-3).mean
    every, seldom = ((solved(four, combine_every=m) - exact).square().mean().sqrt() for m in (1, 20))
    zero_filled = (four.adjoint(four(x)) - exact).square().mean().sqrt()
    assert every < 0.6 * zero_filled  # 0.32 with 100 steps and 16 samples
    assert every < 0.75 * seldom


def test_conjugate_gradients_of_much_weight_project() -> None:
    """DDS with gamma -> infinity and enough iterations is the projection of DDNM, here on half of k-space."""
    prior, operator = image_prior(), SingleCoilMRI((2, 4, 4), (torch.arange(16).reshape(4, 4) % 2).double())
    x, y = normal(2, 2, 4, 4, seed=3), operator(normal(2, 2, 4, 4, seed=4))
    post = Posterior(normal(2, 2, 4, 4, seed=5))
    fitted = DataFit(prior.process, operator, y, 1e9, 40).correct(post, x, 0.5, 0.4).mean
    wanted = RangeProjection(prior.process, operator, y).correct(post, x, 0.5, 0.4).mean
    torch.testing.assert_close(fitted, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("t", "s", "whole"), [(0.9, 0.6, True), (0.5, 0.02, False)])
def test_scaled_projections_add_up_to_the_noise_of_a_step(t: float, s: float, whole: bool) -> None:
    """With the true x_0 for an answer: x' ~ N(alpha' x_0, sigma'^2) where measured, whether the correction is whole.

    100 000 draws: 2.5 % is above 5 standard errors of a variance.
    """
    rows, sy = 100_000, 0.3
    x0 = torch.tensor([0.7, -0.4], dtype=torch.float64).expand(rows, 2)
    operator, noise = Mask((2,), torch.tensor([1.0, 0.0])), KeyedNoise(0, range(rows))
    y = operator(x0 + sy * noise.normal("data", 0, (2,), torch.float64))
    told, rule = problem(image_prior(), operator, y, sy), make_restorer("ddnm", scaled=True)
    alpha, sigma = (float(c) for c in VP.schedule.levels(torch.tensor(t, dtype=torch.float64)))
    x = alpha * x0 + sigma * noise.normal("init", 0, (2,), torch.float64)
    (held,) = rule.constraints(told)
    assert (rule.covered(VP, sy, t, s) == 1) == whole
    post = held.correct(Posterior(x0), x, t, s)
    solver = rule.solver(told)
    (stage,) = solver.plan(VP, torch.tensor([t, s], dtype=torch.float64)).entries
    z = solver.draw(stage, x, noise) if stage.noise is not None else None
    moved = solver.step(stage, x, post, NOTHING, z)[0]
    alpha, sigma = (float(c) for c in VP.schedule.levels(torch.tensor(s, dtype=torch.float64)))
    rest = moved - alpha * x0
    assert (rest.mean(0).abs() < 5 * sigma / rows**0.5).all()
    assert abs(float(rest[:, 0].var()) / sigma**2 - 1) < 0.025
    assert "reproduced" not in " ".join(rule.check(told)) and "reproduced" in make_restorer("ddnm").check(told)[0]
    with pytest.raises(ValueError, match="give eta above 0"):
        make_restorer("ddnm", scaled=True, eta=0.0)


def test_twists_are_likelihoods() -> None:
    """log N(y; A m, sy^2 + r^2 A A^T) up to what all particles share, and at the end log N(y; A x_0, sy^2)."""
    prior, sy, v = image_prior(), 0.2, 0.4
    operator, x = Downsample((1, 4, 4), 2), normal(3, 1, 4, 4, seed=6)
    y = operator(normal(1, 1, 4, 4, seed=7)).expand(3, 1, 2, 2)
    twist = Twist(prior, operator, y, sy, v, True)
    matrix, mean = dense(operator), prior(x, 0.4).mean
    alpha, sigma = VP.coefficients(0.4, x)
    spread = v * sigma**2 / (sigma**2 + alpha**2 * v)
    cases = {
        "on the way": (twist(x, 0.4).extras["twist"], mean, sy**2 * torch.eye(4) + spread * matrix @ matrix.T),
        "at the end": (twist.log_likelihood(x), x, sy**2 * torch.eye(4).double()),
    }
    for name, (found, at, cov) in cases.items():
        law = torch.distributions.MultivariateNormal(operator(at).flatten(1), cov.double())
        exact = law.log_prob(y.flatten(1))
        torch.testing.assert_close(found - found[0], exact - exact[0], msg=lambda text, name=name: f"{name}: {text}")


def test_options_have_types_and_limits() -> None:
    for name, options, said in (
        ("dps", {"scale": "much"}, "dps: scale='much' does not fit; expected float | none"),
        ("ddnm", {"eps": "old"}, "ddnm: eps='old' does not fit; expected 'own' | 'new'"),
        ("mmps", {"iterations": 2.5}, "expected int"),
        ("dds", {"gamma": -1.0}, "gamma=-1.0 must not be negative"),
        ("dds", {"iterations": 0}, "iterations=0 must be at least 1"),
        ("ilvr", {"weight": 1.5}, "weight=1.5 is a share"),
        ("mcg", {"scale": -1}, "scale=-1.0 must not be negative"),
        ("daps", {"beta": 0.0}, "beta=0.0 must be positive"),
        ("daps-moments", {"lowest": 0.0}, "lowest=0.0 must be positive"),
        ("resample", {"every": 0}, "every=0 must be at least 1"),
        ("psld", {"gamma": -0.1}, "gamma=-0.1 must not be negative"),
        ("jfps", {"iterations": 0}, "iterations=0 must be at least 1"),
        ("score-mri", {"weight": -1.0}, "weight=-1.0 must not be negative"),
        ("score-mri", {"combine_every": 0}, "combine_every=0 must be at least 1"),
        ("red-diff", {"betas": [0.9, 1.0]}, r"must lie in \[0, 1\)"),
    ):
        with pytest.raises((ValueError, ConfigError), match=re.escape(said) if "\\" not in said else said):
            make_restorer(name, **options)
    assert make_restorer("dps", scale="50").scale == 50  # as a command line has it
    solver = DDIM(eta=0.5)
    assert make_restorer("mmps", solver=solver).solver is solver


def test_combined_coils_keep_their_noise() -> None:
    """Pure noise of level sigma stays that; the part that the maps cannot hold would else be lost, 3/4 of it here."""
    scan = MRI((2, 4, 4), torch.ones(4, 4), simulate_coils(4, 4, 4))
    fit = CoilFit(process_of("ve"), scan, torch.zeros(400, 4, 2, 4, 4).double(), every=2, weight=0.0)
    sigma = fit.process.schedule.sigma(torch.tensor(0.5).double())
    noise, x = KeyedNoise(0, range(400)), sigma * normal(400, 4, 2, 4, 4, seed=3)
    assert torch.equal(fit.leave(x, 0.5, 0, noise)[0], x)
    left = fit.leave(x, 0.5, 1, noise)[0]
    # 51200 numbers of variance sigma^2: four standard errors are 2.5 %
    assert float(left.square().mean() / sigma**2) == pytest.approx(1, abs=0.025)
    one = left - sigma * noise.normal("corrector", 1, (4, 2, 4, 4), torch.float64)
    torch.testing.assert_close(one, scan.split(scan.combined(one)))


def test_coils_are_those_of_a_scan() -> None:
    with pytest.raises(ValueError, match="combine_every=2 needs an MR scan of complex pictures"):
        restore(image_prior(), normal(1, 1, 4, 4), Identity((1, 4, 4)), "score-mri", options={"combine_every": 2})


def test_another_solver_goes_by_its_name() -> None:
    operator = Mask((1, 4, 4), MASK)
    told = problem(image_prior(), operator, operator(normal(2, 1, 4, 4, seed=3)), 0.1)
    named, made = (
        make_restorer("mmps", solver=one).solve(told, KeyedNoise(0, range(2)), 5) for one in ("heun", Heun())
    )
    assert torch.equal(named.x, made.x) and named.nfe == 9


def test_dps_without_a_push_is_ancestral_sampling_bit_for_bit() -> None:
    prior, operator = image_prior(), Mask((1, 4, 4), MASK)
    y, noise = operator(normal(2, 1, 4, 4, seed=3)), KeyedNoise(0, range(2))
    ours = make_restorer("dps", scale=0.0).solve(problem(prior, operator, y, 0.1), noise, 10).x
    options = {"noise": noise, "shape": (1, 4, 4), "grid": make_grid(VP.schedule, 10, "t"), "dtype": torch.float64}
    assert torch.equal(ours, sample(prior, solver=DDIM(eta=1.0), **options).x)


def test_dps_pushes_along_the_gradient_by_the_state() -> None:
    prior, operator = image_prior(), Downsample((1, 4, 4), 2)
    y, x = operator(normal(2, 1, 4, 4, seed=3)), normal(2, 1, 4, 4, seed=5).requires_grad_()
    loss = (y - operator(prior(x, 0.5).mean)).flatten(1).norm(dim=1).sum()
    (gradient,) = torch.autograd.grad(loss, x)
    task = problem(prior, operator, y, 0.1)
    pushing = GradientPush(prior, lambda mean, x, t: 0.7 * misfit_descent(task, mean))
    with torch.no_grad():
        push = pushing(x.detach(), 0.5).extras["push"]
    torch.testing.assert_close(push, -0.7 * gradient)
    law = problem(prior, operator, y, 0.1, noise_model=GaussianNoise(0.1))  # the same law, by its likelihood
    mean = prior(x, 0.5).mean.detach()
    torch.testing.assert_close(misfit_descent(law, mean), misfit_descent(task, mean))


@pytest.mark.parametrize("name", ["dps", "pigdm", "pigdm-step", "mmps", "mcg", "ddrm", "diffpir", "dds", "tds"])
def test_the_network_is_asked_once_a_step(name: str) -> None:
    prior = ByAutograd(image_prior())
    operator = Mask((1, 4, 4), MASK)
    y = operator(normal(2, 1, 4, 4, seed=3))
    solution = make_restorer(name).solve(problem(prior, operator, y, 0.1), KeyedNoise(0, range(2)), 6)
    assert prior.asked == 6
    assert solution.nfe == (6 * 128 if name == "tds" else 6)


def test_mmps_spends_its_evaluations_on_two_ways() -> None:
    """From 40 on: a grid of half as many steps, each fifth of it gone through twice; fewer are one way."""
    task = Mask((1, 4, 4), MASK)
    told = problem(image_prior(), task, task(normal(2, 1, 4, 4, seed=3)), 0.1)
    noise, ways = KeyedNoise(0, range(2)), Resampled(solver=DDIM(eta=1.0), passes=2, jump=4, last=True)
    found = make_restorer("mmps").solve(told, noise, 40)
    assert found.nfe == found.nfe_grad == 40
    assert torch.equal(found.x, make_restorer("mmps", solver=ways).solve(told, noise, 20).x)
    fewer, plain = (make_restorer("mmps", repeats=n).solve(told, noise, 39).x for n in (None, 1))
    assert torch.equal(fewer, plain)
    with pytest.raises(ValueError, match="repeats=0 and jump=None must be at least 1"):
        make_restorer("mmps", repeats=0)


def test_own_noise_halves_the_spread_of_projections() -> None:
    """DDNM with the noise of the network against that of the projected answer, on data that are half measured."""
    prior, operator = correlated(), Mask((8,), (torch.arange(8) % 2).double())
    y = operator(prior.sample_data(normal(1, 8, seed=3), torch.zeros(1))).expand(512, 8)
    noise = KeyedNoise(0, range(512))
    own, new = (
        make_restorer("ddnm", eps=eps).solve(problem(prior, operator, y, 0.0), noise, 50).x.var(0).mean()
        for eps in ("own", "new")
    )
    exact = exact_posterior(prior, y[:1], operator, 0.0).variance.mean()
    assert own < 0.6 * new
    assert 0.5 < own / exact < 2


def correlated() -> MixtureDenoiser:
    place = torch.arange(8).double()
    cov = 0.3 * torch.exp(-((place[:, None] - place) ** 2) / 4) + 0.01 * torch.eye(8).double()
    return GaussianDenoiser(torch.zeros(8).double(), cov, VP)


def test_time_travel_goes_down_and_up_in_groups() -> None:
    grid = make_grid(VP.schedule, 5, "t")
    plan = Resampled(solver=DDIM(eta=1.0), jump=2, passes=3, last=True).plan(VP, grid)
    moves = [(entry.t, entry.s, isinstance(entry, Renoise)) for entry in plan.entries]
    down, up = grid.tolist(), lambda low, high: (down[high], down[low], True)
    group = [(down[0], down[1], False), (down[1], down[2], False)]
    assert moves[:8] == [*group, up(0, 2), *group, up(0, 2), *group]
    assert moves[-5:] == [(down[4], down[5], False), up(4, 5)] * 2 + [(down[4], down[5], False)]
    assert len({entry.step for entry in plan.entries}) == len(plan.entries)  # noise of its own for each
    once = Resampled(solver=DDIM(eta=1.0), jump=2, passes=1)
    options = {"noise": KeyedNoise(0, range(2)), "shape": (8,), "grid": grid, "dtype": torch.float64}
    plain = sample(correlated(), solver=DDIM(eta=1.0), **options).x
    assert torch.equal(sample(correlated(), solver=once, **options).x, plain)
    twice = Resampled(solver=DDIM(eta=1.0), jump=2, passes=2, last=True)
    walked = sample(correlated(), solver=twice, trajectory=True, **options)
    assert walked.trajectory is not None and len(walked.trajectory) == 6  # one state per time, whatever was undone


def test_a_pushed_solver_leaves_frozen_elements() -> None:
    pushing = GradientPush(correlated(), lambda mean, x, t: torch.ones_like(x), jacobian=False)
    grid = torch.tensor([[[1.0, 0.0]], [[0.5, 0.0]], [[0.0, 0.0]]]).repeat_interleave(4, 2).double()
    options = {"noise": KeyedNoise(0, [0]), "shape": (8,), "grid": grid, "dtype": torch.float64}
    start = normal(1, 8)
    found = sample(pushing, solver=Pushed(solver=DDIM(eta=1.0)), start=start, **options).x
    assert torch.equal(found[:, 4:], start[:, 4:])


def ambiguous() -> tuple[MixtureDenoiser, Matrix, Tensor, float]:
    """The spec's 2-D mixture with a measurement that cuts between modes."""
    operator = Matrix((2,), torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    return spec_mixture(VP), operator, torch.tensor([[0.5]], dtype=torch.float64), 0.3


def test_particles_find_the_weights_of_modes() -> None:
    """512 particles: W2 to the exact posterior 0.04 to 0.07 in the spec, Gaussian moments 0.2; 0.12 is between."""
    prior, operator, y, sy = ambiguous()
    exact = exact_posterior(prior, y, operator, sy).sample(KeyedNoise(9, [0]), 1024)[:, 0]
    task = problem(prior, operator, y.expand(1024, 1), sy, samples=1024, data_var=1.0)
    found = make_restorer("tds", particles=1024).solve(task, KeyedNoise(0, range(1024)), 50).x
    assert sliced_wasserstein(found.numpy(), exact.numpy(), p=2) < 0.12


def test_particles_without_a_twist_are_importance_sampling() -> None:
    """The filter's answers are draws of the prior, chosen by their likelihood alone."""
    prior, operator, y, sy = ambiguous()
    task = problem(prior, operator, y.expand(256, 1), sy, samples=256)
    noise = KeyedNoise(0, range(256))
    found = make_restorer("tds", particles=256, twisted=False).solve(task, noise, 20).x
    plain = sample(
        prior,
        noise=noise,
        shape=(2,),
        solver=FlatNormals(eta=1.0),
        grid=make_grid(VP.schedule, 20, "t"),
        dtype=torch.float64,
    ).x
    distance = torch.cdist(found, plain)
    assert distance.min(1).values.max() < 1e-6
    share = torch.softmax(-0.5 * ((y - operator(plain)) / sy).square()[:, 0], 0)
    counts = torch.bincount(distance.argmin(1), minlength=256)
    assert (counts - 256 * share).abs().max() < 1  # systematic resampling: never off by one or more


class FlatNormals(DDIM):
    """DDIM with the draws that the filter makes."""

    def draw(self, entry, x, noise):
        drawn = noise.normal("step", entry.step, (1, x[0].numel()), torch.float64).reshape(x.shape)
        return None if entry.noise is None else drawn


def test_the_exact_posterior_agrees_with_counting() -> None:
    """Moments of prior draws weighed by their likelihood, within 5 standard errors of an effective 10^4."""
    prior, operator, y, sy = ambiguous()
    noise = KeyedNoise(3, range(200_000))
    x = prior.sample_data(noise.normal("data", 0, (2,), torch.float64), noise.uniform("class", 0, ())).reshape(-1, 2)
    share = torch.softmax(-0.5 * ((y - operator(x)) / sy).square()[:, 0], 0)
    exact = exact_posterior(prior, y, operator, sy)
    effective = float(1 / share.square().sum())
    mean = share @ x
    assert ((mean - exact.mean[0]).abs() < 5 * (exact.variance[0] / effective).sqrt()).all()
    variance = share @ (x - mean) ** 2
    torch.testing.assert_close(variance, exact.variance[0], rtol=5 * (3 / effective) ** 0.5, atol=0)
    drawn = exact.sample(KeyedNoise(4, [0]), 50_000)[:, 0]
    torch.testing.assert_close(drawn.var(0), exact.variance[0], rtol=0.05, atol=0)
    assert dense(Mask((2,), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))).shape == (2, 2, 2)
