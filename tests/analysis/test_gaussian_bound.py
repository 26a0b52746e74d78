"""The evidence bound of Gaussian processes: tight for exact denoisers, never below -log p (principles, 2.1, 10, 15)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, spec_mixture
from undiffuse.analysis import denoising_bound, log_likelihood
from undiffuse.analysis.gaussian_bound import Ends, prior_divergence, stratified_error
from undiffuse.denoisers.base import Wrapper
from undiffuse.denoisers.empirical import EmpiricalDenoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.denoisers.reschedule import Reschedule
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.spec import DataSpec

PROCESS = process_of("vp")
ENDS = Ends(PROCESS.schedule.t_min, PROCESS.schedule.t_max)


def mixture_draws(count: int) -> tuple[Tensor, Tensor]:
    """Data of the spec's mixture, and their exact log p."""
    mixture = spec_mixture(PROCESS)
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x0 = mixture.sample_data(normals(count, 2, seed=3), uniform)
    return x0, mixture.log_prob(x0)


def estimate(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard error over the draws (K, B)."""
    return values.mean(0), stratified_error(values)


@pytest.mark.slow
def test_under_an_exact_denoiser_the_continuous_bound_is_minus_log_p_of_every_item() -> None:
    """Within 3.5 standard errors for each of 16 items (false alarm 0.7 %; the seed is fixed), which are about right:
    the squares of the errors in their units average to 1 (chi-squared of 16). The decoder's slack is below
    d sigma(t_min)^2 / (2 c^2) = 1e-3, that of the prior alpha(1)^2 |x|^2 / 2 = 1e-4."""
    x0, log_p = mixture_draws(16)
    mixture = spec_mixture(PROCESS)
    mean, error = estimate(denoising_bound(mixture, x0, KeyedNoise(0, range(16)), 400, ENDS))
    assert bool(((mean + log_p).abs() < 3.5 * error).all())
    assert 0.3 < float(((mean + log_p) / error).square().mean()) < 2.0
    assert float(error.max()) < 1.0


def test_the_result_carries_the_bound_and_its_errors() -> None:
    x0, log_p = mixture_draws(16)
    found = log_likelihood(spec_mixture(PROCESS), x0, method="elbo", draws=100)
    assert found.is_bound
    assert found.noise_error is not None
    assert abs(found.nats.mean + float(log_p.mean())) < 3.5 * found.noise_standard_error
    assert found.noise_standard_error == pytest.approx(float(found.noise_error.square().sum().sqrt()) / 16)
    assert found.nfe == 200  # the Gaussian decoder asks, too
    assert "upper bound" in found.table()[0][-1]


def test_fewer_levels_bound_less_well() -> None:
    """10 levels > 50 levels > -log p, by many standard errors; the discrete bound asks only at its levels."""
    x0, log_p = mixture_draws(16)
    mixture = spec_mixture(PROCESS)
    times = []

    class Listening(Wrapper):
        def posterior(self, x: Tensor, t: object, cond: object) -> Posterior:
            times.append(t)
            return super().posterior(x, t, cond)  # type: ignore[arg-type, return-value]

    totals = []
    for levels in (10, 50):
        ends = Ends(ENDS.t_min, ENDS.t_max, levels)
        values = denoising_bound(Listening(mixture), x0, KeyedNoise(0, range(16)), 2 * levels, ends)
        slack = values.mean(0) + log_p
        totals.append((float(slack.mean()), float(slack.std()) / 16**0.5))
    assert totals[0][0] - 4 * totals[0][1] > totals[1][0] + 4 * totals[1][1]
    assert totals[1][0] - 4 * totals[1][1] > 0
    asked = torch.cat([t for t in times[:40] if isinstance(t, Tensor)])
    grid = torch.linspace(ENDS.t_max, ENDS.t_min, 11, dtype=torch.float64)
    assert bool(torch.isclose(asked[:, None], grid[None, :-1]).any(1).all())


def test_a_discrete_term_is_the_divergence_of_the_two_posteriors() -> None:
    """(SNR(s) - SNR(t)) / 2 |x - D|^2 = KL(q(x_s | x_t, x) || q(x_s | x_t, D)), from the bridge's own coefficients."""
    t, s = 0.6, 0.4
    x0, mean, x_t = normals(5, 3, seed=1), normals(5, 3, seed=2), normals(5, 3, seed=3)
    bridge, (alpha, sigma) = PROCESS.bridge(t, s, "ddim", 1.0), PROCESS.coefficients(t, x_t)
    centre = [bridge.x0 * clean + bridge.eps * (x_t - alpha * clean) / sigma for clean in (x0, mean)]
    normal = [torch.distributions.Normal(c, bridge.std) for c in centre]
    divergence = torch.distributions.kl_divergence(*normal).sum(1)
    snr = [math.exp(2 * float(PROCESS.schedule.half_logsnr(torch.tensor(u, dtype=torch.float64)))) for u in (s, t)]
    torch.testing.assert_close(0.5 * (snr[0] - snr[1]) * (x0 - mean).square().sum(1), divergence, rtol=1e-10, atol=0)


def test_the_prior_s_term_is_a_divergence_of_gaussians() -> None:
    process, x0 = process_of("cosine"), normals(4, 3, seed=1)
    alpha, sigma = process.coefficients(0.9, x0)
    normal = [torch.distributions.Normal(mean, torch.full_like(x0, float(sigma))) for mean in (alpha * x0, 0 * x0)]
    expected = torch.distributions.kl_divergence(*normal).sum(1)
    torch.testing.assert_close(prior_divergence(process, x0, 0.9), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["rf", "cosine", "ve"])
def test_the_continuous_bound_depends_on_a_schedule_through_its_ends_alone(name: str) -> None:
    """Check 15: with the same draws the very same number, on schedules whose ends have the same noise levels."""
    x0, _ = mixture_draws(4)
    target = process_of(name)
    ends = [0.9, 0.02]
    level = target.schedule.half_logsnr(torch.tensor(ends, dtype=torch.float64))
    high, low = PROCESS.schedule.time(level).tolist()
    mixture = spec_mixture(PROCESS)
    first = denoising_bound(mixture, x0, KeyedNoise(0, range(4)), 8, Ends(low, high))
    second = denoising_bound(Reschedule(mixture, target), x0, KeyedNoise(0, range(4)), 8, Ends(ends[1], ends[0]))
    torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-7)


