"""Device, precision and data parallelism, by accelerate."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from undiffuse.errors import TrainingError
from undiffuse.models.processes import fail_together, leave, lost_peers
from undiffuse.training.layout import Layout
from undiffuse.training.objectives import Corrupted, Losses, Objective, Trained
from undiffuse.training.options import TrainOptions
from undiffuse.training.share import Share

if TYPE_CHECKING:
    from accelerate import Accelerator

_DEVICE_VARIABLE = "ACCELERATE_TORCH_DEVICE"


class Scoring(nn.Module):
    """Denoiser and objective as one module, so that data parallelism sees every use of a parameter in one forward."""

    def __init__(self, denoiser: Trained, objective: Objective) -> None:
        super().__init__()
        self.denoiser, self.objective = denoiser, objective

    def forward(self, corrupted: Corrupted, parts: int = 0) -> Losses | Corrupted:
        """Return the losses of a batch; with `parts`, what `Objective.couple` makes of it before it is cut in them."""
        if parts:
            return self.objective.couple(self.denoiser, corrupted, parts)
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
        # accelerate numbers the CPU where there are several processes; files are read to a CPU without a number.
        on_cpu = self.accelerator.device.type == "cpu"
        self.device: torch.device = torch.device("cpu") if on_cpu else self.accelerator.device
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        if self.share.size > 1:
            atexit.register(leave)

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

    def layout(self, scoring: Scoring, shard: bool = False) -> Layout:
        """Return how the parameters lie over the processes; with `shard` they are cut into slices, in place.

        One process has everything in any case.
        """
        if not shard or self.share.size == 1:
            return Layout(scoring.denoiser)
        from undiffuse.training.sharding import Sharded

        return Sharded(scoring, self.device, self.is_main)

    def prepare(self, module: nn.Module) -> nn.Module:
        """Return the module under autocast and, unless it is sharded already, data parallelism."""
        if _is_sharded(module):
            return self.accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
        return self.accelerator.prepare_model(module)

    def no_sync(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which backward passes keep their gradients to themselves, until one outside of it."""
        return _without_reduction(module) if _is_sharded(module) else self.accelerator.no_sync(module)

    def mean(self, value: Tensor) -> Tensor:
        """Average a tensor over processes."""
        return value if self.share.size == 1 else self.accelerator.reduce(value, reduction="mean")

    def total(self, value: Tensor) -> Tensor:
        """Add up a tensor of the CPU over processes."""
        return self.accelerator.reduce(value.to(self.device), reduction="sum").to(value.device)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, those of the first one first."""
        return rows if self.share.size == 1 else self.accelerator.gather(rows)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in some process, so that all act alike."""
        if self.share.size == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device)) > 0)

    @contextmanager
    def agree(self) -> Iterator[None]:
        """Run a block that can fail in one process alone; it then fails in all, so that none waits for ever.

        Raises:
            PeerError: It failed in another process, which says why.
        """
        with fail_together(self._flags, self.share.rank):
            yield

    def together(self) -> AbstractContextManager[None]:
        """Return a context in which the end of another process is an error of one line.

        Raises:
            PeerError: Another process ended.
        """
        return nullcontext() if self.share.size == 1 else lost_peers()

    def _flags(self, flag: bool) -> list[bool]:
        return [bool(one) for one in self.gather(torch.tensor([float(flag)], device=self.device)).tolist()]

    def wait(self) -> None:
        """Wait for all processes."""
        if self.share.size > 1:
            self.accelerator.wait_for_everyone()


def _accelerator(options: TrainOptions) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    device = choose_device(options.device)
    _refuse_settings_of_accelerate(options.precision)
    # accelerate keeps one state per process and refuses another precision in it; runs of one session are independent.
    alone = PartialState._shared_state.get("distributed_type", "NO") == "NO" or not PartialState._shared_state
    AcceleratorState._reset_state(reset_partial_state=bool(alone))
    settings: dict[str, Any] = {"mixed_precision": "bf16" if options.precision == "bfloat16" else "no"}
    with _named_device(device):
        return Accelerator(cpu=device.type == "cpu", **settings)


def _is_sharded(module: nn.Module) -> bool:
    return hasattr(module, "set_requires_gradient_sync")  # what fully_shard adds, asked without importing it


@contextmanager
def _without_reduction(module: Any) -> Iterator[None]:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def _refuse_settings_of_accelerate(precision: str) -> None:
    """Refuse what `accelerate launch` was told and the recipe says otherwise, rather than ignore it.

    Raises:
        TrainingError: It asks for FSDP or DeepSpeed, or for another precision than the recipe.
    """
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if told not in ("no", {"bfloat16": "bf16"}.get(precision, "no")):
        raise TrainingError(
            f"accelerate was told to use {told}, but the recipe says train.precision={precision}; leave out "
            f"--mixed_precision and say train.precision=bfloat16."
        )
    for variable, what in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            raise TrainingError(
                f"accelerate was told to use {what}; launch with --multi_gpu instead, and say train.shard=true to "
                f"shard the network over the processes (FSDP2)."
            )


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
