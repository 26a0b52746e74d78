from __future__ import annotations

import pytest
import torch

from tests.networks.helpers import generator
from undiffuse.networks.embeddings import ContextMLP, fourier_features


@pytest.mark.parametrize("shape", [(5,), (2, 3)])
def test_features_have_unit_mean_square_and_the_asked_shape(shape):
    features = fourier_features(torch.randn(shape, generator=generator()), 32)
    assert features.shape == (*shape, 32)
    torch.testing.assert_close(features.square().mean(-1), torch.ones(shape))  # cos^2 + sin^2 = 1


def test_features_tell_near_and_far_levels_apart():
    level = torch.linspace(-3, 3, 601, dtype=torch.float64)
    features = fourier_features(level, 64)
    distance = torch.cdist(features, features)
    apart = distance + 1e9 * torch.eye(601, dtype=torch.float64)
    # sqrt(2 sum (w d)^2) >= w_max d sqrt(2) = 0.22 to first order at d = 0.01.
    assert apart.min() > 0.2


def test_features_of_half_precision_levels_are_computed_in_float32():
    level = torch.tensor([0.5, 1.5], dtype=torch.bfloat16)
    assert torch.equal(fourier_features(level, 16), fourier_features(level.float(), 16))


def test_context_of_equal_levels_per_element_is_that_of_the_shared_level():
    context = ContextMLP(8)
    level, vector = torch.tensor([0.3, -1.0]), torch.randn(2, 8, generator=generator())
    per_element = context(level[:, None].expand(2, 5), vector)
    torch.testing.assert_close(per_element, context(level, vector)[:, None].expand(2, 5, 8))


def test_time_free_context_reads_the_condition_alone():
    context = ContextMLP(8, time_dependent=False)
    vector = torch.randn(2, 8, generator=generator())
    assert context(None, vector).shape == (2, 8)
    assert not torch.equal(context(None, vector)[0], context(None, vector)[1])
