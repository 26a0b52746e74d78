"""Tokens become maps on the data's axes; what leads them is cut off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from undiffuse.networks.block_maps import block_map, tokens_to_map


@pytest.mark.parametrize(("patch", "leading"), [(1, 0), (1, 1), (2, 0), (2, 5), (4, 1)])
def test_leading_tokens_are_cut_off_and_rows_come_first(patch: int, leading: int):
    grid = torch.arange(8 // patch * (12 // patch), dtype=torch.float32)
    tokens = torch.cat([torch.full((leading,), -1.0), grid])[None, :, None].repeat(2, 1, 3)
    found = tokens_to_map(tokens, (8, 12))
    assert found.shape == (2, 3, 8 // patch, 12 // patch)
    assert torch.equal(found[1, 2].flatten(), grid)


def test_a_text_longer_than_the_picture_is_not_taken_for_it():
    picture = torch.arange(16.0)
    tokens = torch.cat([torch.full((80,), -1.0), picture])[None, :, None]
    network = nn.Identity()
    network.patch = 2  # type: ignore[assignment]
    found = block_map(network, "single0", tokens, 1, (8, 8))
    assert torch.equal(found[0, 0].flatten(), picture)


def test_frames_of_a_clip_become_an_axis():
    value = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 4, 4)  # 2 clips of 3 frames
    found = block_map(nn.Identity(), "mid", value, 2, (4, 4))
    assert found.shape == (2, 2, 3, 4, 4)
    assert found[1, 0, :, 0, 0].tolist() == [3.0, 4.0, 5.0]
    with pytest.raises(ValueError, match="6 rows for 4 items"):
        block_map(nn.Identity(), "mid", value, 4, (4, 4))
