"""Volumes from a model of slices: the convex step is solved, nothing else changes, and neighbours help."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tasks.restore.test_run import SHAPE, VP, Pixels
from undiffuse.denoisers.each_slice import EachSlice
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.operators.base import LinearOperator
from undiffuse.operators.blur import gaussian_blur
from undiffuse.operators.compose import TemporalAverage, per_frame
from undiffuse.operators.ct import Radon
from undiffuse.operators.diagonal import Identity, Mask
from undiffuse.operators.jpeg import JPEG
from undiffuse.operators.mri import mri_scan
from undiffuse.operators.separable import Downsample
from undiffuse.spec import DataSpec
from undiffuse.tasks.restore.constraints import DataFit, SmoothSlices
from undiffuse.tasks.restore.exact import digits_prior
from undiffuse.tasks.restore.fitting import fit
from undiffuse.tasks.restore.prior import Prior, prior_of
from undiffuse.tasks.restore.run import restore

VOLUME = (6, *SHAPE)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return KeyedNoise(seed, range(shape[0])).normal("data", 0, tuple(shape[1:]), torch.float64)


def holes(shape: tuple[int, ...] = VOLUME) -> Mask:
    return Mask(shape, (KeyedNoise(1, range(1)).uniform("data", 0, shape)[0] < 0.3).double())


@pytest.mark.parametrize("rho", [0.5, 2.0])
@pytest.mark.parametrize("operator", [holes((4, 1, 2, 4)), TemporalAverage((4, 1, 2, 4), 2)])
def test_the_step_is_that_of_the_convex_problem(operator: LinearOperator, rho: float) -> None:
    """Optimal: the slope of the quadratic part is -lam D^T s, with s the sign of every jump, in [-1, 1] where none is.

    Summed along the slices up to a jump that slope is lam s there, and over all slices it is 0.
    """
    mean, y = normal(2, *operator.in_shape), operator(normal(2, *operator.in_shape, seed=1))
    gamma, lam = 1.5, 0.3
    step = SmoothSlices(VP, operator, y, gamma, 8, lam=lam, rho=rho, rounds=150)
    x = step.fitted(mean)
    sums = ((x - mean) + gamma * operator.adjoint(operator(x) - y)).cumsum(1)
    signs, jumps = sums[:, :-1] / lam, x.diff(dim=1)
    assert sums[:, -1].abs().max() < 1e-6
    assert signs.abs().max() < 1 + 1e-6
    jumped = jumps.abs() > 1e-4
    assert 0.2 < jumped.double().mean() < 0.8  # both cases are there
    assert (signs - jumps.sign())[jumped].abs().max() < 1e-4


def test_heavy_smoothing_leaves_one_slice() -> None:
    """The limit is the step of the mean over the slices: (mean + gamma y) / (1 + gamma), averaged."""
    shape = (4, 1, 2, 4)
    mean, y = normal(2, *shape), normal(2, *shape, seed=1)
    found = SmoothSlices(VP, Identity(shape), y, 2.0, 8, lam=1e3, rho=3.0, rounds=100).fitted(mean)
    torch.testing.assert_close(found, ((mean + 2 * y) / 3).mean(1, keepdim=True).expand_as(found))


def test_without_smoothing_it_is_dds_slice_by_slice() -> None:
    one = gaussian_blur(SHAPE, sigma=1.0)
    operator = per_frame(one, 6)
    mean, y = normal(2, *VOLUME), normal(2, *operator.out_shape, seed=1)
    found = SmoothSlices(VP, operator, y, 1.5, 60, lam=0.0, rho=1.0, rounds=3).fitted(mean)  # type: ignore[arg-type]
    slices = [DataFit(VP, one, y[:, z], 1.5, 60).fitted(mean[:, z]) for z in range(6)]
    torch.testing.assert_close(found, torch.stack(slices, 1), rtol=0, atol=1e-10)

    model = Model(Pixels(), Pixels.spec)
    told: dict[str, Any] = {"noise_std": 0.1, "samples": 2, "steps": 4}
    plain = restore(model, y, operator, "dds", **told).samples
    assert torch.equal(plain, restore(model, y, operator, "diffusion-mbir", options={"lam": 0.0}, **told).samples)


def test_slices_that_resemble_each_other_help() -> None:
    """Digits that drift slowly from slice to slice, 30 % of the pixels of each: 3 dB at least (5.5 measured)."""
    prior, held_out = digits_prior()
    drift = torch.nn.functional.avg_pool2d(normal(6, *SHAPE, seed=5), 3, 1, 1)[:, None]
    along = torch.linspace(-0.5, 0.5, 6).double()[:, None, None, None]
    volumes, operator = (held_out[:6, None] + along * drift).clamp(-1, 1), holes()
    y = operator.measured(operator(volumes) + 0.05 * normal(6, *VOLUME, seed=2))

    assert prior.spec is not None
    model = Model(prior, prior.spec)

    def psnr(method: str) -> tuple[float, Tensor]:
        found = restore(model, y, operator, method, noise_std=0.05, samples=4, steps=30)
        error = (found.mean - volumes).square().flatten(1).mean(1)
        return float((10 * torch.log10(4 / error)).mean()), found.residual_rms

    alone, (together, residual) = psnr("dds")[0], psnr("diffusion-mbir")
    assert together > alone + 3
    assert residual.mean() < 0.1


def test_a_sample_is_the_same_however_it_is_cut_up() -> None:
    """What is kept from step to step is each sample's own."""
    model, operator = Model(Pixels(), Pixels.spec), holes()
    y = operator(normal(2, *VOLUME).float())
    told: dict[str, Any] = {"samples": 3, "steps": 4, "noise_std": 0.1}
    whole = restore(model, y, operator, "diffusion-mbir", **told).samples
    torch.testing.assert_close(restore(model, y, operator, "diffusion-mbir", batch_size=1, **told).samples, whole)
    assert whole.shape == (3, 2, *VOLUME)


