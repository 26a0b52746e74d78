"""Products with the posterior covariance: in closed form, by the derivative, for any shape of time; and draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import process_of
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.noise import KeyedNoise

ROWS, D = 3, 4
TIMES = {
    "shared": 0.4,
    "per item": torch.tensor([0.1, 0.5, 0.95], dtype=torch.float64),
    "per element": torch.tensor([[0.1, 0.5, 0.9, 0.3]], dtype=torch.float64),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return KeyedNoise(seed, [0]).normal("data", 0, shape, torch.float64)[0]


def mixture(name: str = "vp") -> MixtureDenoiser:
    roots = normal(2, D, D, seed=1)
    covs = roots @ roots.mT + 0.1 * torch.eye(D, dtype=torch.float64)
    return MixtureDenoiser(torch.tensor([0.3, 0.7]), normal(2, D, seed=2), covs, process_of(name))


@pytest.mark.parametrize("t", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("dense", [True, False])
def test_the_closed_form_is_the_derivative(t: float | Tensor, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cov[x_0 | x_t] = (sigma^2 / alpha) J^T: Tweedie's second identity, which holds for mixtures too."""
    monkeypatch.setattr("undiffuse.denoisers.mixture._DENSE", 1 << 24 if dense else 0)
    prior, x, v = mixture(), normal(ROWS, D, seed=3), normal(ROWS, D, seed=4)
    exact, by_autograd = prior.linearise(x, t), Denoiser.linearise(prior, x, t)
    torch.testing.assert_close(exact.post.mean, prior(x, t).mean)
    torch.testing.assert_close(exact.cov(v), by_autograd.cov(v), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(exact.pull(v), by_autograd.pull(v), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(exact.pull(v), prior.vjp(x, t, v)[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("t", TIMES.values(), ids=TIMES)
def test_draws_have_the_covariance(t: float | Tensor) -> None:
    """4000 draws of one state; 5 standard errors, sqrt((V_ii V_jj + V_ij^2) / N)."""
    count = 4_000
    prior, x = mixture(), normal(1, D, seed=3).expand(count, D)
    t = t[:1].expand(count, *t.shape[1:]) if isinstance(t, Tensor) else t
    answer = prior.linearise(x, t)
    assert answer.draw is not None
    drawn = answer.draw(KeyedNoise(0, range(count)), 0)
    first = prior.linearise(x[:D], t[:D] if isinstance(t, Tensor) else t)
    cov = first.cov(torch.eye(D, dtype=torch.float64))
    error = ((cov.diagonal()[:, None] * cov.diagonal() + cov**2) / count).sqrt()
    assert ((drawn.T @ drawn / count - cov).abs() < 5 * error).all()


def test_pure_noise_leaves_the_covariance_of_the_data() -> None:
    prior = mixture("cosine")  # alpha is 0 at t = 1
    v = normal(ROWS, D, seed=4)
    torch.testing.assert_close(prior.linearise(normal(ROWS, D), 1.0).cov(v), v @ prior.moments()[1])


def test_products_can_be_differentiated_where_gradients_are_on() -> None:
    prior, v = mixture(), normal(ROWS, D, seed=4)
    x = normal(ROWS, D, seed=3).requires_grad_()
    for linearise in (prior.linearise, lambda x, t: Denoiser.linearise(prior, x, t)):
        (found,) = torch.autograd.grad(linearise(x, 0.4).cov(v).square().sum(), x)
        step = 1e-5 * normal(ROWS, D, seed=5)
        with torch.no_grad():
            ahead, behind = (prior.linearise(x + sign * step, 0.4).cov(v).square().sum() for sign in (1, -1))
        torch.testing.assert_close((found * step).sum(), (ahead - behind) / 2, rtol=1e-6, atol=0)
    with torch.no_grad():
        assert not prior.linearise(x, 0.4).post.mean.requires_grad
        assert not Denoiser.linearise(prior, x, 0.4).post.mean.requires_grad


def test_moments_are_those_of_the_mixture() -> None:
    prior = mixture()
    mean, cov = prior.moments()
    noise = KeyedNoise(0, range(20_000))
    x = prior.sample_data(noise.normal("data", 0, (D,), torch.float64), noise.uniform("class", 0, ()))
    assert ((x.mean(0) - mean).abs() < 5 * (cov.diagonal() / len(x)).sqrt()).all()
    torch.testing.assert_close(x.T.cov(), cov, rtol=0.1, atol=0.1)
    point = GaussianDenoiser(torch.zeros(D), torch.zeros(D, D), process_of("vp"))
    assert not Denoiser.linearise(point, x[:2], 0.5).cov(x[:2]).any()
