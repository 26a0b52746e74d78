r"""The denoising objective of Gaussian processes: mean of weight * |output - target|^2 over times and noise.

The squared error is that of the network's own output, weighted by `LossWeight.relative`. With one time per frame
each frame's error is weighted by its own level before the average over frames.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess, Prediction
from undiffuse.process.schedules import Schedule
from undiffuse.process.tables import TableSchedule
from undiffuse.training.coupling import optimal_pairs
from undiffuse.training.learned_variance import VarianceBound
from undiffuse.training.objectives import Corrupted, Losses, Objective, mean_over_items
from undiffuse.training.options import DenoisingOptions
from undiffuse.training.self_conditioning import answer_again, draw_coins
from undiffuse.training.time_samplers import (
    FrameTimes,
    ImportanceTimes,
    LastStepTimes,
    LogitNormalTimes,
    LogNormalTimes,
    ModeTimes,
    TimeLaw,
    TimeSampler,
    UniformTimes,
)
from undiffuse.training.weights import Levels, LossWeight

_NEAR_NOISE = 1e-6  # of the last cell of a table that ends in noise
_CLEAN, _BOUND_WEIGHT = "clean", "bound_weight"  # in `Corrupted.extras`, where the variance is learned


class DenoisingObjective(Objective):
    """Weighted squared error of a denoiser on noisy data.

    Args:
        weight: Weight in log-SNR; it multiplies |D - x_0|^2.
        times: Sampler of times.
        importance: Divide by the density of the times, so that their law changes the variance only.
            Always done for `ImportanceTimes`.
        drop: Probability that a row's condition is replaced by its null.
        bound: Trains the variance head beside the mean; None where there is no such head.
        optimal: Pair noise and data by optimal transport; see `undiffuse.training.coupling`.
        absolute: Take the absolute error instead of the squared one, with the same weight.
    """

    def __init__(
        self,
        weight: LossWeight,
        times: TimeSampler,
        *,
        importance: bool = False,
        drop: float = 0.0,
        bound: VarianceBound | None = None,
        optimal: bool = False,
        absolute: bool = False,
    ) -> None:
        super().__init__(drop)
        self.optimal, self.absolute = optimal, absolute
        self.weight, self.times, self.bound = weight, times, bound
        law = times.law.law if isinstance(times.law, LastStepTimes) else times.law
        self.adaptive = law if isinstance(law, ImportanceTimes) else None  # a submodule: its buffers are saved
        self.adapts = self.adaptive is not None
        self.importance = importance or self.adapts

    def prepare(self, denoiser: Denoiser, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Noise N rows, and say what the network must answer and what that is worth."""
        x0: Tensor = batch["x"]
        process = gaussian_process(denoiser)
        kind, data_std = parametrisation(denoiser)
        frames = x0.shape[1] if isinstance(self.times, FrameTimes) else 0
        t, inverse_density = self.times.draw(noise, batch_size, frames)
        eps = noise.normal("data", 0, tuple(x0.shape[1:]), x0.dtype)
        if self.optimal:
            eps = eps[optimal_pairs(x0, eps, batch_size, (batch.get("cond") or {}).get("label"))]
        levels = Levels(process.schedule, _before_noise(process.schedule, t))
        weight = self.weight.relative(levels, kind)
        if self.importance:
            weight = weight * inverse_density
        extras = draw_coins(denoiser, noise)
        if self.bound is not None:
            scale = inverse_density if self.importance else torch.ones_like(inverse_density)
            extras |= {_CLEAN: x0, _BOUND_WEIGHT: (self.bound.weight * self.bound.levels * scale).to(x0.dtype)}
        return Corrupted(
            x=process.corrupt(x0, t, eps),
            t=t,
            target=process.target(kind, x0, eps, t, data_std),
            weight=weight.to(x0.dtype),
            half_logsnr=mean_over_items(levels.half_logsnr),
            extras=extras,
            **self.conditions(batch, noise, denoiser.kept_conditions),
        )

    def score(self, denoiser: Denoiser, corrupted: Corrupted) -> Losses:
        """Return weight * |output - target|^2, averaged over the elements of each sample, and any bound."""
        post = answer_again(denoiser, corrupted)
        difference = (post.mean if post.raw is None else post.raw) - corrupted.target
        error = mean_over_items(difference.abs() if self.absolute else difference.square(), corrupted.weight.ndim)
        loss = mean_over_items(error * corrupted.weight)
        if self.bound is not None:
            loss = loss + self._bound_loss(self.bound, gaussian_process(denoiser), post, corrupted)
        return Losses(loss, corrupted.half_logsnr)

    def _bound_loss(
        self, bound: VarianceBound, process: GaussianProcess, post: Posterior, corrupted: Corrupted
    ) -> Tensor:
        """Return the weighted bound of each sample."""
        x0, weight = corrupted.extras[_CLEAN], corrupted.extras[_BOUND_WEIGHT]
        terms = bound.divergence(process, corrupted.t, x0, post.mean, post.extras["variance"].to(x0.dtype))
        return mean_over_items(mean_over_items(terms, weight.ndim) * weight)

    def observe(self, t: Tensor, per_sample: Tensor) -> None:
        """Tell adaptive times what they cost."""
        if self.adaptive is not None:
            if isinstance(self.times.law, LastStepTimes):
                per_sample = torch.where(t == 1, math.nan, per_sample)  # no bin's
            self.adaptive.update(t, per_sample / self.adaptive.importance_at(t))

    def without_memory(self) -> DenoisingObjective:
        """Return the same loss with uniform times, divided by their density."""
        if self.adaptive is None:
            return self
        uniform: TimeLaw = UniformTimes(self.adaptive.schedule)
        if isinstance(self.times.law, LastStepTimes):
            uniform = replace(self.times.law, law=uniform)
        times = TimeSampler(uniform)
        return DenoisingObjective(
            self.weight,
            times,
            importance=True,
            drop=self.drop,
            bound=self.bound,
            optimal=self.optimal,
            absolute=self.absolute,
        )


