r"""The denoising objective of Gaussian processes: mean of weight * |output - target|^2 over times and noise.

The squared error is that of the network's own output, weighted by `LossWeight.relative`. With one time per frame
each frame's error is weighted by its own level before the average over frames.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess, Prediction
from undiffuse.process.schedules import Schedule
from undiffuse.training.objectives import Corrupted, Losses, Objective, answer, mean_over_items
from undiffuse.training.options import DenoisingOptions
from undiffuse.training.time_samplers import (
    FrameTimes,
    ImportanceTimes,
    LogitNormalTimes,
    LogNormalTimes,
    ModeTimes,
    TimeLaw,
    TimeSampler,
    UniformTimes,
)
from undiffuse.training.weights import Levels, LossWeight


class DenoisingObjective(Objective):
    """Weighted squared error of a denoiser on noisy data.

    Args:
        weight: Weight in log-SNR; it multiplies |D - x_0|^2.
        times: Sampler of times.
        importance: Divide by the density of the times, so that their law changes the variance only.
            Always done for `ImportanceTimes`.
        drop: Probability that a row's condition is replaced by its null.
    """

    def __init__(
        self,
        weight: LossWeight,
        times: TimeSampler,
        *,
        importance: bool = False,
        drop: float = 0.0,
    ) -> None:
        super().__init__(drop)
        self.weight, self.times = weight, times
        self.adaptive = (
            times.law if isinstance(times.law, ImportanceTimes) else None
        )  # a submodule: its buffers are saved
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
        levels = Levels(process.schedule, t)
        weight = self.weight.relative(levels, kind)
        if self.importance:
            weight = weight * inverse_density
        return Corrupted(
            x=process.corrupt(x0, t, eps),
            t=t,
            target=process.target(kind, x0, eps, t, data_std),
            weight=weight.to(x0.dtype),
            half_logsnr=mean_over_items(levels.half_logsnr),
            **self.conditions(batch, noise),
        )

    def score(self, denoiser: Denoiser, corrupted: Corrupted) -> Losses:
        """Return weight * |output - target|^2, averaged over the elements of each sample."""
        post = answer(denoiser, corrupted)
        output = post.mean if post.raw is None else post.raw
        error = mean_over_items((output - corrupted.target).square(), corrupted.weight.ndim)
        return Losses(mean_over_items(error * corrupted.weight), corrupted.half_logsnr)

    def observe(self, corrupted: Corrupted, per_sample: Tensor) -> None:
        """Tell adaptive times what they cost."""
        if self.adaptive is not None:
            importance = self.adaptive.importance_at(corrupted.t)
            self.adaptive.update(corrupted.t, per_sample / importance)


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


def make_denoising(options: DenoisingOptions, schedule: Schedule, data_std: float = 1.0) -> DenoisingObjective:
    """Build the objective that `options` describe."""
    weight = LossWeight(
        name=options.weight,
        min_snr_gamma=options.min_snr_gamma,
        p2_k=options.p2_k,
        p2_gamma=options.p2_gamma,
        bias=options.bias,
        data_std=data_std,
    )
    times = TimeSampler(make_law(options, schedule), options.stratified)
    if options.p_async:
        times = FrameTimes(times, options.p_async, options.async_per)
    return DenoisingObjective(weight, times, importance=options.importance, drop=options.drop)


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
