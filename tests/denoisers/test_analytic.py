"""Analytic denoisers against densities and sums written out here."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, run, spec_mixture
from undiffuse.denoisers.empirical import EmpiricalDenoiser
from undiffuse.denoisers.mixture import GaussianDenoiser, LowRankMixtureDenoiser, MixtureDenoiser
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.sampling.registry import make_solver

PROCESS = process_of("vp")


def level(process: GaussianProcess, t: Tensor) -> tuple[Tensor, Tensor]:
    return process.schedule.alpha(t), process.schedule.sigma(t)


def dense_posterior(
    weights: Tensor, means: Tensor, covs: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and log density of one state (D,) by dense algebra; alpha and sigma (D,)."""
    a, s = torch.diag(alpha), torch.diag(sigma**2)
    logs, posts = [], []
    for w, mean, cov in zip(weights / weights.sum(), means, covs, strict=True):
        noisy = a @ cov @ a + s
        logs.append(w.log() + torch.distributions.MultivariateNormal(a @ mean, noisy).log_prob(x))
        posts.append(mean + cov @ a @ torch.linalg.solve(noisy, x - a @ mean))
    log = torch.stack(logs)
    return (torch.softmax(log, 0)[:, None] * torch.stack(posts)).sum(0), torch.logsumexp(log, 0)


def full_mixture() -> tuple[Tensor, Tensor, Tensor]:
    weights = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    roots = normals(3, 4, 4, seed=3)
    return weights, normals(3, 2, 2, seed=2), roots @ roots.mT / 4 + 0.05 * torch.eye(4, dtype=torch.float64)


