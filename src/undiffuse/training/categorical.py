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
from undiffuse.training.time_samplers import stratified


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


class CategoricalELBO(Objective):
    """Discrete-time evidence bound of any categorical process, nats per token.

    Args:
        levels: Number T of noise levels.
        drop: Probability that a row's condition is replaced by its null.

    Source: Austin et al. 2021, "Structured denoising diffusion models in discrete state-spaces", arXiv:2107.03006.
    """

    def __init__(self, levels: int = 1000, *, drop: float = 0.0) -> None:
        super().__init__(drop)
        self.levels = levels

    def prepare(self, denoiser: Denoiser, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Corrupt N rows to level i, stratified over the batch."""
        tokens: Tensor = batch["x"]
        t, _ = level_times(stratified(noise, batch_size), self.levels)
        x_t = categorical_process(denoiser).corrupt(tokens, t, noise.uniform("data", 0, tuple(tokens.shape[1:])))
        no_weight = torch.empty(len(tokens), 0, device=tokens.device)
        return Corrupted(x_t, t, tokens, no_weight, **self.conditions(batch, noise, denoiser.kept_conditions))

    def score(self, denoiser: Denoiser, corrupted: Corrupted) -> Losses:
        """Return T KL(q(x_s | x_t, x_0) || p(x_s | x_t)), averaged over tokens."""
        probs = answer(denoiser, corrupted).logits.float().softmax(-1)
        s = (corrupted.t - 1 / self.levels).clamp(min=0.0)
        s = torch.where(s < 0.5 / self.levels, 0.0, s)  # rounding must not keep the last step from reaching 0
        kl = step_kl(categorical_process(denoiser), corrupted.x, corrupted.target, probs, corrupted.t, s)
        return Losses(self.levels * kl.mean(1), None)


def categorical_process(denoiser: Denoiser) -> CategoricalProcess:
    """Return the denoiser's process, or refuse one that is not categorical."""
    if not isinstance(denoiser.process, CategoricalProcess):
        raise ValueError(
            "the categorical bound needs a categorical process; use the denoising objective for Gaussian ones."
        )
    return denoiser.process
