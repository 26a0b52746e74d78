"""Device, precision and data parallelism, by accelerate."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
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

_DEVICE_VARIABLE = "ACCELERATE_TORCH_DEVICE"


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
        options: Device and precision; nothing else is read.

    Raises:
        TrainingError: The device does not exist or cannot train.
    """

    def __init__(self, options: TrainOptions) -> None:
        self.accelerator = _accelerator(options)
        self.device: torch.device = self.accelerator.device
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        if self.share.size > 1:
            atexit.register(_leave_group)

    def check_batch(self, options: TrainOptions) -> None:
        """Refuse a batch that does not divide among the processes.

        Raises:
            TrainingError: It does not.
        """
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

    @contextmanager
    def agree(self) -> Iterator[None]:
        """Run a block that can fail in one process alone; it then fails in all, so that none waits for ever.

        Raises:
            TrainingError: It failed in another process, which says why.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failed = self.any(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise TrainingError("another process of this run failed; its own message says why and what to do.")

    def wait(self) -> None:
        """Wait for all processes."""
        if self.share.size > 1:
            self.accelerator.wait_for_everyone()


def _leave_group() -> None:
    """Leave the group of processes in order: gloo aborts a process that ends while a peer still talks to it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _accelerator(options: TrainOptions) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    device = choose_device(options.device)
    # accelerate keeps one state per process and refuses another precision in it; runs of one session are independent.
    alone = PartialState._shared_state.get("distributed_type", "NO") == "NO" or not PartialState._shared_state
    AcceleratorState._reset_state(reset_partial_state=bool(alone))
    settings: dict[str, Any] = {"mixed_precision": "bf16" if options.precision == "bfloat16" else "no"}
    with _named_device(device):
        return Accelerator(cpu=device.type == "cpu", **settings)


def choose_device(name: str) -> torch.device:
    """Return the device that `train.device` names; "auto" is CUDA where there is one, else the CPU.

    Raises:
        TrainingError: It is unknown, not available here, or has no float64, in which noise and coefficients are made.
    """
    kind, _, index = name.partition(":")
    if kind == "mps":
        raise TrainingError(f"device={name} has no float64, which training needs for its noise; use train.device=cpu.")
    if kind not in ("auto", "cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
        raise TrainingError(f"device={name} is unknown; use train.device=auto, cpu, cuda, or cuda:N.")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise TrainingError(
            f"device={name} is not available here ({torch.cuda.device_count()} CUDA device(s)); use train.device=cpu "
            f"or auto."
        )
    return torch.device(name)


@contextmanager
def _named_device(device: torch.device) -> Iterator[None]:
    """Tell accelerate, which takes it from the environment only, to use one CUDA device of several.

    Raises:
        TrainingError: Several processes share the run, which must have a device each.
    """
    if device.index is None or device.type == "cpu":
        yield
        return
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise TrainingError(
            f"device={device} is one device, but this run has several processes; use train.device=cuda."
        )
    before = os.environ.get(_DEVICE_VARIABLE)
    os.environ[_DEVICE_VARIABLE] = str(device)
    try:
        yield
    finally:
        del os.environ[_DEVICE_VARIABLE]
        if before is not None:
            os.environ[_DEVICE_VARIABLE] = before
