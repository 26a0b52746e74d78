from __future__ import annotations

import pytest
import torch

from tests.networks.helpers import generator
from undiffuse.networks.patch import from_patches, to_patches


@pytest.mark.parametrize(("sizes", "patch"), [((12,), 3), ((4, 6), 2), ((4, 6), 1), ((2, 4, 6), 2), ((5, 5), 5)])
def test_back_and_forth_is_exact(sizes, patch):
    x = torch.randn(2, 3, *sizes, generator=generator())
    tokens = to_patches(x, patch)
    assert tokens.shape == (2, x[0, 0].numel() // patch ** len(sizes), 3 * patch ** len(sizes))
    assert torch.equal(from_patches(tokens, patch, sizes), x)


def test_tokens_are_squares_of_neighbours_row_by_row():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert to_patches(x, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
