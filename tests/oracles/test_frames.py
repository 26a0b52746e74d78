"""Exact checks of a time per frame (FVDM, sections 5.1 and 6): Gaussian video, where every law has a closed form.

Runs with a Gaussian denoiser are affine in the state and in the noise, so their laws are computed by pushing
coefficients through the code (`push`), without sampling error.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.oracles.continuous import (
    CONTINUOUS_SOLVERS,
    ar1_cov,
    ar1_video,
    conditional,
    normals,
    process_of,
    push,
    run,
)
from undiffuse.denoisers.empirical import EmpiricalDenoiser
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.noise import KeyedNoise
from undiffuse.process.grids import autoregressive, known, make_grid, pyramid, random_monotone, sync
from undiffuse.sampling.constraints import Known, Replacement
from undiffuse.sampling.registry import make_solver

FRAMES = 8
PROCESS = process_of("trig")


def uniform(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def law(solver: str, grid: Tensor, free: list[int], values: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """Exact mean and covariance of the frames `free` when the others start, and stay, at `values`."""
    scale = torch.zeros(FRAMES, dtype=torch.float64)
    scale[free] = 1.0
    mean, cov = push(ar1_video(PROCESS), make_solver(solver), grid, values, scale, **options)
    return mean[free], cov[free][:, free]


def distance(cov: Tensor, truth: Tensor) -> float:
    return float((cov - truth).norm() / truth.norm())


def rms(mean: Tensor, truth: Tensor) -> float:
    return float((mean - truth).square().mean().sqrt())


# -- 1. equal times ---------------------------------------------------------------------------------


def test_equal_times_per_frame_are_a_time_per_item() -> None:
    video = ar1_video(PROCESS)
    stored = EmpiricalDenoiser(normals(20, FRAMES, seed=3), PROCESS)
    mixture = MixtureDenoiser(torch.ones(2), normals(2, FRAMES, seed=4), torch.tensor([0.4, 0.7]), PROCESS)
    x = normals(5, FRAMES, seed=1)
    for denoiser in (video, stored, mixture):
        for t in (0.02, 0.5, 0.98):
            shared = denoiser(x, t).mean
            for shape in ((), (5,), (1, FRAMES), (5, FRAMES)):
                found = denoiser(x, torch.full(shape, t, dtype=torch.float64)).mean
                torch.testing.assert_close(found, shared, rtol=1e-9, atol=1e-9)


# -- 3 and the table of 5.1 ---------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "told"), [(50, 0.051), (250, 0.011)])
def test_known_frames_in_vector_time_give_the_exact_conditional_law(steps: int, told: float) -> None:
    first = torch.zeros(FRAMES, dtype=torch.float64)
    first[0] = 2.0
    mean, cov = law("ddim", known(uniform(steps), FRAMES, [0]), list(range(1, FRAMES)), first)
    true_mean, true_cov = conditional(ar1_cov(), [0], torch.tensor([2.0], dtype=torch.float64))
    torch.testing.assert_close(
        true_mean, torch.tensor([1.8, 1.62, 1.46, 1.31, 1.18, 1.06, 0.96], dtype=torch.float64), rtol=0, atol=5e-3
    )
    assert rms(mean, true_mean) < 2e-3
    assert distance(cov, true_cov) == pytest.approx(told, rel=0.1)


def test_two_known_frames_in_vector_time_give_the_exact_conditional_law() -> None:
    ends = torch.zeros(FRAMES, dtype=torch.float64)
    ends[[0, 7]] = 2.0
    mean, cov = law("ddim", known(uniform(250), FRAMES, [0, -1]), list(range(1, 7)), ends)
    true_mean, true_cov = conditional(ar1_cov(), [0, 7], torch.full((2,), 2.0, dtype=torch.float64))
    assert rms(mean, true_mean) < 2e-3
    assert distance(cov, true_cov) < 0.03


def test_ancestral_sampling_in_vector_time_gives_the_conditional_law() -> None:
    first = torch.zeros(FRAMES, dtype=torch.float64)
    first[0] = 2.0
    mean, cov = law("ddpm", known(uniform(100), FRAMES, [0]), list(range(1, FRAMES)), first)
    true_mean, true_cov = conditional(ar1_cov(), [0], torch.tensor([2.0], dtype=torch.float64))
    assert rms(mean, true_mean) < 5e-3
    assert distance(cov, true_cov) < 0.06  # 0.023 at 250 steps, falling like 1 / steps


@pytest.mark.slow
def test_ancestral_sampling_with_250_steps_is_within_the_table_s_covariance_error() -> None:
    first = torch.zeros(FRAMES, dtype=torch.float64)
    first[0] = 2.0
    mean, cov = law("ddpm", known(uniform(250), FRAMES, [0]), list(range(1, FRAMES)), first)
    true_mean, true_cov = conditional(ar1_cov(), [0], torch.tensor([2.0], dtype=torch.float64))
    assert rms(mean, true_mean) < 4e-3
    assert distance(cov, true_cov) < 0.023  # the table's figure includes the sampling error of 20 000 clips


def replaced(solver: str, steps: int, index: list[int]) -> tuple[float, float, Tensor]:
    mask = torch.zeros(FRAMES, dtype=torch.bool)
    mask[index] = True
    values = torch.where(mask, 2.0, 0.0).double()
    fresh = solver == "ddpm"
    constraint = Replacement(PROCESS, values[None], mask[None], "fresh" if fresh else "same")
    streams = [("corrector", k) for k in range(steps if fresh else 1)]
    streams += [("step", k) for k in range(steps)] if fresh else []
    mean, cov = push(
        ar1_video(PROCESS),
        make_solver(solver),
        uniform(steps),
        torch.zeros(FRAMES, dtype=torch.float64),
        torch.ones(FRAMES, dtype=torch.float64),
        streams=streams,
        constraints=[constraint],
    )
    free = [i for i in range(FRAMES) if i not in index]
    true_mean, true_cov = conditional(ar1_cov(), index, torch.full((len(index),), 2.0, dtype=torch.float64))
    return rms(mean[free], true_mean), distance(cov[free][:, free], true_cov), mean


def test_replacement_loses_most_of_the_known_frame_s_influence() -> None:
    gap, spread, mean = replaced("ddim", 250, [0])
    expected = torch.tensor([2.0, 0.71, 0.40, 0.26, 0.19, 0.14, 0.12, 0.09], dtype=torch.float64)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.03)
    assert mean[1] < 1.2
    assert gap == pytest.approx(1.08, rel=0.03)
    assert spread == pytest.approx(0.829, rel=0.01)  # from a direct 8 x 8 matrix recursion
    assert replaced("ddim", 250, [0, 7])[0] == pytest.approx(1.32, rel=0.03)


@pytest.mark.slow
def test_ancestral_replacement_loses_it_too() -> None:
    gap, spread, mean = replaced("ddpm", 250, [0])
    expected = torch.tensor([2.0, 1.01, 0.64, 0.44, 0.32, 0.25, 0.20, 0.18], dtype=torch.float64)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.05)
    assert gap == pytest.approx(0.91, rel=0.05)
    assert spread == pytest.approx(0.56, rel=0.08)


# -- 4. path independence -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "path", "told"),
    [
        ("ddim", "sync", {50: 0.068, 200: 0.018}),
        ("ddim", "pyramid", {50: 0.047, 200: 0.012}),
        ("ddim", "pyramid back", {50: 0.047, 200: 0.012}),
        ("ddim", "autoregressive", {50: 0.054, 200: 0.014}),
        ("dpm++2m", "sync", {20: 0.070, 50: 0.016, 100: 0.0050, 200: 0.0015}),
        ("dpm++2m", "pyramid", {20: 0.017, 50: 0.0035, 100: 0.0011, 200: 0.0003}),
    ],
)
def test_any_order_of_the_frames_gives_the_same_law(solver: str, path: str, told: dict[int, float]) -> None:
    for steps, error in told.items():
        grid = {
            "sync": lambda m: sync(uniform(m), FRAMES),
            "pyramid": lambda m: pyramid(m, FRAMES, m // 5),
            "pyramid back": lambda m: pyramid(m, FRAMES, -(m // 5)),
            "autoregressive": lambda m: autoregressive(m, FRAMES),
        }[path](steps)
        options = {"lower_final": False} if solver == "dpm++2m" else {}
        zero, one = torch.zeros(FRAMES, dtype=torch.float64), torch.ones(FRAMES, dtype=torch.float64)
        mean, cov = push(ar1_video(PROCESS), make_solver(solver, **options), grid, zero, one)
        assert float(mean.abs().max()) < 1e-12
        digits = 1.5e-4 if error < 1e-3 else 0.1 * error
        assert distance(cov, ar1_cov()) == pytest.approx(error, abs=digits), (steps, path)


def test_the_error_of_random_paths_falls_like_one_over_the_steps() -> None:
    zero, one = torch.zeros(FRAMES, dtype=torch.float64), torch.ones(FRAMES, dtype=torch.float64)
    errors = []
    for rows in (40, 320):
        seeds = range(3)
        covs = [
            push(ar1_video(PROCESS), make_solver("ddim"), random_monotone(rows, FRAMES, s), zero, one)[1] for s in seeds
        ]
        errors.append(sum(distance(c, ar1_cov()) for c in covs) / len(covs))
    assert errors[1] < errors[0] / 4
    assert errors[1] < 0.05


# -- 5, 6, 7 ------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """A network that never agrees with the state, and answers NaN nowhere."""

    def forward(self, x: Tensor, level: Tensor, cond: object) -> Tensor:
        return torch.sin(3 * x + 1) + level.double().mean(dim=tuple(range(1, level.ndim)), keepdim=True).reshape(
            -1, *[1] * (x.ndim - 1)
        )


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
@pytest.mark.parametrize("name", ["trig", "ddpm"])
def test_frozen_frames_do_not_change_in_a_single_bit(name: str, solver: str) -> None:
    process = process_of(name)
    grids = {
        "pyramid": pyramid(6, 4, 2),
        "known": known(uniform(6), 4, [0, 2]),
        "random": random_monotone(5, 4, 1).repeat_interleave(2, dim=0)[:-1].clone(),
    }
    stagger = grids["random"]
    stagger[1::2, :, 2:] = stagger[2::2, :, 2:]  # halves of the frames move in turns
    batched = torch.cat([pyramid(6, 4, 2), pyramid(6, 4, -2)], dim=1)  # (K+1, 2, 4): another grid per item
    for prediction in ("noise", "velocity"):
        denoiser = NetworkDenoiser(Restless(), process, prediction)  # type: ignore[arg-type]
        for grid in (*grids.values(), batched):
            x = normals(2, 4, 3, seed=1)
            path = run(denoiser, CONTINUOUS_SOLVERS[solver], grid, x, trajectory=True).trajectory
            assert path is not None
            assert path.isfinite().all()
            frozen = (grid[1:] == grid[:-1]).expand(-1, 2, -1)
            assert frozen.any()
            assert torch.equal(path[1:][frozen], path[:-1][frozen])
            assert (path[1:][~frozen] != path[:-1][~frozen]).any(-1).all()


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
def test_known_frames_come_out_as_they_were_given(solver: str) -> None:
    given, mask = normals(3, 4, 2, seed=8), torch.tensor([True, False, False, True])[None, :, None]
    denoiser = NetworkDenoiser(Restless(), PROCESS, "v")
    x = normals(3, 4, 2, seed=1)
    grid = known(uniform(7), 4, [0, -1])
    out = run(denoiser, CONTINUOUS_SOLVERS[solver], grid, x, constraints=[Known(given, mask)]).x
    assert torch.equal(out[:, [0, 3]], given[:, [0, 3]])
    started = run(denoiser, CONTINUOUS_SOLVERS[solver], grid, torch.where(mask, given, x)).x
    assert torch.equal(started, out)


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
def test_knowing_all_frames_returns_them_and_knowing_none_is_plain_sampling(solver: str) -> None:
    denoiser, x, given = ar1_video(PROCESS, 4), normals(3, 4, seed=1), normals(3, 4, seed=2)
    everything = Known(given, torch.ones(1, 4, dtype=torch.bool))
    nothing = Known(given, torch.zeros(1, 4, dtype=torch.bool))
    rule = CONTINUOUS_SOLVERS[solver]
    assert torch.equal(run(denoiser, rule, uniform(5), x, constraints=[everything]).x, given)
    plain = run(denoiser, rule, uniform(5), x).x
    assert torch.equal(run(denoiser, rule, uniform(5), x, constraints=[nothing]).x, plain)
    if solver != "edm-heun churn":  # its churn is a share of the number of steps, the same here
        framed = run(denoiser, rule, known(uniform(5), 4, []), x).x
        torch.testing.assert_close(framed, plain, rtol=1e-9, atol=1e-9)


# -- 8, 10, 11 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun", "edm-heun", "dpm++2m", "sde-dpm++2m"])
def test_an_independent_frame_does_not_see_the_times_of_the_others(solver: str) -> None:
    pixels = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
    cov = torch.block_diag(pixels, 0.3 * pixels, 2.0 * pixels)
    denoiser = GaussianDenoiser(normals(3, 2, seed=5), cov, PROCESS)
    alone = GaussianDenoiser(normals(3, 2, seed=5)[1:2], 0.3 * pixels, PROCESS)
    x = normals(4, 3, 2, seed=1)
    first = torch.stack([uniform(6) ** p for p in (1.0, 1.0, 2.0)], dim=1)[:, None]
    other = torch.stack([uniform(6) ** p for p in (0.3, 1.0, 1.0)], dim=1)[:, None]
    rule = make_solver(solver)
    ends = [run(denoiser, rule, grid, x).x[:, 1] for grid in (first, other)]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-11, atol=1e-11)
    if not rule.stochastic:  # and it is the run of that frame alone
        torch.testing.assert_close(run(alone, rule, uniform(6), x[:, 1:2]).x[:, 0], ends[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("solver", ["ddim", "euler", "heun", "edm-heun", "dpm++2m"])
def test_each_item_of_a_batched_grid_equals_its_own_run(solver: str) -> None:
    denoiser, x = ar1_video(PROCESS), normals(2, FRAMES, seed=1)
    grids = [pyramid(10, FRAMES, 2), pyramid(10, FRAMES, -2)]
    both = run(
        denoiser,
        make_solver(solver, **({"lower_final": False} if solver == "dpm++2m" else {})),
        torch.cat(grids, dim=1),
        x,
    ).x
    for i, grid in enumerate(grids):
        rule = make_solver(solver, **({"lower_final": False} if solver == "dpm++2m" else {}))
        torch.testing.assert_close(both[i : i + 1], run(denoiser, rule, grid, x[i : i + 1]).x, rtol=1e-11, atol=1e-11)


def test_tweedie_holds_per_frame_for_unequal_times() -> None:
    means, covs = normals(3, 4, seed=1), []
    for seed in range(3):
        root = normals(4, 4, seed=10 + seed)
        covs.append(root @ root.T / 4 + 0.1 * torch.eye(4, dtype=torch.float64))
    denoiser = MixtureDenoiser(torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64), means, torch.stack(covs), PROCESS)
    t = torch.tensor([[0.1, 0.7, 0.3, 0.95], [0.5, 0.02, 0.99, 0.4]], dtype=torch.float64)
    x = normals(2, 4, seed=3).requires_grad_()
    (gradient,) = torch.autograd.grad(denoiser.log_prob(x, t).sum(), x)
    alpha, sigma = PROCESS.schedule.alpha(t), PROCESS.schedule.sigma(t)
    post = denoiser(x.detach(), t)
    expected = (alpha * post.mean - x.detach()) / sigma**2
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(PROCESS.score(x.detach(), post, t), expected, rtol=1e-8, atol=1e-8)
    # log p_t itself, from the definition of the noisy joint
    parts = []
    for weight, mean, cov in zip((0.2, 0.5, 0.3), means, covs, strict=True):
        for row in range(2):
            a = torch.diag(alpha[row])
            noisy = torch.distributions.MultivariateNormal(alpha[row] * mean, a @ cov @ a + torch.diag(sigma[row] ** 2))
            parts.append(math.log(weight) + noisy.log_prob(x.detach()[row]))
    direct = torch.logsumexp(torch.stack(parts).reshape(3, 2), dim=0)
    torch.testing.assert_close(denoiser.log_prob(x.detach(), t), direct, rtol=1e-9, atol=1e-9)


def test_frame_after_frame_on_an_ar1_process_has_its_correlation() -> None:
    zero, one = torch.zeros(FRAMES, dtype=torch.float64), torch.ones(FRAMES, dtype=torch.float64)
    _, cov = push(ar1_video(PROCESS), make_solver("ddim"), autoregressive(200, FRAMES), zero, one)
    spread = cov.diagonal().sqrt()
    lag = (cov / spread / spread[:, None]).diagonal(offset=1)
    assert float((lag - 0.9).abs().max()) < 0.01


def test_a_frame_of_a_pyramid_equals_its_run_with_the_others_in_place() -> None:
    """Frame after frame, each frame is sampled with the earlier ones known: chaining such runs is the same."""
    video, steps = ar1_video(PROCESS, 3), 6
    x = normals(4, 3, seed=1)
    joint = run(video, make_solver("ddim"), autoregressive(steps, 3), x).x
    state = x
    for frame in range(3):
        grid = torch.ones(steps + 1, 1, 3, dtype=torch.float64)
        grid[:, 0, :frame] = 0.0
        grid[:, 0, frame] = uniform(steps)
        state = run(video, make_solver("ddim"), grid, state).x
    torch.testing.assert_close(state, joint, rtol=1e-12, atol=1e-12)


def test_the_noise_of_a_frame_does_not_depend_on_the_grid() -> None:
    denoiser = GaussianDenoiser(torch.zeros(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64), PROCESS)
    grid = make_grid(PROCESS.schedule, 5)
    x = normals(3, 4, seed=1)
    noise = KeyedNoise(4, [7, 8, 9])
    shared = run(denoiser, make_solver("ddpm"), grid, x, noise=noise).x
    framed = run(denoiser, make_solver("ddpm"), sync(grid, 4), x, noise=noise).x
    torch.testing.assert_close(framed, shared, rtol=1e-11, atol=1e-11)