@pytest.mark.parametrize("name", ["vp", "rf", "ve"])
def test_the_mixture_is_dense_bayes_for_every_shape_of_time(name: str) -> None:
    process = process_of(name)
    weights, means, covs = full_mixture()
    denoiser = MixtureDenoiser(weights, means, covs, process)
    x = normals(3, 2, 2, seed=1)
    times = (
        torch.full((3, 2), 0.3, dtype=torch.float64),
        torch.tensor([0.1, 0.6, 0.9], dtype=torch.float64)[:, None].expand(3, 2),
        torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.7, 0.71]], dtype=torch.float64),
    )
    given: tuple[float | Tensor, ...] = (0.3, times[1][:, 0], times[2])
    for t, passed in zip(times, given, strict=True):
        post, log = denoiser(x, passed).mean, denoiser.log_prob(x, passed)
        for row in range(3):
            alpha, sigma = (c.repeat_interleave(2) for c in level(process, t[row]))
            mean, density = dense_posterior(weights, means.flatten(1), covs, x[row].flatten(), alpha, sigma)
            torch.testing.assert_close(post[row].flatten(), mean, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(log[row], density, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("residual", [0.0, 0.2])
def test_the_low_rank_mixture_is_the_full_one(residual: float) -> None:
    bases = torch.linalg.qr(normals(2, 5, 2, seed=1)).Q
    variances = torch.tensor([[1.0, 0.3], [0.5, 2.0]], dtype=torch.float64)
    means, weights = normals(2, 5, seed=2), torch.tensor([0.4, 0.6], dtype=torch.float64)
    covs = (bases * variances[:, None]) @ bases.mT + residual**2 * torch.eye(5, dtype=torch.float64)
    low = LowRankMixtureDenoiser(weights, means, bases, variances, PROCESS, residual=residual)
    full = MixtureDenoiser(weights, means, covs, PROCESS)
    x = normals(6, 5, seed=3)
    for t in (
        0.02,
        0.5,
        torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05,
    ):
        torch.testing.assert_close(low(x, t).mean, full(x, t).mean, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(low.log_prob(x, t), full.log_prob(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("denoiser", [spec_mixture(PROCESS), GaussianDenoiser(normals(2), torch.eye(2), PROCESS)])
def test_at_time_zero_the_posterior_is_the_state(denoiser: MixtureDenoiser) -> None:
    x = normals(5, 2, seed=1)
    torch.testing.assert_close(denoiser(x, 0.0).mean, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(denoiser(x, torch.zeros(5, 2, dtype=torch.float64)).mean, x, rtol=1e-12, atol=1e-12)


def test_in_pure_noise_the_posterior_is_the_prior_mean() -> None:
    process = process_of("rf")
    denoiser = spec_mixture(process)
    expected = torch.tensor([0.3 * -1 + 0.4 + 0.3 * 0.3, 0.3 * 0.5 - 0.3 * 1.2], dtype=torch.float64)
    torch.testing.assert_close(denoiser(normals(4, 2), 1.0).mean, expected.expand(4, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_the_empirical_denoiser_is_the_softmax_over_its_items(chunk: int) -> None:
    data, x = normals(23, 2, 3, seed=1), normals(4, 2, 3, seed=2)
    denoiser = EmpiricalDenoiser(data, PROCESS, chunk=chunk)
    for t in (
        torch.full((4, 2), 0.2, dtype=torch.float64),
        torch.tensor([[0.1, 0.7], [0.9, 0.3], [0.5, 0.5], [0.05, 0.99]], dtype=torch.float64),
    ):
        alpha, sigma = (c[:, None, :, None] for c in level(PROCESS, t))
        share = torch.softmax(-((x[:, None] - alpha * data) ** 2 / (2 * sigma**2)).sum((2, 3)), dim=1)
        expected = torch.einsum("bn,n...->b...", share, data)
        torch.testing.assert_close(denoiser(x, t).mean, expected, rtol=1e-9, atol=1e-9)
    shared = denoiser(x, 0.2).mean
    torch.testing.assert_close(denoiser(x, torch.full((4, 2), 0.2).double()).mean, shared, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["vp", "ve", "rf"])
def test_sampling_the_empirical_denoiser_returns_stored_items(name: str) -> None:
    process, data = process_of(name), normals(30, 4, seed=1)
    denoiser = EmpiricalDenoiser(data, process, chunk=11)
    x = normals(40, 4, seed=2) * process.coefficients(1.0, data)[1]
    end = run(denoiser, make_solver("dpm++2m"), make_grid(process.schedule, 40), x).x
    assert float(torch.cdist(end, data).amin(1).max()) < 1e-6
    torch.testing.assert_close(denoiser(data, 1e-3 if name != "ve" else 0.0).mean, data, rtol=1e-9, atol=1e-9)


def test_an_empirical_denoiser_far_from_its_data_stays_finite() -> None:
    data = normals(10, 3, seed=1)
    denoiser = EmpiricalDenoiser(data, PROCESS, chunk=3)
    for t in (0.0, 1e-3, 1.0):
        mean = denoiser(1e4 * normals(4, 3), t).mean
        assert mean.isfinite().all()
        assert float(mean.abs().max()) <= float(data.abs().max()) + 1e-9


def test_labels_choose_components_and_items() -> None:
    labels = torch.tensor([0, 1, 1])
    mixture = spec_mixture(PROCESS, labels)
    data = normals(12, 2, seed=1)
    stored = EmpiricalDenoiser(data, PROCESS, labels=torch.arange(12) % 3, chunk=5)
    x = normals(3, 2, seed=2)
    wanted = {"label": torch.tensor([1, 0, 1])}
    for denoiser, part in (
        (
            mixture,
            lambda k: MixtureDenoiser(
                mixture.log_weights.exp()[labels == k],
                torch.stack([c.mean for c in mixture.components])[labels == k],
                torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)[labels == k],
                PROCESS,
            ),
        ),
        (stored, lambda k: EmpiricalDenoiser(data[torch.arange(12) % 3 == k], PROCESS)),
    ):
        found = denoiser(x, 0.5, denoiser.embed(wanted, 3)).mean
        for row, k in enumerate(wanted["label"].tolist()):
            torch.testing.assert_close(found[row], part(k)(x[row : row + 1], 0.5).mean[0], rtol=1e-10, atol=1e-10)
        drop = {"label": torch.tensor([True, False, True])}
        dropped = denoiser(x, 0.5, denoiser.embed(wanted, 3, drop)).mean
        null = denoiser(x, 0.5, denoiser.embed(None, 3)).mean
        torch.testing.assert_close(dropped[[0, 2]], null[[0, 2]], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(dropped[1], found[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(null, denoiser(x, 0.5).mean, rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match="label"):
            denoiser.embed({"label": torch.tensor([1, 7, 1])}, 3)
        with pytest.raises(ValueError, match="pose"):
            denoiser.embed({"pose": torch.zeros(3, 2)}, 3)


def test_draws_of_the_mixture_have_its_moments() -> None:
    """20000 draws: means within 5 standard errors, covariance entries likewise (false alarm below 1e-5)."""
    weights, means, covs = full_mixture()
    denoiser = MixtureDenoiser(weights, means, covs, PROCESS)
    n = 20000
    uniform = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = denoiser.sample_data(normals(n, 2, 2, seed=1), uniform).flatten(1)
    share = weights / weights.sum()
    mean = share @ means.flatten(1)
    centred = means.flatten(1) - mean
    cov = torch.einsum("m,mij->ij", share, covs) + torch.einsum("m,mi,mj->ij", share, centred, centred)
    assert bool(((drawn.mean(0) - mean).abs() < 5 * cov.diagonal().sqrt() / math.sqrt(n)).all())
    scale = cov.diagonal().sqrt()[:, None] * cov.diagonal().sqrt()
    assert bool(((drawn.T.cov() - cov).abs() < 5 * 2 * scale / math.sqrt(n)).all())


def test_wrong_data_is_refused() -> None:
    means = normals(2, 3)
    skew = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    skew[0, 0, 1] = 0.5
    cases = (
        (lambda: MixtureDenoiser(torch.ones(2), means, torch.ones(3), PROCESS), "covs"),
        (lambda: MixtureDenoiser(torch.tensor([1.0, 0.0]), means, torch.ones(2), PROCESS), "weights"),
        (lambda: MixtureDenoiser(torch.ones(3), means, torch.ones(2), PROCESS), "weights"),
        (lambda: MixtureDenoiser(torch.ones(2), means, skew, PROCESS), "not symmetric"),
        (lambda: GaussianDenoiser(means[0], -torch.eye(3), PROCESS), "negative eigenvalue"),
        (lambda: EmpiricalDenoiser(means[:0], PROCESS), "empty"),
        (lambda: EmpiricalDenoiser(means, PROCESS, labels=torch.zeros(3)), "labels"),
        (
            lambda: LowRankMixtureDenoiser(torch.ones(2), means, torch.ones(2, 3, 2), torch.ones(2, 2), PROCESS),
            "orthonormal",
        ),
    )
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_exact_denoisers_keep_their_digits_when_a_model_is_cast() -> None:
    process = process_of("vp")
    oracle = GaussianDenoiser(normals(3, seed=1), torch.eye(3, dtype=torch.float64) * 0.3, process)
    x = normals(4, 3)
    before = oracle(x, 0.4).mean
    assert torch.equal(oracle.float()(x, 0.4).mean, before)
    data = EmpiricalDenoiser(normals(9, 3), process)
    before = data(x, 0.4).mean
    assert torch.equal(data.to(torch.bfloat16)(x, 0.4).mean, before)


def test_known_elements_of_a_degenerate_gaussian_follow_from_each_other() -> None:
    # x = (a, a): given the first element, the second is known whatever its noise.
    process = process_of("trig")
    basis = torch.full((1, 2, 1), 0.5**0.5, dtype=torch.float64)
    line = LowRankMixtureDenoiser(
        torch.ones(1), torch.zeros(1, 2), basis, torch.full((1, 1), 2.0), process, residual=0.0
    )
    x = torch.tensor([[0.7, -3.0]], dtype=torch.float64)
    mean = line(x, torch.tensor([[0.0, 0.8]], dtype=torch.float64)).mean
    torch.testing.assert_close(mean, torch.full((1, 2), 0.7, dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_covariance_of_pure_noise_is_refused() -> None:
    oracle = GaussianDenoiser(torch.zeros(2), torch.eye(2), process_of("rf"))
    with pytest.raises(ValueError, match="ask at most at"):
        oracle.cov(normals(1, 2), 1.0, normals(1, 2))
