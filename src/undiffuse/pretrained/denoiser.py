"""`DiffusersDenoiser`: a network of diffusers with the process of its scheduler is a denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.pretrained.network import DiffusersNetwork
from undiffuse.pretrained.readers import Reader
from undiffuse.process.gaussian import Affine, GaussianProcess, Prediction, fit, scaled
from undiffuse.process.schedules import EDMSchedule, RectifiedFlowSchedule, Schedule, VESchedule
from undiffuse.process.tables import TableSchedule
from undiffuse.process.times import Time, expand_time
from undiffuse.spec import DataSpec


class DiffusersDenoiser(NetworkDenoiser):
    """Tells a network of diffusers the time as diffusers counts it, matched by the noise level.

    | schedule | what the network is told | what its input is |
    | --- | --- | --- |
    | table of T levels | the index, between entries too | x_t |
    | straight line | sigma times the number of training steps | x_t |
    | EDM and exponential | log(sigma) / 4 | x_t / sqrt(sigma^2 + data_std^2) |
    | circle | the angle over pi / 2 | x_t |

    All elements of an item share their time.

    Args:
        backbone: The network.
        process, prediction, data_std: Of its scheduler; see `undiffuse.sampling.diffusers_setup`.
        reader: Reads its conditions.
        spec: What one state is.
        total: Training steps, of the straight line.
        held: The pipeline, or the network alone, as diffusers has it; to be written back.
    """

    backbone: DiffusersNetwork

    def __init__(
        self,
        backbone: DiffusersNetwork,
        process: GaussianProcess,
        prediction: Prediction,
        reader: Reader,
        *,
        spec: DataSpec,
        data_std: float = 1.0,
        total: int = 1000,
        held: Any = None,
    ) -> None:
        super().__init__(backbone, process, prediction, spec=spec, data_std=data_std)
        self.reader, self.total = reader, total
        self.held = [held]  # in a list, for it is no part of this module

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        """Run the network once and read the posterior mean off its prediction.

        Raises:
            ValueError: Times per element.
        """
        if isinstance(t, Tensor) and t.ndim > 1:
            raise ValueError(f"times of shape {tuple(t.shape)}: networks of diffusers take one time for each item.")
        _, *found = self.process.evaluate(self._key, self._conversion, t)
        scale, skip, out = (fit(c, x) for c in found)
        cond = self.reader.embed(None, len(x), None) if cond is None else cond
        dtype = next(self.backbone.parameters()).dtype
        timestep = self.noise_level(t, x).to(x.device, torch.float32)  # not the network's dtype: bfloat16 ends at 256
        heads = self.backbone(scaled(scale, x).to(dtype), timestep, cond)
        raw = heads.pop("out").to(x.dtype)
        return Posterior(Affine(skip, out).mean(x, raw), raw=raw, extras=heads)

    def noise_level(self, t: Time, x: Tensor) -> Tensor:
        """Return what the network is told, float64 (B,)."""
        return expand_time(self.process.evaluate(self._key, self._conversion, t)[0], x)

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Read the conditions, by the encoders of the pipeline."""
        return self.reader.embed(cond, batch, drop)

    @property
    def _key(self) -> tuple[str, Prediction, float]:
        return "diffusers", self.prediction, self.data_std

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
