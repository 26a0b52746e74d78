"""How the numbers of a network lie over the processes: all of them in each (data parallel), or a share (sharded).

The optimizer and the averages work on what `Layout.parameters` gives; `training.sharding` has the other layout.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap


class Layout:
    """Every process holds everything.

    Args:
        denoiser: What is trained, on its device.

    Attributes:
        parameters: The trained parameters by name, or our slices of them.
    """

    def __init__(self, denoiser: Denoiser | FlowMap) -> None:
        self.shapes = {name: p.shape for name, p in denoiser.named_parameters()}
        self.parameters: dict[str, nn.Parameter] = {n: p for n, p in denoiser.named_parameters() if p.requires_grad}
        self._copy = copy.deepcopy(denoiser).eval().requires_grad_(False)

    def averaged(self) -> Denoiser | FlowMap:
        """Return the copy of the denoiser that shows the average."""
        return self._copy

    def averages(self, count: int, apart: bool = False) -> list[list[Tensor]]:
        """Return `count` lists of tensors, one for each parameter; the first is part of `averaged` unless `apart`."""
        more = [[p.detach().clone() for p in self.parameters.values()] for _ in range(count - (not apart))]
        return more if apart else [self._shown(), *more]

    @torch.no_grad()
    def show(self, average: list[Tensor]) -> None:
        """Bring the first average into `averaged`; where it is a part of it already, there is nothing to do."""
        for shown, part in zip(self._shown(), average, strict=True):
            if shown.data_ptr() != part.data_ptr():
                shown.copy_(part)

    def _shown(self) -> list[Tensor]:
        shown = dict(self._copy.named_parameters())
        return [shown[name].data for name in self.parameters]

    def take_gradients(self) -> None:
        """Bring the gradients of the last backward pass to `parameters`."""

    def total_norm(self, norm: Tensor) -> Tensor:
        """Return the norm of all gradients from that of ours."""
        return norm

    def local(self, tensor: Tensor) -> Tensor:
        """Return our part of a tensor of the denoiser, as a view."""
        return tensor

    def whole(self, name: str, part: Tensor) -> Tensor:
        """Return a tensor of the shape of parameter `name`, from the part of it that each process has."""
        return part

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Return our part of a tensor of the shape of parameter `name`."""
        return whole

    def shape(self, name: str) -> torch.Size:
        """Return the shape of parameter `name`, all of it."""
        return self.shapes[name]
