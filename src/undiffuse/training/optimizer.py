"""AdamW, its learning rate, and one optimizer step that clips and skips without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from undiffuse.training.options import TrainOptions


def learning_rate(step: int, options: TrainOptions) -> float:
    """Return the rate of optimizer step `step`, counted from 0: linear warm-up, then decay to the share `final_lr`."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    share = {"cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1 - done, "constant": 1.0}[options.decay]
    return options.lr * (options.final_lr + (1 - options.final_lr) * share)


def make_optimizer(parameters: Iterable[nn.Parameter], options: TrainOptions) -> torch.optim.AdamW:
    """Return fused AdamW."""
    return torch.optim.AdamW(
        parameters, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=True
    )


class StepReport(NamedTuple):
    """Norm of the gradient before clipping, and whether the step was skipped (1.0) as not finite; 0-dim tensors."""

    grad_norm: Tensor
    bad: Tensor


class ClippedStep:
    """An optimizer step with gradients clipped by their global norm; a non-finite one changes nothing.

    Clipping and skipping ride on the two inputs that the fused kernel has for loss scaling, `grad_scale`
    (gradients are divided by it) and `found_inf` (the update is skipped): no further pass over the
    gradients, and the host never waits for the device to learn whether the step was good.

    Args:
        optimizer: Fused AdamW.
        clip: Largest norm; 0 does not clip.
    """

    def __init__(self, optimizer: torch.optim.AdamW, clip: float) -> None:
        self.optimizer, self.clip = optimizer, clip
        self.parameters: Sequence[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def __call__(self, loss: Tensor, rate: float) -> StepReport:
        """Update the parameters from their gradients; `loss` is read for finiteness only."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        bad = (~torch.isfinite(norm + loss)).to(torch.float32)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.grad_scale = (norm / self.clip).clamp(min=1.0) if self.clip else None  # type: ignore[attr-defined]
        self.optimizer.step()
        return StepReport(norm, bad)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)
