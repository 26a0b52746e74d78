from __future__ import annotations

import pytest
import torch

from tests.networks.helpers import generator, randomise
from undiffuse.networks.attention import Rotary
from undiffuse.networks.convolution import SpatialAttention, TemporalAttention, Upsample, convolution, group_norm


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator())


@pytest.mark.parametrize("channels", [1, 2, 3, 10, 48, 64, 96, 256, 7])
def test_groups_divide_any_number_of_channels(channels):
    norm = group_norm(channels)
    assert channels % norm.num_groups == 0 and norm.num_groups <= 32
    assert channels < 8 or channels // norm.num_groups >= 4


@pytest.mark.parametrize("size", [(7,), (5, 8), (1, 2, 3)])
def test_halving_rounds_up_and_upsampling_returns_to_the_size(size):
    x = draw(2, 4, *size)
    half = convolution(len(size), 4, 4, stride=2)(x)
    assert half.shape[2:] == tuple((n + 1) // 2 for n in size)
    assert Upsample(len(size), 4, 3)(half, x.shape[2:]).shape == (2, 3, *size)


@pytest.mark.parametrize("block", [SpatialAttention(8, 2), TemporalAttention(8, 2)])
def test_attention_blocks_start_as_the_identity(block):
    x = draw(6, 8, 3, 4)
    assert torch.equal(block(x, 3) if isinstance(block, TemporalAttention) else block(x), x)


def test_spatial_attention_treats_positions_as_tokens():
    block, x = randomise(SpatialAttention(8, 2)), draw(2, 8, 3, 4)
    normed = block.norm(x)
    tokens = torch.stack([normed[:, :, row, column] for row in range(3) for column in range(4)], dim=1)
    mixed = block.attention(tokens)
    for row in range(3):
        for column in range(4):
            torch.testing.assert_close(block(x)[:, :, row, column], (x[:, :, row, column] + mixed[:, 4 * row + column]))


def test_temporal_attention_treats_frames_as_tokens_at_each_position():
    block, x = randomise(TemporalAttention(8, 2)), draw(6, 8, 3, 4)  # two clips of three frames
    normed, out = block.norm(x), block(x, 3)
    for clip in range(2):
        frames = slice(3 * clip, 3 * clip + 3)
        for row in range(3):
            for column in range(4):
                tokens = normed[frames, :, row, column][None]
                mixed = block.attention(tokens, Rotary.make(3, 4, like=x))[0]
                torch.testing.assert_close(out[frames, :, row, column], x[frames, :, row, column] + mixed)
