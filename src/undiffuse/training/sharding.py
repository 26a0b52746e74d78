"""Sharded training (FSDP2): each process keeps a slice of every parameter, gradient, moment and average.

All that is done to them between two forward passes is elementwise, so the optimizer and the averages work on the
slices as plain tensors and know nothing of other processes; only the norm of the gradient is summed over them. What
is written is gathered, tensor by tensor, into the form that one process would write.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.training.layout import Layout


class Sharded(Layout):
    """Each process holds a slice of every parameter, along its first axis (FSDP2).

    The network's named blocks are gathered one at a time while they compute; what is outside of them stays gathered
    during a step.

    Args:
        scoring: Module that holds the denoiser as `denoiser`; it is sharded in place.
        device: Where the parameters are.
        is_main: Whether this process shows the average and writes; it alone holds a whole copy of the network.

    Source: Zhao et al. 2023, "PyTorch FSDP: experiences on scaling fully sharded data parallel", arXiv:2304.11277.
    """

    def __init__(self, scoring: nn.Module, device: torch.device, is_main: bool) -> None:
        denoiser: Denoiser = scoring.denoiser  # type: ignore[assignment]
        self.shapes = {name: p.shape for name, p in denoiser.named_parameters()}
        self.device, self.is_main = device, is_main
        average = copy.deepcopy(denoiser)
        self._copy = (average if is_main else average.to("meta")).eval().requires_grad_(False)
        self.mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        for block in _blocks(denoiser):
            fully_shard(block, mesh=self.mesh)
        fully_shard(scoring, mesh=self.mesh)
        self.sharded: dict[str, DTensor] = {n: p for n, p in denoiser.named_parameters() if isinstance(p, DTensor)}
        trained = {name: p for name, p in self.sharded.items() if p.requires_grad}
        self.parameters = {name: nn.Parameter(self.local(p.detach())) for name, p in trained.items()}

    def averages(self, count: int, apart: bool = False) -> list[list[Tensor]]:
        """Return `count` lists of slices, one for each parameter; they are apart from `averaged` in any case."""
        return [[p.detach().clone() for p in self.parameters.values()] for _ in range(count)]

    @torch.no_grad()
    def show(self, average: list[Tensor]) -> None:
        """Gather the first average into `averaged`; all processes take part."""
        shown = dict(self._copy.named_parameters())
        for name, part in zip(self.parameters, average, strict=True):
            whole = self._gather(name, part)
            if self.is_main:
                shown[name].copy_(whole)

    def take_gradients(self) -> None:
        """Bring our slices of the gradients to `parameters`."""
        for name, own in self.parameters.items():
            gradient = self.sharded[name].grad
            own.grad = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            self.sharded[name].grad = None

    def total_norm(self, norm: Tensor) -> Tensor:
        """Return the root of the sum of squares over processes."""
        square = norm.double().square()
        torch.distributed.all_reduce(square)
        return square.sqrt().to(norm.dtype)

    def local(self, tensor: Tensor) -> Tensor:
        """Return our slice of a sharded tensor, any other as it is."""
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor

    def whole(self, name: str, part: Tensor) -> Tensor:
        """Gather a tensor; the result is on the CPU of the main process, and empty elsewhere."""
        gathered = self._gather(name, part)
        return gathered.cpu() if self.is_main else gathered.new_empty(0, device="cpu")

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Cut out our slice."""
        like = self.sharded[name]
        given = whole.to(self.device)
        return distribute_tensor(given, self.mesh, like.placements, src_data_rank=None).to_local()

    def _gather(self, name: str, part: Tensor) -> Tensor:
        like = self.sharded[name]
        stride = like.stride()
        return DTensor.from_local(
            part.detach(), self.mesh, like.placements, run_check=False, shape=like.shape, stride=stride
        ).full_tensor()


def _blocks(denoiser: Denoiser) -> list[nn.Module]:
    """Return the named blocks of a denoiser's network, inner ones before those around them; single layers left out.

    A layer of torch may return a view of its own output, which sharding cannot follow through an operation in place.
    """
    backbone = getattr(denoiser, "backbone", None)
    named = set(map(id, getattr(backbone, "blocks", {}).values()))
    found = [module for module in denoiser.modules() if id(module) in named]
    own = [module for module in reversed(found) if not type(module).__module__.startswith("torch.")]
    return [module for module in own if any(True for _ in module.parameters())]
