"""Co-PCA against scikit-learn and its invariants; fusion against the identity of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undiffuse.tasks.match.fusion import copca, fuse, join, reduce_pair
from undiffuse.tasks.match.options import MatchOptions


def rows(n: int, channels: int, seed: int, offset: float = 0.0) -> Tensor:
    return torch.randn(n, channels, generator=torch.Generator().manual_seed(seed)) + offset


def test_full_rank_keeps_distances_and_loses_the_joint_mean():
    a, b = rows(30, 12, 0, 1.0), rows(25, 12, 1, 1.0)
    p, q = copca(a, b, 12)
    torch.testing.assert_close(torch.cdist(p, q), torch.cdist(a, b), atol=1e-5, rtol=0)
    assert float(torch.cat([p, q]).mean(0).abs().max()) < 1e-5
    again = copca(p, q, 12)
    torch.testing.assert_close(again[0] @ again[1].T, p @ q.T, atol=1e-4, rtol=0)  # idempotent
    swapped = copca(b, a, 12)
    torch.testing.assert_close(swapped[1] @ swapped[0].T, p @ q.T, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("n", "channels"), [(40, 10), (8, 50)])  # by the covariance, and by the Gram matrix
def test_it_is_the_pca_of_all_rows(n: int, channels: int):
    from sklearn.decomposition import PCA

    a, b = rows(n, channels, 2), rows(n, channels, 3, 0.5)
    ours = torch.cat(copca(a, b, 5))
    theirs = torch.from_numpy(PCA(5, svd_solver="full").fit_transform(torch.cat([a, b]).double().numpy())).float()
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-4, rtol=1e-4)


def test_too_many_dimensions_are_reduced_with_a_warning_and_nan_is_refused():
    with pytest.warns(UserWarning, match="co-PCA to 9 dimensions of 6 rows of 4: 4 it is"):
        assert copca(rows(3, 4, 0), rows(3, 4, 1), 9)[0].shape == (3, 4)
    broken = rows(3, 4, 0)
    broken[1, 2] = torch.nan
    with pytest.raises(ValueError, match="1 of 24 features are not finite"):
        copca(broken, rows(3, 4, 1), 2)


def test_layers_are_reduced_where_they_are_wide_and_joined_from_coarse_to_fine():
    maps = {"fine": torch.randn(3, 4, 4), "coarse": torch.randn(20, 2, 2)}
    a, b = reduce_pair(maps, maps, 5)
    assert a["coarse"].shape == (5, 2, 2)
    assert torch.equal(a["fine"], maps["fine"])
    torch.testing.assert_close(a["coarse"], b["coarse"])
    joined = join(a)
    assert joined.shape == (8, 4, 4)
    assert torch.equal(joined[5:], maps["fine"])
    assert reduce_pair(maps, maps, 0)[0]["coarse"].shape == (20, 2, 2)


def test_the_distance_of_fused_vectors_is_a_weighted_sum_of_cosines():
    maps = [
        [torch.randn(c, 3, 3, generator=torch.Generator().manual_seed(s)) for c, s in ((7, i), (4, i + 9))]
        for i in (0, 1)
    ]
    alpha = 0.3
    a, b = (fuse(pair, [alpha, 1 - alpha]) for pair in maps)
    scale = alpha**2 + (1 - alpha) ** 2
    cosines = [torch.cosine_similarity(x.flatten(1).T, y.flatten(1).T) for x, y in zip(*maps, strict=True)]
    expected = 2 * alpha**2 * (1 - cosines[0]) + 2 * (1 - alpha) ** 2 * (1 - cosines[1])
    torch.testing.assert_close((a - b).square().sum(1) * scale, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.norm(dim=1), torch.ones(9))
    scaled = fuse([17.0 * maps[0][0], 0.01 * maps[0][1]], [alpha, 1 - alpha])
    torch.testing.assert_close(scaled, a)
    for weights, which in (([1.0, 0.0], 0), ([0.0, 1.0], 1)):
        single = [fuse(pair, weights) for pair in maps]
        alone = [fuse([pair[which]], [1.0]) for pair in maps]
        torch.testing.assert_close(single[0] @ single[1].T, alone[0] @ alone[1].T)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": ("difusion",)}, "Did you mean 'diffusion'"),
        ({"features": ("patch", "patch")}, "twice"),
        ({"features": ()}, "empty"),
        ({"method": "nearst"}, "Did you mean 'nearest'"),
        ({"features": ("dino",)}, "needs a network"),
        ({"features": ("patch",), "dino": "x"}, "no use"),
        ({"features": ("patch", "position"), "alpha": 1.5}, r"in \[0, 1\]"),
        ({"features": ("patch", "position"), "alpha": (0.0, 0.0)}, "leaves no feature"),
        ({"features": ("patch",), "alpha": (0.5, 0.5)}, "there is one, patch"),
        ({"features": ("patch", "position", "diffusion"), "alpha": 0.5}, "does not fit 3 features"),
        ({"features": ("patch",), "patch": 4}, "no middle"),
        ({"temperature": 0.0}, "above 0"),
        ({"ratio": 0.0}, r"\(0, 1\]"),
        ({"cells": 1}, "at least 2"),
        ({"draws": 0}, "at least 1"),
        ({"features": ("patch",), "t": 0.3}, "read by the feature diffusion alone"),
        ({"patch": 7}, "read by the feature patch alone"),
        ({"window": 3}, "method='window'"),
    ],
)
def test_options_that_do_not_fit(given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MatchOptions(**given)


def test_weights_of_features():
    assert MatchOptions(features=("patch", "position"), alpha=0.3).weights == pytest.approx((0.3, 0.7))
    assert MatchOptions(features=("patch", "position", "diffusion"), alpha=(1, 1, 0)).weights == (0.5, 0.5, 0.0)
    assert MatchOptions(dino="somewhere").sources == ("diffusion", "dino")
    assert MatchOptions(dino="somewhere").weights == (0.5, 0.5)
