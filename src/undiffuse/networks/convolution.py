"""Blocks of the U-Net, generic in 1, 2 and 3 spatial dimensions. Spatial axes are written `*`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu

from undiffuse.networks.attention import CrossAttention, Rotary, SelfAttention, in_derivatives
from undiffuse.networks.dropout import Dropout

_CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


def convolution(
    dims: int, inputs: int, outputs: int, *, size: int = 3, stride: int = 1, zero_init: bool = False
) -> nn.Module:
    """Return a convolution with `size` taps per axis; sizes are divided by `stride`, rounded up."""
    layer = _CONVOLUTIONS[dims](inputs, outputs, size, stride=stride, padding=size // 2)
    if zero_init:
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group normalisation with at most 32 groups of 4 channels or more, for any number of channels."""
    groups = next(count for count in range(max(1, min(32, channels // 4)), 0, -1) if channels % count == 0)
    return GroupNorm(groups, channels)


class GroupNorm(nn.GroupNorm):
    """Group normalisation that also has a forward-mode derivative in any memory layout, which torch's kernel lacks."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *) to the same shape."""
        if not in_derivatives():
            return super().forward(x)
        grouped = x.reshape(len(x), self.num_groups, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        scaled = centred * (centred.square().mean(2, keepdim=True) + self.eps).rsqrt()
        weight, bias = (part.view(-1, *[1] * (x.ndim - 2)) for part in (self.weight, self.bias))
        return scaled.reshape(x.shape) * weight + bias


class ResidualBlock(nn.Module):
    """skip(x) + conv(silu(film(conv(silu(x))))), where FiLM scales and shifts by the context, if there is one.

    The last convolution starts at 0, so the block starts as its skip. Source: Dhariwal & Nichol 2021,
    "Diffusion Models Beat GANs", section 3 (adaptive group normalisation), arXiv:2105.05233.
    """

    def __init__(
        self, dims: int, inputs: int, outputs: int, context_dim: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs)
        self.conv1 = convolution(dims, inputs, outputs)
        self.film = nn.Identity() if context_dim is None else nn.Linear(context_dim, 2 * outputs)
        self.norm2 = group_norm(outputs)
        self.dropout = Dropout(dropout)
        self.conv2 = convolution(dims, outputs, outputs, zero_init=True)
        self.skip = nn.Identity() if inputs == outputs else convolution(dims, inputs, outputs, size=1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map `x` (B, C, *) with `context` (B, E) to (B, C', *)."""
        hidden = self.norm2(self.conv1(silu(self.norm1(x))))
        if context is not None:
            film = self.film(context).reshape(context.shape[0], -1, *[1] * (x.ndim - 2))
            scale, shift = film.chunk(2, dim=1)
            hidden = torch.addcmul(shift, hidden, 1.0 + scale)
        return self.skip(x) + self.conv2(self.dropout(silu(hidden)))


class SpatialAttention(nn.Module):
    """Residual self-attention over all positions of (B, C, *); starts as the identity."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = SelfAttention(channels, heads, zero_init=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *) to the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, positions, C)
        return x + self.attention(tokens).transpose(1, 2).reshape(x.shape)


class TemporalAttention(nn.Module):
    """Residual self-attention over frames, at each position by itself; starts as the identity."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.head_dim = channels // heads
        self.norm = group_norm(channels)
        self.attention = SelfAttention(channels, heads, zero_init=True)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """Map (B * frames, C, *), the frames of a clip in a row, to the same shape."""
        tokens = self.norm(x).flatten(2).unflatten(0, (-1, frames))  # (B, F, C, positions)
        batch, _, channels, positions = tokens.shape
        clips = tokens.permute(0, 3, 1, 2).reshape(batch * positions, frames, channels)
        mixed = self.attention(clips, Rotary.make(frames, self.head_dim, like=clips))
        return x + mixed.reshape(batch, positions, frames, channels).permute(0, 2, 3, 1).reshape(x.shape)


class SpatialCrossAttention(nn.Module):
    """Residual attention of all positions of (B, C, *) to the tokens of a condition; starts as the identity."""

    def __init__(self, channels: int, heads: int, token_dim: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = CrossAttention(channels, heads, token_dim)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Map (B, C, *) to the same shape; `tokens` (B, L, E) are read where `mask` (B, L) is True."""
        places = self.norm(x).flatten(2).transpose(1, 2)  # (B, positions, C)
        return x + self.attention(places, tokens, mask).transpose(1, 2).reshape(x.shape)


class UNetBlock(nn.Module):
    """A residual block, followed by spatial attention where `heads` is given, and by attention to the tokens of a
    condition where `cross` gives (heads, features of the tokens).
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        context_dim: int,
        *,
        heads: int | None = None,
        dropout: float = 0.0,
        cross: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(dims, inputs, outputs, context_dim, dropout)
        self.attention = nn.Identity() if heads is None else SpatialAttention(outputs, heads)
        self.cross = None if cross is None else SpatialCrossAttention(outputs, *cross)

    def forward(self, x: Tensor, context: Tensor, tokens: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Map `x` (B, C, *) with `context` (B, E), and `tokens` (B, L, T) with `mask` (B, L), to (B, C', *)."""
        x = self.attention(self.residual(x, context))
        if self.cross is None:
            return x
        assert tokens is not None
        return self.cross(x, tokens, mask)


class Upsample(nn.Module):
    """Change the channels, then repeat pixels up to a given size: cheap, and right for any size, odd ones too."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = convolution(dims, inputs, outputs, size=1)  # before repeating, where it costs 2^dims times less

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """Map (B, C, *) to (B, C', *size)."""
        return interpolate(self.project(x), size=size, mode="nearest")
