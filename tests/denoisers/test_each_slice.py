"""A prior of pictures asked about the slices of a volume: the product of their laws, however it is cut up."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.denoisers.test_each_channel import VP, normals
from tests.guidance.helpers import times_of_every_shape
from undiffuse.denoisers.each_channel import EachChannel
from undiffuse.denoisers.each_slice import EachSlice
from undiffuse.denoisers.mixture import GaussianDenoiser, MixtureDenoiser
from undiffuse.spec import DataSpec

SPEC = DataSpec(kind="image", shape=(2, 2, 3), range=(0.0, 1.0))


def colour() -> tuple[GaussianDenoiser, Tensor, Tensor]:
    root = normals(12, 12, seed=1) / 3
    mean, cov = normals(1, 2, 2, 3, seed=2)[0], root @ root.T + 0.1 * torch.eye(12).double()
    return GaussianDenoiser(mean, cov, VP, spec=SPEC), mean, cov


@pytest.mark.parametrize("batch", [64, 4])
def test_slices_have_independent_laws(batch: int) -> None:
    one, mean, cov = colour()
    volume = EachSlice(one, 3, batch)
    exact = GaussianDenoiser(mean.expand(3, 2, 2, 3), torch.block_diag(cov, cov, cov), VP)
    x = normals(3, 3, 2, 2, 3, seed=3)
    for t in times_of_every_shape(0.4, 3)[:3]:
        torch.testing.assert_close(volume(x, t).mean, exact(x, t).mean)
    assert volume.spec is not None and (volume.spec.kind, volume.spec.shape) == ("video", (3, 2, 2, 3))


def test_every_slice_may_have_its_own_time() -> None:
    one, _, _ = colour()
    x, own = normals(2, 3, 2, 2, 3, seed=3), torch.tensor([[0.1, 0.5, 0.9], [0.7, 0.3, 0.2]]).double()
    for t in (own, own[:1]):
        found = EachSlice(one, 3, 4)(x, t).mean
        wanted = torch.stack([one(x[:, z], t.expand(2, 3)[:, z]).mean for z in range(3)], 1)
        torch.testing.assert_close(found, wanted)
    grey = EachChannel(GaussianDenoiser(torch.zeros(1, 4).double(), torch.eye(4).double(), VP), 3)
    x = normals(2, 3, 4)
    wanted = torch.stack([grey(x, float(own[0, c])).mean[:, c] for c in range(3)], 1)
    torch.testing.assert_close(grey(x, own[:1]).mean, wanted)


@pytest.mark.parametrize("batch", [64, 4])
def test_labels_are_those_of_the_volume(batch: int) -> None:
    means = torch.stack([torch.full((1, 3, 4), -1.0), torch.full((1, 3, 4), 1.0)]).double()
    one = MixtureDenoiser(torch.ones(2), means, torch.tensor([0.1, 0.1]), VP, labels=torch.tensor([0, 1]))
    volume = EachSlice(one, 3, batch)
    label = {"label": torch.tensor([1, 0])}
    found = volume(torch.zeros(2, 3, 1, 3, 4).double(), 0.9, volume.embed(label, 2)).mean
    assert bool((found[0] > 0.5).all()) and bool((found[1] < -0.5).all())


def test_what_has_no_slices_is_refused() -> None:
    one, _, _ = colour()
    with pytest.raises(ValueError, match="slices=0 and batch=64 must be at least 1"):
        EachSlice(one, 0)
    with pytest.raises(ValueError, match="slices are pictures; this model's data are of kind 'video'"):
        EachSlice(EachSlice(one, 2), 2)
