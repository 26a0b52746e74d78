"""`TimestepDenoiser`: a network that is told the step of a training, as those of diffusers are, not the noise level."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.denoisers.shift import ShiftedDenoiser
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import Affine, GaussianProcess, Prediction, fit, scaled
from undiffuse.process.schedules import EDMSchedule, RectifiedFlowSchedule, Schedule, VESchedule
from undiffuse.process.tables import TableSchedule
from undiffuse.process.times import Time, expand_time
from undiffuse.spec import DataSpec

STEPS = 1000
"""Training steps of the straight line, where nothing else is said."""


class TimestepDenoiser(NetworkDenoiser):
    """Tells a network the time as diffusers counts it, matched by the noise level.

    | schedule | what the network is told | what its input is |
    | --- | --- | --- |
    | table of T levels | the index, between entries too | x_t |
    | straight line | sigma times the number of training steps | x_t |
    | EDM and exponential | log(sigma) / 4 | x_t / sqrt(sigma^2 + data_std^2) |
    | circle | the angle over pi / 2 | x_t |

    All elements of an item share their time.

    Args:
        backbone: Such a network.
        process, prediction, spec, data_std: As for `NetworkDenoiser`.
        total: Training steps, of the straight line.
    """

    def __init__(
        self,
        backbone: Backbone,
        process: GaussianProcess,
        prediction: Prediction = "noise",
        *,
        spec: DataSpec | None = None,
        data_std: float = 1.0,
        total: int = STEPS,
    ) -> None:
        super().__init__(backbone, process, prediction, spec=spec, data_std=data_std)
        self.total = total

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        """Run the network once and read the posterior mean off its prediction.

        Raises:
            ValueError: Times per element.
        """
        if isinstance(t, Tensor) and t.ndim > 1:
            raise ValueError(f"times of shape {tuple(t.shape)}: networks of diffusers take one time for each item.")
        _, *found = self.process.evaluate(self._key, self._conversion, t)
        scale, skip, out = (fit(c, x) for c in found)
        cond = self.embed(None, len(x)) if cond is None else cond
        dtype = next(self.backbone.parameters()).dtype
        timestep = self.noise_level(t, x).to(x.device, torch.float32)  # not the network's dtype: bfloat16 ends at 256
        heads = self.backbone(scaled(scale, x).to(dtype), timestep, cond)
        raw = heads.pop("out").to(x.dtype)
        return Posterior(Affine(skip, out).mean(x, raw), raw=raw, extras=heads)

    def noise_level(self, t: Time, x: Tensor) -> Tensor:
        """Return what the network is told, float64 (B,)."""
        return expand_time(self.process.evaluate(self._key, self._conversion, t)[0], x)

    @property
    def _key(self) -> Any:
        return "steps", self.prediction, self.data_std, self.total

    def _conversion(self, t: Tensor) -> tuple[Tensor, ...]:
        alpha, sigma = self.process.schedule.levels(t)
        rule = self.process.rule(self.prediction, t, self.data_std, (alpha, sigma))
        return told_time(self.process.schedule, t, self.total), self._input_scale(alpha, sigma), *rule

    def _input_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        if isinstance(self.process.schedule, EDMSchedule | VESchedule):
            return (sigma**2 + (self.data_std * alpha) ** 2).rsqrt()
        return torch.ones_like(alpha)


def told_time(schedule: Schedule, t: Tensor, total: int) -> Tensor:
    """Return what networks of diffusers are told at float64 times."""
    if isinstance(schedule, TableSchedule):
        return (t * len(schedule.alphas_cumprod) - 1).clamp(min=0)
    if isinstance(schedule, RectifiedFlowSchedule):
        return schedule.sigma(t) * total
    if isinstance(schedule, EDMSchedule | VESchedule):
        return 0.25 * torch.log(schedule.sigma(t.clamp(min=schedule.t_min)))
    return t


def check_countable(process: GaussianProcess, prediction: Prediction) -> None:
    """Refuse what schedulers of diffusers cannot say, for a network that is to be trained.

    Raises:
        ValueError: Another schedule than a table of noise levels or the straight line, or a prediction that does not
            go with it.
    """
    schedule = process.schedule
    fitting: tuple[str, ...] = ("noise", "data", "v")
    if isinstance(schedule, RectifiedFlowSchedule):
        fitting = ("velocity",)
        if schedule.shift != 1:  # a velocity by our time is then a multiple of theirs
            raise ValueError(
                f"schedulers of diffusers shift their steps and not the velocity that a network predicts; set "
                f"process.shift=1 instead of {schedule.shift:g}, and objective.times for other times of training."
            )
    elif not isinstance(schedule, TableSchedule):
        raise ValueError(
            f"a network of diffusers is told the number of a training step, and schedule {schedule.name!r} has none; "
            f"set process.schedule to ddpm, scaled-linear, cosine-table or rf."
        )
    elif schedule.alphas_cumprod[-1] == 0:
        fitting = ("data", "v")  # they divide by alpha where noise is predicted
    if prediction not in fitting:
        raise ValueError(
            f"no scheduler of diffusers knows networks that predict {prediction} on this schedule; set "
            f"process.prediction to {' or '.join(fitting)}."
        )


def network_denoiser(
    backbone: Backbone,
    process: GaussianProcess,
    prediction: Prediction,
    *,
    spec: DataSpec,
    data_std: float = 1.0,
    source: str | None = None,
) -> NetworkDenoiser:
    """Return the denoiser that fits a network: by what it is told, and where its walk begins.

    Args:
        backbone: The network.
        process, prediction, spec, data_std: See `NetworkDenoiser`.
        source: Name of the condition that the walk begins at; None: noise.

    Raises:
        ValueError: They do not go together.
    """
    if backbone.counts_steps:
        if source is not None:
            raise ValueError("a network of diffusers walks from noise only; set process.start=noise, or model=unet.")
        if data_std != 1:
            raise ValueError(
                f"process.data_std={data_std:g} scales what our networks see, and those of diffusers see x_t as it is; "
                f"leave it out."
            )
        check_countable(process, prediction)
        return TimestepDenoiser(backbone, process, prediction, spec=spec, data_std=data_std)
    if source is not None:
        return ShiftedDenoiser(backbone, process, prediction, spec=spec, data_std=data_std, source=source)
    return NetworkDenoiser(backbone, process, prediction, spec=spec, data_std=data_std)
