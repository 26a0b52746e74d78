"""What a run must carry from one step to the next, as tensors by name: the content of a checkpoint.

There is no state of random numbers: they are functions of (seed, images seen).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from undiffuse.errors import CheckpointError
from undiffuse.training.ema import PowerEMA
from undiffuse.training.layout import Layout
from undiffuse.training.objectives import Objective, Trained
from undiffuse.training.optimizer import MOMENTUM, hidden_matrices, make_muon, make_optimizer
from undiffuse.training.options import TrainOptions
from undiffuse.training.plateau import Plateau
from undiffuse.training.window import Window

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class TrainingState:
    """Weights, their averages, the optimizer's moments, the objective's buffers, the open log window.

    Args:
        denoiser: What is trained, on its device.
        objective: Its buffers are part of the state.
        options: Optimizer, averaging profiles, and whether the rate goes by the loss.
        layout: How parameters lie over processes; None: this process has them whole.

    Attributes:
        averaged: A copy of the denoiser whose parameters are the first average; `model` makes it ready for use.
        step: Optimizer steps done.
    """

    def __init__(
        self, denoiser: Trained, objective: Objective, options: TrainOptions, layout: Layout | None = None
    ) -> None:
        self.denoiser, self.objective, self.steps = denoiser, objective, options.steps
        self.layout = layout or Layout(denoiser)
        self.named = self.layout.parameters
        self.parameters: Sequence[nn.Parameter] = list(self.named.values())
        matrices = hidden_matrices(denoiser) if options.optimizer == "muon" else set()
        self.optimizer = make_optimizer([p for name, p in self.named.items() if name not in matrices], options)
        self.matrices = {name: p for name, p in self.named.items() if name in matrices}
        self.muon = make_muon(self.matrices, options) if options.optimizer == "muon" else None
        self.averaged = self.layout.averaged()
        copies = self.layout.averages(len(options.ema), apart=options.ema_every > 1)
        self.averages = [
            PowerEMA(tensors, width, options.ema_every) for tensors, width in zip(copies, options.ema, strict=True)
        ]
        device = self.parameters[0].device if self.parameters else "cpu"
        self.plateau = Plateau(options, device) if options.decay == "plateau" else None
        self.window = Window()
        self.step = 0

    @property
    def begun(self) -> int:
        """Steps done when the averages of now began: with the part of the run that the last step was in."""
        return self.objective.span(max(0, self.step - 1), self.steps)[0]

    def average(self) -> None:
        """Count an optimizer step and take its weights into every average."""
        self.step += 1
        for profile in self.averages:
            profile.update(self.parameters, self.step - self.begun)

    @torch.no_grad()
    def model(self) -> Trained:
        """Return the averaged denoiser; its buffers, which have no average, are those of now.

        All processes of a sharded run must ask; it is of use on the main one.
        """
        for own, now in zip(self.averaged.buffers(), self.denoiser.buffers(), strict=True):
            own.copy_(now)
        self.layout.show(self.averages[0].at(self.parameters, self.step - self.begun))
        return self.averaged

    def named_averages(self) -> list[dict[str, Tensor]]:
        """Return the averages by parameter; all processes must ask, the result is for the main one."""
        return [
            {name: self.layout.whole(name, part) for name, part in zip(self.named, now, strict=True)}
            for now in (profile.at(self.parameters, self.step - self.begun) for profile in self.averages)
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Return everything as tensors by name; those of the network are not copied.

        All processes must ask; the result is that of one process, on the main one.
        """
        fixed = {key: self._whole(of, own) for key, own, of in self._fixed()}
        course = {} if self.plateau is None else self.plateau.state()
        kept = {"window": self.window.state(), "plateau": course}
        named = {f"{name}/{key}": tensor for name, state in kept.items() for key, tensor in state.items()}
        return {**fixed, **self._moments(), **named}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take over the tensors of a checkpoint.

        Raises:
            CheckpointError: A tensor is missing or has another shape.
        """
        for key, own, of in self._fixed():
            own.copy_(self._part(tensors, key, of, own.shape))
        for name, p in self.named.items():
            if f"adam/exp_avg/{name}" in tensors:
                kept = {m: self._part(tensors, f"adam/{m}/{name}", None if m == "step" else name) for m in _MOMENTS}
                self.optimizer.state[p] = {m: tensor.to(p.device).clone() for m, tensor in kept.items()}
        if self.muon is not None:
            for name, p in self.matrices.items():
                self.muon.state[p][MOMENTUM].copy_(_find(tensors, f"muon/{name}", p.shape))
        self.window.load({key: tensors[f"window/{key}"] for key in ("steps", "sums")})
        if self.plateau is not None:
            course = self.plateau.state()
            self.plateau.load({key: _find(tensors, f"plateau/{key}", course[key].shape) for key in course})
        self.step = step

    def _fixed(self) -> Iterator[tuple[str, Tensor, str | None]]:
        """Yield name, our part, and the parameter that it is shaped like, where it may be a slice."""
        parameters = dict(self.denoiser.named_parameters())
        for name, tensor in self.denoiser.state_dict().items():
            yield f"model/{name}", self.layout.local(tensor.detach()), name if name in parameters else None
        for name, tensor in self.objective.state_dict().items():
            yield f"objective/{name}", tensor, None
        for number, profile in enumerate(self.averages):
            for name, tensor in zip(self.named, profile.average, strict=True):
                yield f"ema{number}/{name}", tensor, name

    def _moments(self) -> dict[str, Tensor]:
        states = ((name, self.optimizer.state[p]) for name, p in self.named.items() if p in self.optimizer.state)
        adam = {
            f"adam/{moment}/{name}": self._whole(None if moment == "step" else name, state[moment])
            for name, state in states
            for moment in _MOMENTS
        }
        if self.muon is None:
            return adam
        return adam | {f"muon/{name}": self.muon.state[p][MOMENTUM] for name, p in self.matrices.items()}

    def _whole(self, name: str | None, part: Tensor) -> Tensor:
        return part if name is None else self.layout.whole(name, part)

    def _part(self, tensors: dict[str, Tensor], key: str, name: str | None, shape: torch.Size | None = None) -> Tensor:
        if name is None:
            return _find(tensors, key, shape)
        return self.layout.part(name, _find(tensors, key, self.layout.shape(name)))


def _find(tensors: dict[str, Tensor], name: str, shape: torch.Size | None) -> Tensor:
    found = tensors.get(name)
    if found is None or (shape is not None and found.shape != shape):
        has = "missing" if found is None else f"of shape {tuple(found.shape)}"
        raise CheckpointError(
            f"the checkpoint's {name} is {has}, expected {tuple(shape or ())}; it belongs to "
            f"another recipe. Use a new out folder."
        )
    return found
