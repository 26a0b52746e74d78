r"""An adversary of reconstructions: a network that tells patches of data from patches of reconstructions.

With D(x) a map of scores, the adversary minimises mean(max(0, 1 - D(x)) + max(0, 1 + D(x_rec))) / 2, and the codec adds
-mean D(x_rec) to its loss.

Source: Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks", section 3.2.2 (patches),
    arXiv:1611.07004; Lim & Ye 2017, "Geometric GAN" (hinge), arXiv:1705.02894; Esser et al. 2021, arXiv:2012.09841.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from undiffuse.distillation.own_adam import OwnAdam
from undiffuse.networks.convolution import convolution, group_norm

_LEVELS = 3  # halvings: a score sees patches of 22 pixels
_WIDEST = 4
_SLOPE = 0.2


def make_adversary(dims: int, channels: int, seed: int) -> Adversary:
    """Return an adversary whose first weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return Adversary(dims, channels)


class Adversary(nn.Module):
    """A patch discriminator with an optimizer of its own, whose state is saved with a run.

    Args:
        dims: Spatial dimensions of the data.
        channels: Channels of the data.
        width: Channels of the first layer.
        lr: Learning rate.
    """

    def __init__(self, dims: int, channels: int, *, width: int = 32, lr: float = 2e-4) -> None:
        super().__init__()
        widths = [width * min(2**level, _WIDEST) for level in range(_LEVELS)]
        layers: list[nn.Module] = [convolution(dims, channels, widths[0], stride=2), nn.LeakyReLU(_SLOPE)]
        for fine, coarse in pairwise(widths):
            layers += [convolution(dims, fine, coarse, stride=2), group_norm(coarse), nn.LeakyReLU(_SLOPE)]
        self.network = nn.Sequential(*layers, convolution(dims, widths[-1], 1)).requires_grad_(False)
        self.adam = OwnAdam(list(self.network.parameters()), lr, betas=(0.5, 0.9))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the codec adds to its loss for reconstructions (N, C, *): -mean D, (N,)."""
        return -self.network(x).flatten(1).mean(1)

    def learn(self, x: Tensor, made: Tensor) -> None:
        """Make one step on data and their reconstructions, both (N, C, *), which get no gradient."""
        parameters = list(self.network.parameters())
        with torch.enable_grad():
            self.network.requires_grad_(True)
            real, false = self.network(x.detach()), self.network(made.detach())
            loss = 0.5 * (relu(1.0 - real).mean() + relu(1.0 + false).mean())
            gradients = torch.autograd.grad(loss, parameters)
            self.network.requires_grad_(False)
        self.adam.update(parameters, gradients)
