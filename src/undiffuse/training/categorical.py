"""Objectives of categorical processes: the evidence bound per token, drawn by mask count, by time, or by level."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.elbo import level_times, mask_by_count, mask_by_time, step_kl, token_nll
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.training.objectives import Corrupted, Losses, Objective, answer
from undiffuse.training.time_samplers import UNIT_SPAN, AdaptiveTimes, ImportanceTimes, RunningTimes, stratified

Levels = Literal["uniform", "importance", "running"]
_BINS = 100  # of adaptive levels, at most
_LAWS: dict[Levels, type[ImportanceTimes] | type[RunningTimes]] = {
    "importance": ImportanceTimes,
    "running": RunningTimes,
}


class MaskedELBO(Objective):
    """Evidence bound of absorbing processes, nats per token: a weighted masked-prediction loss.

    Args:
        sampling: "count" draws the number of masked tokens, stratified over the batch (low variance);
            "time" draws the time, antithetic over the batch, with weight 1 / (1 - keep).
        drop: Probability that a row's condition is replaced by its null.

    Source: Zheng et al. 2024, arXiv:2409.02908; Sahoo et al. 2024, arXiv:2406.07524.
    """

    def __init__(self, sampling: Literal["count", "time"] = "count", *, drop: float = 0.0) -> None:
        super().__init__(drop)
        self.mask = {"count": mask_by_count, "time": mask_by_time}[sampling]

    def prepare(self, denoiser: Denoiser, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Mask N rows."""
        tokens: Tensor = batch["x"]
        level = stratified(noise, batch_size)
        order = noise.uniform("data", 0, tuple(tokens.shape[1:]))
        masked = self.mask(categorical_process(denoiser), tokens, level, order)
        conditions = self.conditions(batch, noise, denoiser.kept_conditions)
        return Corrupted(masked.x, masked.t, tokens, masked.weight, **conditions)

    def score(self, denoiser: Denoiser, corrupted: Corrupted) -> Losses:
        """Return the weighted sum of -log p over masked tokens."""
        nll = token_nll(answer(denoiser, corrupted).logits, corrupted.target)
        return Losses((corrupted.weight * nll).sum(1), None)


