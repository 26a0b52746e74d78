"""Adam for networks that an objective trains itself, its state in buffers, so that it is saved with a run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_TINY = 1e-8


class OwnAdam(nn.Module):
    """Adam on a fixed list of parameters. A step whose gradient is not finite changes nothing.

    Where several processes train, each has the gradient of its rows, and all step along the mean.

    Args:
        parameters: What will be updated; read for its size.
        lr: Learning rate.
        betas: Decays of the two moments.

    Source: Kingma and Ba 2015, "Adam: a method for stochastic optimization", arXiv:1412.6980, algorithm 1.
    """

    first: Tensor
    second: Tensor
    count: Tensor

    def __init__(self, parameters: Sequence[Tensor], lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__()
        self.lr, self.betas = lr, betas
        size = sum(p.numel() for p in parameters)
        self.register_buffer("first", torch.zeros(size))
        self.register_buffer("second", torch.zeros(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Step against `gradients`, which belong to `parameters` one by one."""
        gradient = _average(torch.cat([g.flatten() for g in gradients]))
        good = torch.isfinite(gradient).all()
        gradient = torch.where(good, gradient, 0.0)
        low, high = self.betas
        self.first.copy_(torch.where(good, low * self.first + (1 - low) * gradient, self.first))
        self.second.copy_(torch.where(good, high * self.second + (1 - high) * gradient.square(), self.second))
        self.count += good
        age = self.count.double().clamp(min=1)
        mean, square = (m / (1 - b**age).to(m.dtype) for m, b in ((self.first, low), (self.second, high)))
        change = torch.where(good, self.lr * mean / (square.sqrt() + _TINY), 0.0)
        for p, part in zip(parameters, change.split([p.numel() for p in parameters]), strict=True):
            p.sub_(part.view_as(p))


def _average(gradient: Tensor) -> Tensor:
    """Return the mean over all processes."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return gradient
    group.all_reduce(gradient)
    return gradient / group.get_world_size()
