r"""Denoising errors of pairs (item, candidate), at one time after the other, all with the same noise.

The noise of a time is keyed by (seed, number of the time) alone. So it is shared by candidates, items and rounds, and
differences between candidates have far less variance than the errors themselves: that is the whole trick.

Gaussian processes: the mean loss of the error in the target's form, from one answer at x_t = alpha x_0 + sigma eps.
Categorical ones: draw i of the evidence bound, nats per token, with the same masks (or replacements) for all.

Sources: Li et al. 2023, "Your diffusion model is secretly a zero-shot classifier", arXiv:2303.16203, eq. 6 and 7;
    of the bound of tokens see `undiffuse.denoisers.elbo`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.elbo import level_times, mask_by_count, step_kl, token_nll
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.tasks.classify.candidates import PairConditions
from undiffuse.tasks.classify.options import ErrorOptions
from undiffuse.tasks.classify.times import TimeGrid

_LEVELS = 1000  # of the bound of processes that are not absorbing, as `token_bounds` has them


class Measure(ABC):
    """What can be asked for the error of any pair at any time of its grid.

    Args:
        denoiser: Asked.
        x: States (B, *).
        conditions: Of the pairs.
        options: Seed and, of continuous data, loss, target and antithetic noise.

    Attributes:
        grid: The times.
        target, loss: As in `ErrorTable`.
    """

    grid: TimeGrid
    target: str
    loss: str

    def __init__(self, denoiser: Denoiser, x: Tensor, conditions: PairConditions, options: ErrorOptions) -> None:
        self.denoiser, self.x, self.conditions, self.options = denoiser, x, conditions, options

    @property
    def dims(self) -> int:
        """Elements of an item."""
        return math.prod(self.x.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """Of the errors: float64 where the states are, else float32."""
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    @abstractmethod
    def calls(self, time: int) -> int:
        """Network evaluations that the error of one pair costs at a time of the grid."""

    @torch.no_grad()
    def errors(self, time: int, items: Tensor, candidates: Tensor) -> Tensor:
        """Return the errors of a batch of pairs, int64 (R,) each, at a time of the grid: (R,)."""
        return self._errors(time, items, candidates).to(self.dtype)

    @abstractmethod
    def _errors(self, time: int, items: Tensor, candidates: Tensor) -> Tensor:
        """Errors of one batch of pairs."""

    def _noise(self) -> KeyedNoise:
        return KeyedNoise(self.options.seed, [0], self.x.device)


class GaussianMeasure(Measure):
    """Errors of continuous data; see the module."""

    def __init__(
        self, denoiser: Denoiser, x: Tensor, conditions: PairConditions, options: ErrorOptions, grid: TimeGrid
    ) -> None:
        super().__init__(denoiser, x, conditions, options)
        self.grid, self.target, self.loss = grid, options.target, options.loss
        self.process = cast(GaussianProcess, denoiser.process)
        self.times = grid.times.tolist()
        self.scales = grid.forms[options.target].tolist()
        denoiser.prefetch(self.times)

    def calls(self, time: int) -> int:
        """Of the denoiser, twice with antithetic noise."""
        return self.denoiser.calls(self.times[time]) * (2 if self.options.antithetic else 1)

    def _errors(self, time: int, items: Tensor, candidates: Tensor) -> Tensor:
        eps = self._noise().normal("data", time, tuple(self.x.shape[1:]), self.x.dtype)
        x, cond = self.x[items.to(self.x.device)], self.conditions.of(items, candidates)
        signs = (1.0, -1.0) if self.options.antithetic else (1.0,)
        return torch.stack([self._error(time, x, sign * eps, cond) for sign in signs]).mean(0)

    def _error(self, time: int, x: Tensor, eps: Tensor, cond: object) -> Tensor:
        t = self.times[time]
        mean = self.denoiser.mean(self.process.corrupt(x, t, eps), t, cond)  # type: ignore[arg-type]
        apart = (self.scales[time] * (mean - x)).flatten(1)
        if self.loss == "l2":
            return apart.square().mean(1)
        if self.loss == "l1":
            return apart.abs().mean(1)
        if self.loss == "rms":
            return apart.square().mean(1).sqrt()
        return F.huber_loss(apart, torch.zeros_like(apart), reduction="none").mean(1)


class TokenMeasure(Measure):
    """Draws of the evidence bound of tokens; see the module. A causal denoiser knows its likelihood by one draw.

    Args:
        denoiser, x, conditions, options: See `Measure`; x are token ids (B, L).
        n: Number of draws, stratified in level.
    """

    target, loss = "tokens", "nll"

    def __init__(
        self, denoiser: Denoiser, x: Tensor, conditions: PairConditions, options: ErrorOptions, n: int
    ) -> None:
        super().__init__(denoiser, x, conditions, options)
        self.process = cast(CategoricalProcess, denoiser.process)
        self.n = 1 if denoiser.causal else n
        self.levels = (torch.arange(self.n, dtype=torch.float64) + 0.5) / self.n
        self.grid = self._grid()

    def calls(self, time: int) -> int:
        """Of the denoiser."""
        return self.denoiser.calls(float(self.grid.times[time]))

    def _grid(self) -> TimeGrid:
        if self.denoiser.causal:
            times = torch.zeros(1, dtype=torch.float64)
        elif self.process.kind == "absorbing":
            times = torch.stack([self._masked(self.x[:1].cpu(), time).t[0] for time in range(self.n)])
        else:
            times = level_times(self.levels, _LEVELS)[0]
        kept = self.process.keep.keep(times)
        odds = 0.5 * (kept.clamp(min=1e-12).log() - (1 - kept).clamp(min=1e-12).log())
        return TimeGrid(times=times, half_logsnr=odds, widths=torch.ones(self.n, dtype=torch.float64))

    def _order(self, time: int, device: torch.device) -> Tensor:
        noise = KeyedNoise(self.options.seed, [0], device)
        return noise.uniform("order", time, (self.x.shape[1],))

    def _masked(self, tokens: Tensor, time: int):  # type: ignore[no-untyped-def]
        count = self.levels[time].expand(len(tokens)).to(tokens.device)
        return mask_by_count(self.process, tokens, count, self._order(time, tokens.device).expand(tokens.shape))

    def _errors(self, time: int, items: Tensor, candidates: Tensor) -> Tensor:
        tokens, cond = self.x[items.to(self.x.device)], self.conditions.of(items, candidates)
        if self.denoiser.causal:
            return token_nll(self.denoiser(tokens, 0.0, cond).logits, tokens).mean(1)
        if self.process.kind == "absorbing":
            masked = self._masked(tokens, time)
            nll = token_nll(self.denoiser(masked.x, masked.t, cond).logits, tokens)
            return torch.where(masked.weight > 0, masked.weight * nll, 0.0).sum(1)
        t, s = level_times(self.levels[time].expand(len(tokens)).to(tokens.device), _LEVELS)
        x_t = self.process.corrupt(tokens, t, self._order(time, tokens.device).expand(tokens.shape))
        probs = self.denoiser(x_t, t, cond).logits.softmax(-1)
        return _LEVELS * step_kl(self.process, x_t, tokens, probs, t, s).mean(1)
