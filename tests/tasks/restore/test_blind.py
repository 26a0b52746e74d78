"""What is unknown of a degradation: kernels and light, found beside the picture and returned with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import process_of
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.errors import CheckpointError, ConfigError
from undiffuse.models.bundle import load
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.operators.blur import Blur, gaussian_line, motion_kernel
from undiffuse.operators.diagonal import Identity
from undiffuse.operators.kernels import draw_kernels
from undiffuse.report.restoration import learned_pictures
from undiffuse.spec import DataSpec
from undiffuse.tasks.restore.kernel_prior import OverSum, SeenBlur, gaussian_of_kernels, kernel_of, picture_of, sparse
from undiffuse.tasks.restore.light import Light, UnevenLight
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


def blurred(kernels: Tensor, x: Tensor, sy: float) -> Tensor:
    return Blur(SHAPE, kernels)(x) + sy * KeyedNoise(3, range(len(x))).normal("measure", 0, SHAPE, torch.float64)


def known_kernels() -> Tensor:
    """Four paths and four Gaussians."""
    lines = [gaussian_line(sigma, 5) for sigma in (0.4, 0.7, 1.0, 1.5)]
    return torch.stack([motion_kernel(5, 0.5, 1000 + i) for i in range(4)] + [line[:, None] * line for line in lines])


def test_the_gaussian_of_kernels_has_their_mean_and_covariance() -> None:
    mean, cov = gaussian_of_kernels(*TAPS, process_of("vp")).moments()
    drawn = draw_kernels(256, *TAPS).flatten(1)
    scale = (mean + 1).sum()
    torch.testing.assert_close((mean + 1) / scale, drawn.mean(0))
    torch.testing.assert_close(cov / scale**2, drawn.T.cov())
    assert float(cov.diagonal().mean()) == pytest.approx(0.2)
    assert draw_kernels(4, 3, 6).shape == (4, 3, 6)
    torch.testing.assert_close(kernel_of(picture_of(known_kernels())), known_kernels())


@pytest.mark.parametrize("t", [1.0, 0.3])
def test_what_is_known_of_a_kernel_has_a_closed_form(t: float) -> None:
    """E[k | k_t, y] for a Gaussian k; at t = 1 it is the most probable kernel given y alone."""
    x, std = pictures(1).expand(2, -1, -1, -1), 3.0
    prior = gaussian_of_kernels(*TAPS, process_of("vp"))
    blur = Blur(SHAPE, torch.full(TAPS, 1 / 25).double())
    y = blurred(known_kernels()[:2], x, 0.02)
    state = prior.process.corrupt(
        picture_of(known_kernels()[2:4]), t, KeyedNoise(1, range(2)).normal("data", 0, (1, *TAPS), torch.float64)
    )
    found = SeenBlur(prior, blur.of(x), y, std, iterations=30)(state, t).mean

    mean, cov = prior.moments()
    alpha, sigma = prior.process.coefficients(t, state)
    eye = torch.eye(25).double()
    columns = blur.with_kernel(eye.view(25, *TAPS))(x[:1].expand(25, -1, -1, -1)).flatten(1).T
    seen = torch.cat([alpha * eye, columns / (mean + 1).sum()])  # of k_t and of y, both linear in the picture of k
    noise = torch.cat([torch.full((25,), float(sigma) ** 2), torch.full((64,), std**2)]).double()
    told = torch.cat([state.flatten(1), y.flatten(1)], 1) - seen @ mean
    told[:, 25:] -= columns.sum(1) / (mean + 1).sum()  # black is -1
    gain = cov @ seen.T @ torch.linalg.inv(seen @ cov @ seen.T + noise.diag())
    torch.testing.assert_close(found.flatten(1), mean + told @ gain.T, rtol=0, atol=1e-8)


def test_brightness_is_no_matter_of_a_kernel() -> None:
    """What is measured has the derivative of p / sum(p), to which brighter pictures of one kernel are all the same."""
    blur, above = Blur(SHAPE, torch.full(TAPS, 1 / 25).double()).of(pictures(2)), picture_of(known_kernels()[:2]) + 1
    moved = KeyedNoise(7, range(2)).normal("data", 0, (1, *TAPS), torch.float64)
    seen = OverSum(blur, above)
    _, slope = torch.func.jvp(lambda p: blur(p / p.sum((-2, -1), keepdim=True)), (above,), (moved,))
    torch.testing.assert_close(seen(moved), slope)
    torch.testing.assert_close(seen(above), torch.zeros(2, *SHAPE).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close((seen(moved) * slope).sum(), (moved * seen.adjoint(slope)).sum())


def test_a_prior_that_knows_the_kernels_finds_them_better() -> None:
    """Eight known kernels against the Gaussian: 0.61 of the squared error, 0.07 of that without a lag (measured)."""
    shape = (1, 12, 12)
    at = torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)).double()
    cov = 0.3 * torch.exp(-torch.cdist(at, at) / 2) + 0.01 * torch.eye(144).double()
    prior = GaussianDenoiser(torch.zeros(shape).double(), cov, process_of("vp"))
    noise, kernels = KeyedNoise(5, range(8)), known_kernels()
    x = prior.sample_data(noise.normal("data", 0, shape, torch.float64), noise.uniform("class", 0, ()))
    y = Blur(shape, kernels)(x) + 0.02 * KeyedNoise(3, range(8)).normal("measure", 0, shape, torch.float64)
    knows = MixtureDenoiser(torch.ones(8), picture_of(kernels), torch.full((8,), 0.05), process_of("vp"))
    guess = Blur(shape, torch.full(TAPS, 1 / 25).double())

    def error(**options: object) -> float:
        found = restore(prior, y, guess, "blind-dps", noise_std=0.02, samples=2, steps=24, options=options)
        return float((found.learned["kernel"] - kernels).square().sum((2, 3)).mean())

    gaussian, own = error(), error(prior=knows)
    assert own < 0.7 * gaussian
    assert own < 0.4 * error(prior=knows, lag=1.0)


def test_sparse_kernels_keep_their_sum() -> None:
    kernel = torch.tensor([[[0.5, 0.3], [0.15, 0.05]]]).double()
    torch.testing.assert_close(sparse(kernel, 0.0, "l0"), kernel)
    torch.testing.assert_close(sparse(kernel, 0.4, "l0"), torch.tensor([[[5.0, 3.0], [0.0, 0.0]]]).double() / 8)
    torch.testing.assert_close(sparse(kernel, 0.4, "l1"), torch.tensor([[[3.0, 1.0], [0.0, 0.0]]]).double() / 4)
    guess = Blur(SHAPE, torch.full(TAPS, 1 / 25).double())
    y = blurred(known_kernels()[:2], pictures(2), 0.02)
    options = {"sparsity": 0.3, "sparse_norm": "l1"}
    found = restore(smooth_prior(), y, guess, "blind-dps", noise_std=0.02, samples=1, steps=5, options=options)
    assert float((found.learned["kernel"] == 0).double().mean()) > 0.3
    torch.testing.assert_close(found.learned["kernel"].sum((2, 3)), torch.ones(1, 2).double())


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


def test_a_prior_of_kernels_goes_by_its_name() -> None:
    """The digits as kernels: a network in float32, by name and as a model, beside another schedule than its own."""
    guess = Blur(SHAPE, torch.full((8, 8), 1 / 64).double())
    y = pictures(1)
    run = {"noise_std": 0.02, "samples": 2, "steps": 3, "seed": 1}
    by_name, given = (
        restore(smooth_prior(), y, guess, "blind-dps", options={"prior": prior}, **run).learned["kernel"]
        for prior in ("digits", load("digits"))
    )
    assert torch.equal(by_name, given)
    torch.testing.assert_close(given.sum((2, 3)), torch.ones(2, 1).double())


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


def test_uneven_light_is_the_smoothest_that_fits() -> None:
    """(1 + l^4 L^2) m = rest with L of differences that end at the edge; at infinite l it is one number."""
    shape, rest = (2, 3, 5, 4), KeyedNoise(2, range(2)).normal("data", 0, (3, 5, 4), torch.float64)
    rows, columns = (torch.eye(n).double().diff(dim=0) for n in shape[-2:])
    laplace = torch.kron(rows.T @ rows, torch.eye(4).double()) + torch.kron(torch.eye(5).double(), columns.T @ columns)
    light = UnevenLight(0.3)
    left = torch.eye(20).double() + (0.3 * 5) ** 4 * laplace @ laplace
    torch.testing.assert_close(light.offset(rest).flatten(1) @ left, rest.mean(1).flatten(1))
    torch.testing.assert_close(UnevenLight(1e4).offset(rest), Light().offset(rest).expand(2, 1, 5, 4))
    torch.testing.assert_close(UnevenLight(1e4).factor(rest, rest**2), Light().factor(rest, rest**2))
    smooth = torch.kron(torch.ones(5).double(), torch.ones(4).double()).view(1, 1, 5, 4) * 0.4
    torch.testing.assert_close(light.factor(rest, 0.7 * rest + smooth), torch.full((2, 1, 1, 1), 0.7).double())


def test_uneven_light_is_found_and_returned() -> None:
    """Pictures that darken towards the corners, by up to 1.4: 0.59 of the squared error of even light (measured)."""
    shape, count = (1, 16, 16), 4
    at = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0)).double()
    cov = 0.3 * torch.exp(-torch.cdist(at, at).square() / 2) + 0.01 * torch.eye(256).double()
    prior = GaussianDenoiser(torch.full(shape, -0.2).double(), cov, process_of("vp"))
    noise = KeyedNoise(5, range(count))
    x = prior.sample_data(noise.normal("data", 0, shape, torch.float64), noise.uniform("class", 0, ()))
    line = torch.linspace(-1, 1, 16).double().square()
    light = 0.4 - 0.7 * (line[:, None] + line)
    y = 0.8 * x + light
    even, uneven = (
        restore(prior, y, Identity(shape), "gdp", samples=8, steps=60, options={"light": kind})
        for kind in ("picture", "pixel")
    )
    assert uneven.learned["offset"].shape == (8, count, 1, 16, 16)
    assert uneven.learned["factor"].shape == (8, count, 1, 1, 1)
    assert (uneven.mean - x).square().mean() < 0.7 * (even.mean - x).square().mean()
    found = uneven.learned["offset"].mean((0, 1))[0]
    assert float(torch.corrcoef(torch.stack([found.flatten(), light.flatten()]))[0, 1]) > 0.85
    again = uneven.learned["factor"][1] * uneven.samples[1] + uneven.learned["offset"][1]
    torch.testing.assert_close(uneven.residual_rms[1], (y - again).square().flatten(1).mean(1).sqrt())
    assert set(learned_pictures(uneven)) == {"offset"}


def test_bad_options_are_refused() -> None:
    operator = Blur(SHAPE, torch.full(TAPS, 1 / 25).double())
    spec = DataSpec(kind="image", shape=(1, 8, 8), range=(0.0, 1.0))
    bare = smooth_prior()
    bare.spec = spec
    refused = {
        "'flat'": ({"prior": "flat"}, CheckpointError),
        "prior=3.5 does not fit; expected str": ({"prior": 3.5}, ConfigError),
        r"image data of shape \(1, 8, 8\); expected grey pictures \(1, 5, 5\)": (
            {"prior": Model(bare, spec)},
            ValueError,
        ),
        "descents=0 must be at least 1": ({"descents": 0}, ValueError),
        "iterations=0 must be at least 1": ({"iterations": 0}, ValueError),
        "lag=0.0 must be positive": ({"lag": 0.0}, ValueError),
        r"sparsity=1.5 is outside \[0, 1\)": ({"sparsity": 1.5}, ValueError),
        "sparse_norm='l2'": ({"sparse_norm": "l2"}, ConfigError),
    }
    for message, (options, error) in refused.items():
        with pytest.raises(error, match=message):
            restore(smooth_prior(), pictures(1), operator, "blind-dps", options=options)
    with pytest.raises(ConfigError, match="light='dim' does not fit"):
        restore(smooth_prior(), pictures(1), operator, "gdp", options={"light": "dim"})
    with pytest.raises(ValueError, match=r"smooth=0\.0 must be positive"):
        restore(smooth_prior(), pictures(1), operator, "gdp", options={"light": "pixel", "smooth": 0.0})
    points = GaussianDenoiser(torch.zeros(3).double(), torch.eye(3).double(), process_of("vp"))
    with pytest.raises(ValueError, match="light=pixel needs a measurement that is a picture"):
        restore(points, torch.zeros(1, 3).double(), Identity((3,)), "gdp", options={"light": "pixel"})
