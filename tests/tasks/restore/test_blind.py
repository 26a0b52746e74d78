"""What is unknown of a degradation: kernels and light, found beside the picture and returned with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import process_of
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.errors import ConfigError
from undiffuse.noise import KeyedNoise
from undiffuse.operators.blur import Blur, motion_kernel
from undiffuse.operators.diagonal import Identity
from undiffuse.tasks.restore.kernel_prior import kernel_prior
from undiffuse.tasks.restore.run import restore

SHAPE, TAPS = (1, 8, 8), (5, 5)


def smooth_prior() -> GaussianDenoiser:
    """Pictures whose neighbours resemble each other."""
    at = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).double()
    cov = 0.3 * torch.exp(-torch.cdist(at, at) / 2) + 0.01 * torch.eye(64).double()
    return GaussianDenoiser(torch.zeros(SHAPE).double(), cov, process_of("vp"))


def pictures(count: int) -> Tensor:
    noise = KeyedNoise(5, range(count))
    return smooth_prior().sample_data(noise.normal("data", 0, SHAPE, torch.float64), noise.uniform("class", 0, ()))


def test_the_gaussian_of_kernels_has_their_mean_and_covariance() -> None:
    prior = kernel_prior(*TAPS)
    assert prior.mean.sum() == pytest.approx(1)
    assert prior.roots.sum((1, 2)).abs().max() < 1e-12  # every kernel sums to 1
    assert len(prior.roots) == 24
    assert kernel_prior(3, 6).mean.shape == (3, 6)


def test_the_most_probable_kernel_is_where_the_gradient_vanishes() -> None:
    """|y - k * x|^2 / (2 v) + |w|^2 / 2 with k = m + L w; with little noise the kernel itself comes back."""
    prior, x = kernel_prior(*TAPS), pictures(3)
    operator = Blur(SHAPE, prior.mean)
    kernel = prior.mean + 0.1 * prior.roots[0] + 0.05 * prior.roots[3]
    y = operator.with_kernel(kernel)(x)
    torch.testing.assert_close(prior.fitted(operator, x, y, 1e-10), kernel.expand(3, *TAPS), rtol=0, atol=1e-6)
    torch.testing.assert_close(prior.fitted(operator, x, y, 1e12), prior.mean.expand(3, *TAPS), rtol=0, atol=1e-9)

    variance, found = 3.0, prior.fitted(operator, x[:1], y[:1], 3.0)[0]
    assert (found > 0).all()  # so that the projection did nothing
    w = torch.linalg.lstsq(prior.roots.flatten(1).T, (found - prior.mean).flatten()[:, None]).solution[:, 0]
    w.requires_grad_()
    blurred = operator.with_kernel(prior.mean + torch.einsum("r,rhw->hw", w, prior.roots))(x[:1])
    loss = (y[:1] - blurred).square().sum() / (2 * variance) + w.square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, w)
    assert gradient.abs().max() < 1e-8


@pytest.mark.parametrize("prior", ["gaussian", "none"])
def test_an_unknown_kernel_is_found_and_returned(prior: str) -> None:
    x, sy = pictures(2), 0.02
    kernels = torch.stack([motion_kernel(5, 0.5, 1000 + i) for i in range(2)])
    y = Blur(SHAPE, kernels)(x) + sy * KeyedNoise(3, range(2)).normal("measure", 0, SHAPE, torch.float64)
    guess = torch.full(TAPS, 1 / 25).double()
    run = {"noise_std": sy, "samples": 2, "steps": 20, "options": {"prior": prior}}
    result = restore(smooth_prior(), y, Blur(SHAPE, guess), "blind-dps", **run)
    found = result.learned["kernel"]
    assert found.shape == (2, 2, *TAPS)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum((2, 3)), torch.ones(2, 2).double())
    error, before = (found.mean(0) - kernels).norm(), (guess - kernels).norm()
    if prior == "gaussian":
        assert error < 0.75 * before
    again = torch.stack([Blur(SHAPE, found[k])(result.samples[k]) for k in range(2)])
    torch.testing.assert_close(result.residual_rms, (y - again).square().flatten(2).mean(2).sqrt())
    if prior == "none":
        return
    alone = restore(smooth_prior(), y, Blur(SHAPE, guess), "blind-dps", batch_size=1, **run)
    torch.testing.assert_close(alone.learned["kernel"], found, rtol=0, atol=1e-8)


def test_the_light_is_found_and_returned() -> None:
    """y = 0.5 x + 0.2: pictures with a known scale, so that both can be told."""
    x = pictures(2)
    y = 0.5 * x + 0.2
    dark = restore(smooth_prior(), y, Identity(SHAPE), "gdp", samples=2, steps=40, options={"light": True})
    assert {name: value.shape for name, value in dark.learned.items()} == {
        "factor": (2, 2, 1, 1, 1),
        "offset": (2, 2, 1, 1, 1),
    }
    again = dark.learned["factor"][1] * dark.samples[1] + dark.learned["offset"][1]
    torch.testing.assert_close(dark.residual_rms[1], (y - again).square().flatten(1).mean(1).sqrt())
    assert len(dark.to_json()["learned"]["factor"]) == 2
    # One draw is off by a fifth; answers that were just moved towards y would give sqrt(1 / scale) for any light.
    for true in (0.5, 1.6):
        found = restore(smooth_prior(), true * x, Identity(SHAPE), "gdp", samples=8, steps=60, options={"light": True})
        assert float(found.learned["factor"].mean()) == pytest.approx(true, rel=0.25)
        plain = restore(smooth_prior(), true * x, Identity(SHAPE), "gdp", samples=8, steps=60)
        assert (found.mean - x).square().mean() < 0.6 * (plain.mean - x).square().mean()
    assert not restore(smooth_prior(), y, Identity(SHAPE), "gdp", samples=1, steps=2).learned


def test_bad_options_are_refused() -> None:
    operator = Blur(SHAPE, torch.full(TAPS, 1 / 25).double())
    with pytest.raises(ConfigError, match=r"prior='flat' does not fit; expected 'gaussian' \| 'none'"):
        restore(smooth_prior(), pictures(1), operator, "blind-dps", options={"prior": "flat"})
    with pytest.raises(ValueError, match="descents=0 at least 1"):
        restore(smooth_prior(), pictures(1), operator, "blind-dps", options={"descents": 0})