class Autoregressive(Objective):
    """Mean negative log-likelihood of tokens given those before them, nats per token: exact, so no bound.

    Args:
        drop: Probability that a row's condition is replaced by its null.
    """

    def prepare(self, denoiser: Denoiser, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Leave N rows as they are: the network reads clean tokens."""
        tokens: Tensor = batch["x"]
        categorical_process(denoiser).check_data(tokens)
        t = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        no_weight = torch.empty(len(tokens), 0, device=tokens.device)
        return Corrupted(tokens, t, tokens, no_weight, **self.conditions(batch, noise, denoiser.kept_conditions))

    def score(self, denoiser: Denoiser, corrupted: Corrupted) -> Losses:
        """Return the mean of -log p over tokens."""
        return Losses(token_nll(answer(denoiser, corrupted).logits, corrupted.target).mean(1), None)


class CategoricalELBO(Objective):
    r"""Discrete-time evidence bound of any categorical process, nats per token, and an auxiliary loss beside it.

        T E_i[ KL(q(x_s | x_t, x_0) || p(x_s | x_t)) - aux w_i log p(x_0 | x_t) ],   t = i / T, s = (i - 1) / T,

    averaged over all tokens, the replaced ones too. At s = 0 the divergence is -log p(x_0 | x_t). Masked tokens and
    others may weigh differently at s > 0; with other weights than 1 the sum is no bound.

    Args:
        levels: Number T of noise levels.
        aux: Weight of the auxiliary loss beside each term; 5e-4 with T = 100 in VQ-Diffusion. The terms are summed over
            the levels, so T times as much of it is there in all.
        adaptive_aux: w_i = 2 - t, which asks more of nearly clean tokens, as in the code of VQ-Diffusion; else 1.
        times: How levels are drawn: "uniform", or in proportion to the size that their loss had, and divided by that:
            "importance" remembers the last ten losses, "running" a running mean of their squares.
        masked_weight: Weight of both losses of masked tokens, but for s = 0.
        open_weight: The same of all other tokens.
        drop: Probability that a row's condition is replaced by its null.

    Sources: Austin et al. 2021, "Structured denoising diffusion models in discrete state-spaces", arXiv:2107.03006; Gu
        et al. 2022 (VQ-Diffusion), arXiv:2111.14822, section 4.2, and its code for "running" and the weights;
        "importance": Nichol and Dhariwal 2021, arXiv:2102.09672, section 3.3.
    """

    def __init__(
        self,
        levels: int = 1000,
        *,
        aux: float = 0.0,
        adaptive_aux: bool = False,
        times: Levels = "uniform",
        masked_weight: float = 1.0,
        open_weight: float = 1.0,
        drop: float = 0.0,
    ) -> None:
        super().__init__(drop)
        self.levels, self.aux, self.adaptive_aux = levels, aux, adaptive_aux
        self.masked_weight, self.open_weight = masked_weight, open_weight
        # a submodule: its buffers are saved
        self.adaptive: AdaptiveTimes | None = None
        if times != "uniform":
            self.adaptive = _LAWS[times](UNIT_SPAN, bins=min(levels, _BINS))
        self.adapts = self.adaptive is not None

    def prepare(self, denoiser: Denoiser, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Corrupt N rows to level i, stratified over the batch."""
        tokens: Tensor = batch["x"]
        level = stratified(noise, batch_size)
        weight = torch.empty(len(tokens), 0, device=tokens.device)
        if self.adaptive is not None:
            level, weight = self.adaptive(level)
        t, _ = level_times(level, self.levels)
        process = categorical_process(denoiser)
        process.check_data(tokens)
        x_t = process.corrupt(tokens, t, noise.uniform("data", 0, tuple(tokens.shape[1:])))
        return Corrupted(x_t, t, tokens, weight, **self.conditions(batch, noise, denoiser.kept_conditions))

    def score(self, denoiser: Denoiser, corrupted: Corrupted) -> Losses:
        """Return T times the term of each row's level, averaged over tokens."""
        logits = answer(denoiser, corrupted).logits
        logits = logits if logits.dtype == torch.float64 else logits.float()
        s = (corrupted.t - 1 / self.levels).clamp(min=0.0)
        s = torch.where(s < 0.5 / self.levels, 0.0, s)  # rounding must not keep the last step from reaching 0
        process = categorical_process(denoiser)
        divergence = step_kl(process, corrupted.x, corrupted.target, logits.softmax(-1), corrupted.t, s)
        weight = torch.where(process.is_mask(corrupted.x), self.masked_weight, self.open_weight)
        weight = torch.where(s[:, None] > 0, weight, 1.0)
        term = (weight * divergence).mean(1)
        if self.aux:
            share = self.aux * (2.0 - corrupted.t).to(term.dtype) if self.adaptive_aux else self.aux
            term = term + share * (weight * token_nll(logits, corrupted.target)).mean(1)
        if self.adaptive is not None:
            term = term * corrupted.weight.to(term.dtype)
        return Losses(self.levels * term, None)

    def observe(self, t: Tensor, per_sample: Tensor) -> None:
        """Tell adaptive levels what they cost."""
        if self.adaptive is not None:
            middle = t - 0.5 / self.levels  # level i is drawn by numbers from (i - 1) / T to i / T
            self.adaptive.update(middle, per_sample / self.adaptive.importance_at(middle))

    def without_memory(self) -> CategoricalELBO:
        """Return the same loss with uniform levels."""
        if self.adaptive is None:
            return self
        return CategoricalELBO(
            self.levels,
            aux=self.aux,
            adaptive_aux=self.adaptive_aux,
            masked_weight=self.masked_weight,
            open_weight=self.open_weight,
            drop=self.drop,
        )


def categorical_process(denoiser: Denoiser) -> CategoricalProcess:
    """Return the denoiser's process, or refuse one that is not categorical."""
    if not isinstance(denoiser.process, CategoricalProcess):
        raise ValueError(
            "the categorical bound needs a categorical process; use the denoising objective for Gaussian ones."
        )
    return denoiser.process
