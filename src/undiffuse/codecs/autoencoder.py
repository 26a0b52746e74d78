r"""A convolutional autoencoder with a Gaussian code.

It is trained on |x - decode(z)|^2 / 2 + kl * KL(q(z | x) || N(0, 1)), z drawn from q, both per value of the data;
afterwards an item's code is the mean of q. Without an adversarial or perceptual loss: small details are blurred.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from undiffuse.codecs.codec import SPATIAL_AXES, Codec
from undiffuse.codecs.options import WIDEST, AutoencoderOptions, VQOptions
from undiffuse.networks.convolution import ResidualBlock, SpatialAttention, Upsample, convolution, group_norm
from undiffuse.spec import DataSpec


class Reconstruction(NamedTuple):
    """Decoded items (N, C, *), and the divergence of each one's code (N,), in nats."""

    x: Tensor
    divergence: Tensor


class Autoencoder(Codec):
    """Residual encoder and decoder, generic in 1, 2 and 3 dimensions.

    Args:
        data: Signals, images, volumes or video.
        options: Widths and sizes, and attention at the coarsest size.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", arXiv:1312.6114; Rombach et al. 2022,
        "High-Resolution Image Synthesis with Latent Diffusion Models", section 3.1, arXiv:2112.10752.
    """

    def __init__(self, data: DataSpec, options: AutoencoderOptions) -> None:
        super().__init__(data, options, channels=options.channels, factor=2**options.halvings)
        self.encoder, self.decoder = coding_sides(data, options, 2 * options.channels)

    def code(self, x: Tensor) -> Tensor:
        """Return the mean of q(z | x)."""
        return self.encoder(x).chunk(2, dim=1)[0]

    def render(self, code: Tensor) -> Tensor:
        """Decode."""
        return self.decoder(code)

    def reconstruct(self, x: Tensor, noise: Tensor) -> Reconstruction:
        """Return decode(mean + std * noise) and the divergence of the code, for items or frames (N, C, *).

        Args:
            x: Items in model units.
            noise: Standard normal, (N, c, *) like the code.
        """
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        log_var = log_var.clamp(-20.0, 10.0)  # e^10 already drowns any code; beyond it gradients overflow
        drawn = mean + torch.exp(0.5 * log_var) * noise
        divergence = 0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).flatten(1).sum(1)
        return Reconstruction(self.decoder(drawn), divergence)


def coding_sides(data: DataSpec, options: AutoencoderOptions | VQOptions, leaving: int) -> tuple[Side, Side]:
    """Return an encoder from the channels of `data` to `leaving` ones, and a decoder from `options.channels` ones."""
    dims, count = SPATIAL_AXES[data.kind], options.blocks
    widths = [options.width * min(2**level, WIDEST) for level in range(options.halvings + 1)]
    attention = [0] * options.halvings + [options.attention]  # heads, at the coarsest size alone
    sizes = list(zip(widths, attention, strict=True))
    encoder = Side(
        convolution(dims, data.channels, widths[0]),
        [convolution(dims, fine, coarse, stride=2) for fine, coarse in pairwise(widths)],
        [_blocks(dims, width, heads, count) for width, heads in sizes],
        convolution(dims, widths[-1], leaving),
    )
    decoder = Side(
        convolution(dims, options.channels, widths[-1]),
        [_Double(dims, coarse, fine) for coarse, fine in pairwise(reversed(widths))],
        [_blocks(dims, width, heads, count) for width, heads in reversed(sizes)],
        convolution(dims, widths[0], data.channels),
    )
    return encoder, decoder


class Side(nn.Module):
    """Encoder or decoder: enter, then residual blocks at each size with a change of size between them, then leave."""

    def __init__(
        self, enter: nn.Module, resize: list[nn.Module], blocks: list[nn.Sequential], leave: nn.Module
    ) -> None:
        super().__init__()
        self.enter, self.leave = enter, leave
        self.resize, self.blocks = nn.ModuleList(resize), nn.ModuleList(blocks)
        self.norm = group_norm(leave.in_channels)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.enter(x))
        for resize, blocks in zip(self.resize, list(self.blocks)[1:], strict=True):
            x = blocks(resize(x))
        return self.leave(silu(self.norm(x)))


class _Double(nn.Module):
    """Doubles every spatial axis."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.enlarge = Upsample(dims, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.enlarge(x, torch.Size(2 * size for size in x.shape[2:]))


def _blocks(dims: int, width: int, heads: int, count: int) -> nn.Sequential:
    """Return the residual blocks of one size, with attention over all places behind each where there are `heads`."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers.append(ResidualBlock(dims, width, width))
        layers += [SpatialAttention(width, heads)] if heads else []
    return nn.Sequential(*layers)
