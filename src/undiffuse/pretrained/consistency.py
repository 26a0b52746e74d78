"""`ConsistencyMap`: a consistency model of diffusers as a flow map to the clean end."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.flow_map import FlowMap, shared_times, step_rule
from undiffuse.networks.diffusers_network import DiffusersNetwork
from undiffuse.networks.embedded import Embedded
from undiffuse.pretrained.readers import Reader
from undiffuse.process.gaussian import GaussianProcess, fit
from undiffuse.process.schedules import EDMSchedule
from undiffuse.process.times import Time, align
from undiffuse.spec import DataSpec

_TINY = 1e-44  # in diffusers' logarithm


class ConsistencyMap(FlowMap):
    r"""f(x, sigma) = c_skip x + c_out F(x / sqrt(sigma^2 + d^2), 250 log sigma), the identity at sigma_min, with

        c_skip = d^2 / ((sigma - sigma_min)^2 + d^2),    c_out = d (sigma - sigma_min) / sqrt(sigma^2 + d^2).

    A jump to another time than the end is the DDIM step with that answer; only jumps to the end were trained.

    Args:
        backbone: The network.
        process: The EDM schedule from sigma_min to sigma_max.
        reader: Reads its conditions.
        spec: What one item is.
        data_std: d, standard deviation of the data.
        held: The pipeline, or the network alone, as diffusers has it; to be written back.

    Source: Song et al. 2023, "Consistency models", arXiv:2303.01469, appendix C.
    """

    def __init__(
        self,
        backbone: DiffusersNetwork,
        process: GaussianProcess,
        reader: Reader,
        *,
        spec: DataSpec,
        data_std: float,
        held: Any = None,
    ) -> None:
        super().__init__()
        assert isinstance(process.schedule, EDMSchedule)
        self.backbone, self.process, self.reader = backbone, process, reader
        self.spec, self.data_std, self.spans = spec, data_std, "clean"
        self.end = process.schedule.t_min
        self.held = [held]  # in a list, for it is no part of this module

    def forward(self, x: Tensor, t: Time, s: Time, cond: Embedded | None = None) -> Tensor:
        """Return the state at `s`, (B, *); `x` itself where s = t."""
        now, then = shared_times(t, x), shared_times(s, x)
        state, share = step_rule(self.process, now, then)
        # At the end, and below it, the answer itself is the state: the noise of sigma_min counts as none.
        clean = then <= self.end
        state, share = torch.where(clean, 0.0, state), torch.where(clean, 1.0, share)
        moved = fit(state, x) * x + fit(share, x) * self._answer(x, now, cond)
        return torch.where(align(now == then, x), x, moved)

    def average_velocity(self, x: Tensor, t: Time, s: Time, cond: Embedded | None = None) -> Tensor:
        """Return u = (x - Phi(x, t, s)) / (t - s), (B, *).

        Raises:
            ValueError: s = t, where nothing was trained.
        """
        span = shared_times(t, x) - shared_times(s, x)
        if bool((span == 0).any()):
            raise ValueError("a consistency model is trained for jumps to clean data only; give s below t.")
        return (x - self(x, t, s, cond)) / fit(span, x)

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Read the conditions."""
        return self.reader.embed(cond, batch, drop)

    def _answer(self, x: Tensor, t: Tensor, cond: Embedded | None) -> Tensor:
        schedule = self.process.schedule
        assert isinstance(schedule, EDMSchedule)
        sigma, d = schedule.sigma(t.clamp(min=schedule.t_min)), self.data_std
        above = sigma - schedule.sigma_min
        skip, out = d**2 / (above**2 + d**2), d * above / (sigma**2 + d**2).sqrt()
        dtype = next(self.backbone.parameters()).dtype
        scaled = fit((sigma**2 + d**2).rsqrt(), x) * x
        told = (250 * torch.log(sigma + _TINY)).to(x.device, torch.float32)
        cond = self.reader.embed(None, len(x), None) if cond is None else cond
        raw = self.backbone(scaled.to(dtype), told, cond)["out"].to(x.dtype)
        return fit(skip, x) * x + fit(out, x) * raw


def read_consistency(config: dict[str, object]) -> tuple[GaussianProcess, float]:
    """Return the process and the data's standard deviation of a `CMStochasticIterativeScheduler`.

    Raises:
        ValueError: It clips its answers, which is not done here.
    """
    numbers = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "sigma_data": 0.5}
    found = {key: float(config.get(key, value)) for key, value in numbers.items()}  # type: ignore[arg-type]
    data_std = found.pop("sigma_data")
    if not all(map(math.isfinite, found.values())):
        raise ValueError(f"the scheduler's levels are {found}; they must be finite numbers")
    return GaussianProcess(EDMSchedule(**found)), data_std
