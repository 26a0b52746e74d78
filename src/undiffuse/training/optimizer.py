"""AdamW and Muon, their learning rate, and one optimizer step that clips and skips without waiting for the device.

Muon replaces the update of a matrix by the nearest orthogonal one, so that all its directions learn alike. It is for
the matrices inside a network; embeddings, the first and last layer, biases, norms and convolutions stay with AdamW.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks",
    https://kellerjordan.github.io/posts/muon/, as in torch.optim.Muon. Unlike there, convolution kernels are not
    flattened into matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from undiffuse.errors import TrainingError
from undiffuse.training.options import TrainOptions

MOMENTUM = "momentum_buffer"  # torch's name of Muon's state
_AT_THE_ENDS = frozenset({"conditioners", "context", "deviation", "embedding", "enter", "leave", "variance"})


def learning_rate(step: int, options: TrainOptions, span: tuple[int, int] | None = None) -> float:
    """Return the rate of optimizer step `step`, counted from 0: linear warm-up, then decay to the share `final_lr`.

    With `decay=plateau` it stays at its peak; see `undiffuse.training.plateau`.

    Args:
        step: At least 0.
        options: Length, warm-up and course.
        span: First step of the course that `step` is part of and the step after its last, where a run has several (see
            `Objective.span`); None: the whole run. The warm-up is that of the run alone.
    """
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    first, end = span or (0, options.steps)
    first = max(first, options.warmup)
    done = (step - first) / max(1, end - first)
    share = {"cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1 - done}.get(options.decay, 1.0)
    return options.lr * (options.final_lr + (1 - options.final_lr) * share)


def make_optimizer(parameters: Iterable[nn.Parameter], options: TrainOptions) -> torch.optim.AdamW:
    """Return fused AdamW."""
    return torch.optim.AdamW(
        parameters, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=True
    )


def hidden_matrices(module: nn.Module) -> set[str]:
    """Return the names of the parameters that Muon is for: weights of linear layers inside the network.

    Not those of the embeddings of conditions, noise level and tokens, nor of the first and last layer.
    """
    inner = {
        f"{path}.weight"
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear) and not _AT_THE_ENDS.intersection(path.split("."))
    }
    return {name for name, p in module.named_parameters() if name in inner and p.requires_grad}


def make_muon(matrices: Mapping[str, nn.Parameter], options: TrainOptions) -> torch.optim.Muon:
    """Return Muon for parameters by name, its momenta zero.

    Raises:
        TrainingError: There is no matrix.
    """
    if not matrices:
        raise TrainingError("train.optimizer=muon, but the network has no hidden linear layer; use adamw.")
    muon = torch.optim.Muon(matrices.values(), lr=options.muon_lr, weight_decay=options.weight_decay)
    for p in matrices.values():  # torch makes them at the first step, which may be one to skip
        muon.state[p][MOMENTUM] = torch.zeros_like(p)
    return muon


class StepReport(NamedTuple):
    """Norm of the gradient before clipping, and whether the step was skipped (1.0) as not finite; 0-dim tensors."""

    grad_norm: Tensor
    bad: Tensor


class ClippedStep:
    """An optimizer step with gradients clipped by their global norm; a non-finite one changes nothing.

    Clipping and skipping ride on the two inputs that the fused kernel has for loss scaling, `grad_scale`
    (gradients are divided by it) and `found_inf` (the update is skipped): no further pass over the
    gradients, and the host never waits for the device to learn whether the step was good.

    Muon has no such inputs: its gradients are scaled, and after a bad step its old tensors are put back.

    Args:
        optimizer: Fused AdamW.
        clip: Largest norm; 0 does not clip.
        total_norm: Makes the norm of all gradients from that of the optimizer's, where others have more of them.
        muon: For parameters that AdamW does not have.
    """

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        clip: float,
        total_norm: Callable[[Tensor], Tensor] = lambda norm: norm,
        muon: torch.optim.Muon | None = None,
    ) -> None:
        self.optimizer, self.clip, self.total_norm, self.muon = optimizer, clip, total_norm, muon
        groups = [*optimizer.param_groups, *(muon.param_groups if muon else ())]
        self.parameters: Sequence[nn.Parameter] = [p for group in groups for p in group["params"]]
        self._muon_share = 0.0 if muon is None else muon.defaults["lr"] / optimizer.defaults["lr"]

    @torch.no_grad()
    def __call__(self, loss: Tensor, rate: float, clips: bool = True) -> StepReport:
        """Update the parameters from their gradients; `loss` is read for finiteness only.

        Gradients are left as they are where `clips` is False.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = self.total_norm(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        bad = (~torch.isfinite(norm + loss)).to(torch.float32)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        clips = clips and self.clip > 0
        scale = (norm / self.clip).clamp(min=1.0).float() if clips else None  # the kernel reads float32 here
        self.optimizer.grad_scale = scale  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.muon is not None:
            self._step_muon(self.muon, rate * self._muon_share, scale, bad)
        return StepReport(norm, bad)

    def _step_muon(self, muon: torch.optim.Muon, rate: float, scale: Tensor | None, bad: Tensor) -> None:
        parameters = [p for group in muon.param_groups for p in group["params"] if p.grad is not None]
        if scale is not None:
            torch._foreach_div_([p.grad for p in parameters if p.grad is not None], scale)
        changed = [p.data for p in parameters] + [muon.state[p][MOMENTUM] for p in parameters]
        before = [tensor.clone() for tensor in changed]
        for group in muon.param_groups:
            group["lr"] = rate
        muon.step()
        for now, old in zip(changed, before, strict=True):
            torch.where(bad.bool(), old, now, out=now)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None