def gaussian_process(denoiser: Denoiser) -> GaussianProcess:
    """Return the denoiser's process, or refuse one that is not Gaussian."""
    if not isinstance(denoiser.process, GaussianProcess):
        raise ValueError(
            "the denoising objective needs a Gaussian process; use masked-elbo or categorical-elbo for tokens."
        )
    return denoiser.process


def parametrisation(denoiser: Denoiser) -> tuple[Prediction, float]:
    """Return what the denoiser's network predicts and its data_std; ("data", 1) where there is no network."""
    return getattr(denoiser, "prediction", "data"), getattr(denoiser, "data_std", 1.0)


def _before_noise(schedule: Schedule, t: Tensor) -> Tensor:
    """Return times where weights are finite: just before 1 in place of the last step of a table that ends in noise."""
    return torch.where(t == 1, 1 - _NEAR_NOISE * (1 - schedule.t_max), t)


def make_denoising(
    options: DenoisingOptions, schedule: Schedule, data_std: float = 1.0, prediction: Prediction = "data"
) -> DenoisingObjective:
    """Build the objective that `options` describe, for a network that predicts `prediction`."""
    weight = LossWeight(
        name=options.weight,
        min_snr_gamma=options.min_snr_gamma,
        p2_k=options.p2_k,
        p2_gamma=options.p2_gamma,
        bias=options.bias,
        data_std=data_std,
    )
    law = make_law(options, schedule)
    if _learns_last_step(options, schedule, prediction):
        law = LastStepTimes(law, len(schedule.alphas_cumprod))  # type: ignore[attr-defined]
    times = TimeSampler(law, options.stratified)
    if options.p_async:
        times = FrameTimes(times, options.p_async, options.async_per)
    bound = VarianceBound(_levels_of(options, schedule), options.vlb_weight) if options.learn_variance else None
    optimal = options.coupling == "optimal"
    return DenoisingObjective(
        weight,
        times,
        importance=options.importance,
        drop=options.drop,
        bound=bound,
        optimal=optimal,
        absolute=options.error == "absolute",
    )


def _learns_last_step(options: DenoisingOptions, schedule: Schedule, prediction: Prediction) -> bool:
    """Whether a table ends in noise from which the network can learn: of noise it would only be shown the answer."""
    is_noise = isinstance(schedule, TableSchedule) and schedule.ends_in_noise
    return is_noise and prediction != "noise" and not options.learn_variance  # a step from there has no finite bound


def _levels_of(options: DenoisingOptions, schedule: Schedule) -> int:
    """Return the number of noise levels of the bound: by default those of the table."""
    if options.levels is not None:
        return options.levels
    return len(schedule.alphas_cumprod) if isinstance(schedule, TableSchedule) else VarianceBound.levels


def make_law(options: DenoisingOptions, schedule: Schedule) -> TimeLaw:
    """Build the law of times that `options` name, with its published mean and std where none are given."""
    given = {
        name: value for name, value in (("mean", options.time_mean), ("std", options.time_std)) if value is not None
    }
    if options.times == "logit-normal":
        return LogitNormalTimes(schedule, **given)
    if options.times == "edm":
        return LogNormalTimes(schedule, **given)
    if options.times == "mode":
        return ModeTimes(schedule, options.mode_scale)
    return ImportanceTimes(schedule) if options.times == "importance" else UniformTimes(schedule)