@pytest.mark.parametrize("size", [(8, 8), (12, 10), (6, 5)])
def test_slices_of_any_size_are_restored_as_pictures_are(size: tuple[int, int]) -> None:
    """Tiles under larger ones and a frame around smaller ones: prior and operator are those of every slice."""
    prior = prior_of(Model(Pixels(), Pixels.spec), (1, *size))
    one, many = Identity((1, *size)), Identity((3, 1, *size))
    y = normal(2, 3, 1, *size).float()
    volume, slices = fit(prior, y, many, 0.1, None, None, None), fit(prior, y[:, 0], one, 0.1, None, None, None)
    assert volume.prior.shape == (3, *slices.prior.shape)
    x = normal(2, *volume.prior.shape, seed=1).float()
    found, seen = volume.prior.denoiser(x, 0.5).mean, volume.operator(x)
    for z in range(3):
        torch.testing.assert_close(found[:, z], slices.prior.denoiser(x[:, z], 0.5).mean)
        torch.testing.assert_close(seen[:, z], slices.operator(x[:, z]))
    assert volume.data(x).shape == (2, 3, 1, *size)


@pytest.mark.parametrize("method", ["mmps", "pigdm", "ddrm", "auto"])
def test_other_methods_take_volumes_too(method: str) -> None:
    model, operator = Model(Pixels(), Pixels.spec), per_frame(Downsample(SHAPE, 2), 6)
    found = restore(model, operator(normal(1, *VOLUME).float()), operator, method, noise_std=0.1, samples=1, steps=3)
    assert found.mean.shape == (1, *VOLUME)


def test_the_variance_of_a_volume_is_that_of_its_slices() -> None:
    slices, bare = Prior(Pixels(), SHAPE, SHAPE), Pixels()
    volume = Prior(EachSlice(bare, 3), (3, *SHAPE), SHAPE, bare=bare)
    assert volume.data_var(True) == slices.data_var(True)


def test_scans_of_slices_have_exact_adjoints() -> None:
    scans = [mri_scan((2, 8, 8), coils=2, acceleration=2, centre=0.25), Radon((1, 8, 8), torch.linspace(0, 150, 6))]
    for scan in scans:
        lifted: Any = per_frame(scan, 3)
        x, y = normal(2, *lifted.in_shape), normal(2, *lifted.out_shape, seed=1)
        torch.testing.assert_close((lifted(x) * y).sum(), (x * lifted.adjoint(y)).sum(), rtol=1e-10, atol=1e-10)


def test_what_cannot_be_done_is_said() -> None:
    model = Model(Pixels(), Pixels.spec)
    colour = Model(Pixels(), DataSpec(kind="image", shape=(3, 8, 8), range=(0.0, 1.0)))
    cases: list[tuple[str, Any, Any, dict[str, Any]]] = [
        (r"needs a volume of two or more slices \(Z, C, H, W\)", model, Identity((1, *SHAPE)), {}),
        (r"needs a volume of two or more slices", model, Identity(SHAPE), {}),
        ("needs a linear operator", model, per_frame(JPEG(SHAPE), 6), {}),
        (r"the model's are \(3, 8, 8\).*A volume is its slices, \(Z, 3, 8, 8\)", colour, Identity(VOLUME), {}),
        (r"A volume is its slices, \(Z, 1, 8, 8\)", model, Identity((6, 8, 8)), {}),
        ("needs a volume of two or more slices", colour, Identity((3, 8, 8)), {}),
        (r"makes all of \(6, 1, 8, 8\) at once, so use dds", Pixels(), Identity(VOLUME), {}),
        ("leave tile out", model, Identity(VOLUME), {"tile": 4}),
        ("lam=-1.0 must not be negative", model, Identity(VOLUME), {"options": {"lam": -1.0}}),
        ("rho=0.0 must be positive", model, Identity(VOLUME), {"options": {"rho": 0.0}}),
        ("rounds=0 must be at least 1", model, Identity(VOLUME), {"options": {"rounds": 0}}),
    ]
    for message, prior, operator, more in cases:
        y = torch.zeros(1, *operator.out_shape)
        with pytest.raises(ValueError, match=message):
            restore(prior, y, operator, "diffusion-mbir", steps=2, **more)
    white = GaussianDenoiser(torch.zeros(SHAPE).double(), torch.eye(64).double(), VP)
    bare = restore(EachSlice(white, 6), torch.zeros(VOLUME), Identity(VOLUME), "diffusion-mbir", samples=1, steps=2)
    assert bare.mean.shape == (1, *VOLUME)