def test_a_worse_denoiser_has_a_higher_bound_by_its_excess_error() -> None:
    """Pythagoras: adding b to the mean adds the integral of SNR b^2 d(half log-SNR) to the bound."""
    gaussian = GaussianDenoiser(torch.zeros(1), torch.eye(1), PROCESS)

    class Off(Wrapper):
        def posterior(self, x: Tensor, t: object, cond: object) -> Posterior:
            post = super().posterior(x, t, cond)  # type: ignore[arg-type]
            alpha, sigma = self.process.coefficients(t, x)  # type: ignore[union-attr, arg-type]
            return Posterior(post.mean + 0.5 * sigma / alpha)

    x0 = normals(64, 1, seed=2)
    ends = Ends(0.05, 0.9)
    noise = KeyedNoise(0, range(64))
    gap = denoising_bound(Off(gaussian), x0, noise, 64, ends) - denoising_bound(gaussian, x0, noise, 64, ends)
    level = PROCESS.schedule.half_logsnr(torch.tensor([0.05, 0.9], dtype=torch.float64))
    expected = 0.25 * float(level[0] - level[1]) + 0.5 * 0.25  # and the decoder's 1/2 SNR b^2
    error = float(gap.mean(0).std()) / 64**0.5  # over items: only over data, too, are errors at right angles
    assert float(gap.mean()) == pytest.approx(expected, abs=3.5 * error)


@pytest.mark.parametrize("t_min", [1e-3, 0.05])
def test_integers_have_a_decoder_of_their_own(t_min: float) -> None:
    """9 points of a 3 x 3 lattice, equally likely, under their exact denoiser: log 9 nats, with and without much noise
    left to the decoder. At 0.05 the decoder, which takes elements and levels by themselves, is exact for a lattice."""
    values = torch.tensor([-1.0, 0.0, 1.0])
    points = torch.cartesian_prod(values, values)
    spec = DataSpec(kind="vector", shape=(2,), range=(0.0, 2.0))
    model = Model(EmpiricalDenoiser(points, PROCESS, spec=spec), spec)
    data = (points + 1).repeat(4, 1).round().long()
    found = log_likelihood(model, data, method="elbo", draws=100, t_min=t_min)
    assert (found.units, found.nfe, found.dequantised) == ("levels", 100, False)
    assert found.noise_error is not None
    assert abs(found.nats.mean - math.log(9.0)) < 3.5 * found.noise_standard_error
    assert found.noise_standard_error < 0.2


def test_tokens_report_their_own_bound() -> None:
    from tests.oracles.masked import joint_denoiser, triple_joint

    denoiser = joint_denoiser(triple_joint())
    spec = DataSpec(kind="tokens", shape=(3,), vocabulary=tuple("abcdefgh"[: denoiser.process.classes]))
    model = Model(denoiser, spec)
    tokens = torch.tensor([[0, 0, 0], [0, 1, 1], [1, 0, 1]])
    found, bound = log_likelihood(model, tokens, draws=50), model.elbo(tokens, draws=50)
    assert found.nats.mean / 3 == pytest.approx(bound.mean, rel=1e-5)
    assert found.nats.standard_error / 3 == pytest.approx(bound.standard_error, rel=1e-5)
    assert found.table()[0][0] == "bits per token"
    with pytest.raises(ValueError, match="ids outside"):
        log_likelihood(model, tokens + 7)
    with pytest.raises(ValueError, match="token ids"):
        log_likelihood(model, tokens.float())


def test_a_bound_needs_a_gaussian_process_whose_answers_are_a_posterior() -> None:
    x0, _ = mixture_draws(2)
    with pytest.raises(ValueError, match="allow_unnormalised"):
        log_likelihood(Wrapper(spec_mixture(PROCESS)), x0, method="elbo")
    with pytest.raises(ValueError, match="draws=0"):
        log_likelihood(spec_mixture(PROCESS), x0, method="elbo", draws=0)
    assert isinstance(PROCESS, GaussianProcess)
