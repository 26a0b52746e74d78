"""`DiffusersDenoiser`: a network of diffusers with the process of its scheduler is a denoiser."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from undiffuse.denoisers.timestep import STEPS, TimestepDenoiser
from undiffuse.networks.diffusers_network import DiffusersNetwork
from undiffuse.networks.embedded import Embedded
from undiffuse.pretrained.readers import Reader
from undiffuse.process.gaussian import GaussianProcess, Prediction
from undiffuse.spec import DataSpec


class DiffusersDenoiser(TimestepDenoiser):
    """A network as its pipeline has it, conditions included.

    Args:
        backbone: The network.
        process, prediction, data_std: Of its scheduler; see `undiffuse.sampling.diffusers_setup`.
        reader: Reads its conditions.
        spec: What one state is.
        total: Training steps, of the straight line.
        held: The pipeline, or the network alone, as diffusers has it; to be written back.

    Attributes:
        tuned: Weights that were trained since: name of their file -> tensors. `Model.save` writes them.
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
        total: int = STEPS,
        held: Any = None,
    ) -> None:
        super().__init__(backbone, process, prediction, spec=spec, data_std=data_std, total=total)
        self.reader = reader
        self.held = [held]  # in a list, for it is no part of this module
        self.tuned: dict[str, dict[str, Tensor]] = {}

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Read the conditions, by the encoders of the pipeline."""
        return self.reader.embed(cond, batch, drop)
