"""A prior of one channel asked about several: the product of their laws, whatever the time, the labels or the scan."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.guidance.helpers import times_of_every_shape
from tests.oracles.continuous import process_of
from undiffuse.denoisers.each_channel import EachChannel
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.operators.mri import mri_scan
from undiffuse.spec import DataSpec
from undiffuse.tasks.restore.run import restore

VP = process_of("vp")
SPEC = DataSpec(kind="image", shape=(1, 3, 4), range=(0.0, 1.0))


def normals(*shape: int, seed: int = 0) -> Tensor:
    return KeyedNoise(seed, range(shape[0])).normal("data", 0, tuple(shape[1:]), torch.float64)


def grey() -> tuple[GaussianDenoiser, Tensor, Tensor]:
    root = normals(12, 12, seed=1) / 3
    mean, cov = normals(1, 1, 3, 4, seed=2)[0], root @ root.T + 0.1 * torch.eye(12).double()
    return GaussianDenoiser(mean, cov, VP, spec=SPEC), mean, cov


def test_channels_have_independent_laws() -> None:
    one, mean, cov = grey()
    both = EachChannel(one, 2)
    exact = GaussianDenoiser(mean.expand(2, 3, 4), torch.block_diag(cov, cov), VP)
    x = normals(3, 2, 3, 4, seed=3)
    for t in times_of_every_shape(0.4, 3)[:3]:
        torch.testing.assert_close(both(x, t).mean, exact(x, t).mean)
    assert both.spec is not None and both.spec.shape == (2, 3, 4)


def test_labels_are_those_of_the_picture() -> None:
    means = torch.stack([torch.full((1, 3, 4), -1.0), torch.full((1, 3, 4), 1.0)]).double()
    one = MixtureDenoiser(torch.ones(2), means, torch.tensor([0.1, 0.1]), VP, labels=torch.tensor([0, 1]))
    both = EachChannel(one, 3)
    label = {"label": torch.tensor([1, 0])}
    found = both(torch.zeros(2, 3, 3, 4).double(), 0.9, both.embed(label, 2)).mean
    assert bool((found[0] > 0.5).all()) and bool((found[1] < -0.5).all())


def test_real_priors_restore_complex_scans() -> None:
    """Two passes: what a prior on both parts answers, draw for draw."""
    one, mean, cov = grey()
    exact = GaussianDenoiser(mean.expand(2, 3, 4), torch.block_diag(cov, cov), VP)
    scan = mri_scan((2, 3, 4), pattern="gaussian2d", acceleration=2, coils=2)
    y, spec = scan(normals(2, 2, 3, 4, seed=4)), DataSpec(kind="image", shape=(2, 3, 4), range=(0.0, 1.0))
    options = {"noise_std": 0.1, "samples": 2, "steps": 4, "dtype": torch.float64, "clip": (-99.0, 99.0)}
    ours = restore(Model(EachChannel(one, 2), spec), y, scan, "dds", **options)
    torch.testing.assert_close(ours.samples, restore(exact, y, scan, "dds", **options).samples)


def test_what_has_other_channels_is_refused() -> None:
    one, _, _ = grey()
    with pytest.raises(ValueError, match="channels=0"):
        EachChannel(one, 0)
    with pytest.raises(ValueError, match="give 1 or more, and a prior of one channel"):
        EachChannel(EachChannel(one, 2), 2)
