"""What a run must carry from one step to the next, as tensors by name: the content of a checkpoint.

There is no state of random numbers: they are functions of (seed, images seen).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.errors import CheckpointError
from undiffuse.training.ema import PowerEMA
from undiffuse.training.objectives import Objective
from undiffuse.training.optimizer import make_optimizer
from undiffuse.training.options import TrainOptions
from undiffuse.training.window import Window

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class TrainingState:
    """Weights, their averages, the optimizer's moments, the objective's buffers, the open log window.

    Args:
        denoiser: What is trained, on its device.
        objective: Its buffers are part of the state.
        options: Optimizer and averaging profiles.

    Attributes:
        averaged: A copy of the denoiser whose parameters are the first average; `model` makes it ready for use.
        step: Optimizer steps done.
    """

    def __init__(self, denoiser: Denoiser, objective: Objective, options: TrainOptions) -> None:
        self.denoiser, self.objective = denoiser, objective
        self.named = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
        self.parameters: Sequence[nn.Parameter] = list(self.named.values())
        self.optimizer = make_optimizer(self.parameters, options)
        self.averaged = copy.deepcopy(denoiser).eval().requires_grad_(False)
        first = dict(self.averaged.named_parameters())
        copies = [[first[name].data for name in self.named]]
        copies += [[p.detach().clone() for p in self.parameters] for _ in options.ema[1:]]
        self.averages = [PowerEMA(tensors, width) for tensors, width in zip(copies, options.ema, strict=True)]
        self.window = Window()
        self.step = 0
        self._weights = [p.data for p in self.parameters]

    def average(self) -> None:
        """Count an optimizer step and take its weights into every average."""
        self.step += 1
        for profile in self.averages:
            profile.update(self._weights, self.step)

    @torch.no_grad()
    def model(self) -> Denoiser:
        """Return the averaged denoiser; its buffers, which have no average, are those of now."""
        for own, now in zip(self.averaged.buffers(), self.denoiser.buffers(), strict=True):
            own.copy_(now)
        return self.averaged

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors by name; those of the network are not copied."""
        return {**self._fixed(), **self._moments(), **{f"window/{k}": v for k, v in self.window.state().items()}}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take over the tensors of a checkpoint.

        Raises:
            CheckpointError: A tensor is missing or has another shape.
        """
        for name, own in self._fixed().items():
            own.copy_(_find(tensors, name, own.shape))
        for name, p in self.named.items():
            if f"adam/exp_avg/{name}" in tensors:
                kept = {m: _find(tensors, f"adam/{m}/{name}", None if m == "step" else p.shape) for m in _MOMENTS}
                self.optimizer.state[p] = {m: tensor.to(p.device).clone() for m, tensor in kept.items()}
        self.window.load({key: tensors[f"window/{key}"] for key in ("steps", "sums")})
        self.step = step

    def _fixed(self) -> dict[str, Tensor]:
        fixed = {f"model/{name}": tensor.detach() for name, tensor in self.denoiser.state_dict().items()}
        fixed |= {f"objective/{name}": tensor for name, tensor in self.objective.state_dict().items()}
        for number, profile in enumerate(self.averages):
            fixed |= {f"ema{number}/{name}": t for name, t in zip(self.named, profile.average, strict=True)}
        return fixed

    def _moments(self) -> dict[str, Tensor]:
        states = ((name, self.optimizer.state[p]) for name, p in self.named.items() if p in self.optimizer.state)
        return {f"adam/{moment}/{name}": state[moment] for name, state in states for moment in _MOMENTS}


def _find(tensors: dict[str, Tensor], name: str, shape: torch.Size | None) -> Tensor:
    found = tensors.get(name)
    if found is None or (shape is not None and found.shape != shape):
        has = "missing" if found is None else f"of shape {tuple(found.shape)}"
        raise CheckpointError(
            f"the checkpoint's {name} is {has}, expected {tuple(shape or ())}; it belongs to "
            f"another recipe. Use a new out folder."
        )
    return found
