"""`ShiftedDenoiser`: a network that walks from a picture to a given one, as an ordinary denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.maps import MapConditioner
from undiffuse.process.gaussian import GaussianProcess, Prediction, fit
from undiffuse.process.times import Time
from undiffuse.spec import DataSpec

SOURCE = "source"
NO_SOURCE = (
    f"process.start=source needs data with a given picture for each, the condition {SOURCE!r}: pairs (data.pair) or "
    "data.degrade."
)
"""What is said where a walk has nowhere to begin."""


class ShiftedDenoiser(NetworkDenoiser):
    r"""A network that sees x_t + (1 - alpha) y and y, and answers about x_0.

    Its process is the one of x_t = alpha x_0 + sigma eps, so every solver, objective, wrapper and constraint works on
    it as on any other; (1 - alpha) y is added at the network's input only. There the state has about the data's
    variance at every time, and is scaled by 1 / sqrt(sigma^2 + data_std^2). The prior of x_t is N(0, sigma(1)^2): the
    walk begins at y with the noise of t = 1. At t = 0 nothing is added, so samples are pictures as they stand.

    Args:
        backbone: As for `NetworkDenoiser`, with conditioners that have the map `source` with the channels of the data.
        process: Of any schedule; those of `process.restoration` are made for this.
        prediction: What the backbone predicts.
        spec: What one item is.
        data_std: Standard deviation of the data in model units.
        source: Name of the condition that holds y, on the data's grid in model units.

    Raises:
        ValueError: The network does not read such a map, or a question comes without one.

    Source: IR-SDE (arXiv:2301.11699), ResShift (2307.12348), I2SB (2302.05872), InDI (2303.11435), RDDM (2308.13712).
    """

    def __init__(
        self,
        backbone: nn.Module,
        process: GaussianProcess,
        prediction: Prediction = "data",
        *,
        spec: DataSpec | None = None,
        data_std: float = 1.0,
        source: str = SOURCE,
    ) -> None:
        super().__init__(backbone, process, prediction, spec=spec, data_std=data_std)
        self.source = source
        self._channels = _channels_of(backbone, source, spec)
        self._is_video = spec is not None and spec.kind == "video"

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
        """Ask at a time that the formulas serve, about x_t."""
        most = self.process.schedule.t_max
        return super().posterior(x, t.clamp(max=most) if isinstance(t, Tensor) else min(t, most), cond)

    def seen(self, x: Tensor, t: Time, cond: Embedded | None) -> Tensor:
        """Return x + (1 - alpha) y."""
        if cond is None or cond.maps is None or (cond.maps.shape[-1] == 1 and x.shape[-1] > 1):
            raise ValueError(
                f"this model restores a given picture; give it as cond={{{self.source!r}: picture}}, or use "
                "restore(model, y, operator, method='supervised')."
            )
        alpha, _ = self.process.coefficients(t, x)
        maps = cond.maps if cond.maps.ndim == x.ndim else cond.maps.unsqueeze(1)
        axis = 2 if self._is_video else 1
        first, count = self._channels
        given = maps.narrow(axis, first, count).to(x.dtype)
        return x + fit(1 - alpha, x) * given

    @property
    def kept_conditions(self) -> frozenset[str]:
        """Also the given picture, without which there is no walk."""
        return super().kept_conditions | {self.source}

    @property
    def _key(self) -> Any:
        return "shifted", self.prediction, self.data_std

    def _conversion(self, t: Tensor) -> tuple[Tensor, ...]:
        level, _, skip, out = super()._conversion(t)
        scale = (self.process.schedule.sigma(t) ** 2 + self.data_std**2).rsqrt()
        return level, scale, skip, out


def has_source(spec: DataSpec) -> bool:
    """Whether a picture is given beside each item."""
    return SOURCE in spec.cond and spec.cond[SOURCE].kind == "map"


def _channels_of(backbone: nn.Module, source: str, spec: DataSpec | None) -> tuple[int, int]:
    """Return where the map `source` begins among the channels of all maps, and how many it has."""
    first = 0
    for name, part in getattr(backbone, "conditioners", torch.nn.ModuleDict()).items():
        if not isinstance(part, MapConditioner):
            continue
        if name == source:
            if spec is not None and part.channels != spec.channels:
                raise ValueError(
                    f"the map {source!r} has {part.channels} channels but the data have {spec.channels}; a walk from "
                    "one to the other needs as many."
                )
            return first, part.channels
        first += part.channels
    raise ValueError(NO_SOURCE)
