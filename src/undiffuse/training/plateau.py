"""A learning rate that falls where the loss has stopped falling, instead of by a course laid out beforehand.

Losses of single batches are noisy, so it is means of `plateau_every` steps that are compared. The host reads one such
mean and waits for the device then, and at no other step.
"""

from __future__ import annotations

from math import copysign, inf

import torch
from torch import Tensor

from undiffuse.training.options import TrainOptions


class Plateau:
    """The share of the peak rate that is left: times `plateau_factor` whenever the loss has not improved for long.

    A mean is an improvement where it is below the best one by the share `plateau_threshold`. After more than
    `plateau_patience` steps without one the rate falls, and the count begins again; it never falls below the share
    `final_lr`. The warm-up is not looked at, nor are steps that were skipped as not finite. With `plateau_every=1`
    these are the rates of `torch.optim.lr_scheduler.ReduceLROnPlateau`.

    Args:
        options: Factor, patience, threshold, steps of a mean, warm-up and least share.
        device: Where losses are.

    Attributes:
        share: Factor of the next step's rate, in (0, 1].

    Source: Gu et al. 2021 (VQ-Diffusion), arXiv:2111.14822, in its code; there every single loss is compared.
    """

    def __init__(self, options: TrainOptions, device: torch.device | str = "cpu") -> None:
        self.options = options
        self.best, self.falls, self.waited = inf, 0, 0  # waited: means since the best
        self._counted = 0  # steps of the open mean
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)  # their losses, and how many were finite

    @property
    def share(self) -> float:
        """Share of the peak rate."""
        return max(self.options.plateau_factor**self.falls, self.options.final_lr)

    @torch.no_grad()
    def note(self, step: int, loss: Tensor, bad: Tensor) -> None:
        """Take in the loss of optimizer step `step`, counted from 0, the mean over all processes.

        Args:
            step: Steps of the warm-up are passed over.
            loss: 0-dim.
            bad: 1 where the step was skipped as not finite, else 0; 0-dim.
        """
        if step < self.options.warmup:
            return
        good = bad == 0
        self._sums += torch.stack([torch.where(good, loss, 0.0), good.to(loss.dtype)]).double()
        self._counted += 1
        if self._counted == self.options.plateau_every:
            total, finite = self._sums.tolist()  # waits for the device
            self._counted = 0
            self._sums.zero_()
            self._compare(total / finite if finite else inf)

    def _compare(self, mean: float) -> None:
        better = self.best * (1 - copysign(self.options.plateau_threshold, self.best))
        if mean < better:
            self.best, self.waited = mean, 0
            return
        self.waited += 1
        if self.waited * self.options.plateau_every > self.options.plateau_patience:
            self.falls, self.waited = self.falls + 1, 0

    def state(self) -> dict[str, Tensor]:
        """Return everything as tensors, on the CPU."""
        course = [self.best, self.falls, self.waited, self._counted]
        return {"course": torch.tensor(course, dtype=torch.float64), "open": self._sums.cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a state."""
        best, *counts = state["course"].tolist()
        self.best = best
        self.falls, self.waited, self._counted = map(int, counts)
        self._sums.copy_(state["open"])
