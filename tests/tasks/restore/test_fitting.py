"""Latent models on pictures of other sizes: what tiles and frames of latents must agree with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from tests.oracles.continuous import process_of
from undiffuse.codecs.options import PCAOptions
from undiffuse.codecs.pca import PatchPCA
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.operators.blur import gaussian_blur
from undiffuse.operators.diagonal import Mask
from undiffuse.operators.separable import Downsample
from undiffuse.spec import DataSpec
from undiffuse.tasks.restore.run import restore

VP = process_of("vp")
OPTIONS: dict[str, Any] = {"noise_std": 0.1, "samples": 2, "steps": 4, "seed": 3, "clip": (-9.0, 9.0)}


class Whitened(Denoiser):
    """Independent latents N(0, v_c) of any size, v of each channel: exact, and each place says nothing of others."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec, self.process = spec, VP
        self.variances = torch.tensor([1.0, 0.5, 0.2, 0.1]).view(4, 1, 1)

    def posterior(self, x: Tensor, t: Any, cond: Any) -> Posterior:
        alpha, sigma = self.process.coefficients(t, x)
        return Posterior(alpha * self.variances * x / (alpha**2 * self.variances + sigma**2))


def latent_model(height: int, width: int) -> Model:
    """Return a prior of pictures of this size; the codec turns patches of 2 x 2 by a fixed orthogonal matrix."""
    spec = DataSpec(kind="image", shape=(1, height, width), range=(0.0, 1.0))
    codec = PatchPCA(spec, PCAOptions(patch=2), channels=4)
    codec.basis.copy_(torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0])
    codec.center.fill_(0.1)
    return Model(Whitened(codec.latent), spec, codec=codec.eval().requires_grad_(False))


def pictures(count: int, *shape: int) -> Tensor:
    return (0.2 + 0.5 * KeyedNoise(3, range(count)).normal("data", 0, shape)).clamp(-1, 1)


@pytest.mark.parametrize("method", ["dps", "psld", "resample"])
def test_tiles_of_latents_answer_as_a_model_of_the_whole(method: str) -> None:
    """Latents at different places are independent, so tiles know all that a model of the large picture knows."""
    shape = (1, 12, 22)
    operator = Downsample(shape, 2)
    y = operator(pictures(2, *shape))
    options = {**OPTIONS, "options": {"every": 2, "descents": 3} if method == "resample" else {}}
    wanted = restore(latent_model(12, 22), y, operator, method, **options)
    small = latent_model(8, 8)
    tiled = restore(small, y, operator, method, **options)
    torch.testing.assert_close(tiled.samples, wanted.samples, atol=2e-4, rtol=0)
    torch.testing.assert_close(tiled.residual_rms, wanted.residual_rms, atol=2e-4, rtol=0)
    assert tiled.nfe == wanted.nfe * 2 * 4  # tiles of 4 latents that share 1: 6 x 11 latents want 2 x 4 of them
    if method == "dps":
        for asked in ({"tile": 0}, {"tile": 6, "overlap": 3}, {"tile": 2}):
            other = restore(small, y, operator, method, **asked, **options)
            torch.testing.assert_close(other.samples, wanted.samples, atol=2e-4, rtol=0)


def test_a_size_that_is_no_whole_number_of_latents_is_a_part_of_one_that_is() -> None:
    """13 x 9 pixels are seen as the upper left of 14 x 10, of which the rest is not known."""
    shape = (1, 13, 9)
    mask = (torch.arange(13 * 9).reshape(shape) % 3 > 0).float()
    y = Mask(shape, mask)(pictures(2, *shape))
    whole = Mask((1, 14, 10), pad(mask, (0, 1, 0, 1)))
    wanted = restore(latent_model(14, 10), pad(y, (0, 1, 0, 1)), whole, "dps", **OPTIONS)
    found = restore(latent_model(8, 8), y, Mask(shape, mask), "dps", **OPTIONS)
    assert found.samples.shape == (2, 2, *shape)
    torch.testing.assert_close(found.samples, wanted.samples[..., :13, :9], atol=2e-4, rtol=0)
    torch.testing.assert_close(found.residual_rms, wanted.residual_rms, atol=2e-4, rtol=0)


def test_small_pictures_are_the_middle_of_decoded_ones() -> None:
    shape, around = (1, 5, 6), (1, 1, 1, 2)  # in 8 x 8: a column on either side, a row above and two below
    operator = Mask(shape, (torch.arange(30).reshape(shape) % 2).float())
    x = pictures(2, *shape)
    start: dict[str, Any] = {**OPTIONS, "start": 0.4}
    wanted = restore(
        latent_model(8, 8),
        pad(operator(x), around),
        Mask((1, 8, 8), pad(operator.mask.reshape(shape), around)),
        "dps",
        x_init=pad(0.5 * x, around),
        **start,
    )
    found = restore(latent_model(8, 8), operator(x), operator, "dps", x_init=0.5 * x, **start)
    torch.testing.assert_close(found.samples, wanted.samples[..., 1:6, 1:7], atol=1e-5, rtol=0)
    blurred = gaussian_blur(shape, sigma=0.5)  # no mask: seen through a crop
    result = restore(latent_model(8, 8), blurred(x), blurred, "dps", **{**OPTIONS, "noise_std": 0.02, "steps": 40})
    drawn = restore(latent_model(8, 8), blurred(x), blurred, "dps", **OPTIONS, options={"scale": 0.0})
    assert result.mean.shape == (2, *shape)
    assert result.residual_rms.mean() < 0.5 * drawn.residual_rms.mean()


def test_what_latents_cannot_do_is_said() -> None:
    shape = (1, 12, 12)
    operator, model = Mask(shape, torch.ones(shape)), latent_model(8, 8)
    y = pictures(1, *shape)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("tile=5 must be a multiple of 2", {"tile": 5}),
        ("overlap=7 must be at most 6: tiles of 8 pixels in latents of 2", {"overlap": 7}),
        (r"x_init has shape \(1, 1, 8, 8\); expected items.*\(1, 12, 12\)", {"x_init": y[..., :8, :8], "start": 0.5}),
        ("x_init has shape .*expected one or 1 items", {"x_init": y.expand(3, -1, -1, -1)}),
    ]
    for said, given in cases:
        with pytest.raises(ValueError, match=said):
            restore(model, y, operator, "dps", **{**OPTIONS, **given})
    volume = Mask((3, 1, 8, 8), torch.ones(3, 1, 8, 8))
    with pytest.raises(ValueError, match="not volumes; give the slices as the batch"):
        restore(model, torch.zeros(1, 3, 1, 8, 8), volume, "dps", **OPTIONS)
