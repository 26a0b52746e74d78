"""Device, precision and data parallelism, by accelerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.errors import TrainingError
from undiffuse.training.objectives import Corrupted, Losses, Objective
from undiffuse.training.options import TrainOptions
from undiffuse.training.stream import Share

if TYPE_CHECKING:
    from accelerate import Accelerator


class Scoring(nn.Module):
    """Denoiser and objective as one module, so that data parallelism sees every use of a parameter in one forward."""

    def __init__(self, denoiser: Denoiser, objective: Objective) -> None:
        super().__init__()
        self.denoiser, self.objective = denoiser, objective

    def forward(self, corrupted: Corrupted) -> Losses:
        """Return the losses of a batch."""
        return self.objective.score(self.denoiser, corrupted)


class Devices:
    """Where a run computes: one process, or one of several started by `accelerate launch` or `torchrun`.

    Args:
        options: Device and precision.

    Raises:
        TrainingError: The device does not exist, or the batch does not divide among the processes.
    """

    def __init__(self, options: TrainOptions) -> None:
        self.accelerator = _accelerator(options)
        self.device: torch.device = self.accelerator.device
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        parts = self.share.size * options.accumulate
        if options.batch_size % parts:
            raise TrainingError(
                f"batch_size={options.batch_size} does not divide among {self.share.size} process(es) x "
                f"accumulate={options.accumulate}; use a multiple of {parts}."
            )

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.share.rank == 0

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return the module under autocast and data parallelism, as asked."""
        return self.accelerator.prepare_model(module)

    def mean(self, value: Tensor) -> Tensor:
        """Average a tensor over processes."""
        return value if self.share.size == 1 else self.accelerator.reduce(value, reduction="mean")

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in some process, so that all act alike."""
        if self.share.size == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.share.size > 1:
            self.accelerator.wait_for_everyone()


def _accelerator(options: TrainOptions) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    available: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if options.device not in ("auto", "cpu", *available):
        raise TrainingError(f"device={options.device} is unknown; use train.device=auto, cpu, {', '.join(available)}.")
    if options.device in available and not available[options.device]():
        raise TrainingError(f"device={options.device} is not available here; use train.device=cpu or auto.")
    # accelerate keeps one state per process and refuses another precision in it; runs of one session are independent.
    alone = PartialState._shared_state.get("distributed_type", "NO") == "NO" or not PartialState._shared_state
    AcceleratorState._reset_state(reset_partial_state=bool(alone))
    settings: dict[str, Any] = {"mixed_precision": "bf16" if options.precision == "bfloat16" else "no"}
    return Accelerator(cpu=options.device == "cpu", **settings)
