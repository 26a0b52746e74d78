"""Several processes that work as one, started by `torchrun` or `accelerate launch`.

Each runs the same command. What can fail in one alone is done inside `agree`, after which all go on or all stop, and
one of them says why.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from undiffuse.errors import PeerError
from undiffuse.models.world import world

_PATIENCE = timedelta(hours=24)  # the main process may compute for hours before it needs the others


class Processes:
    """The processes of one command. They exchange tensors on the CPU (gloo).

    Args:
        rank: Number of this one; 0 is the main process.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def join(cls) -> Processes:
        """Meet the other processes of the launcher, if there are any.

        Raises:
            PeerError: They do not come.
        """
        rank, size = world()
        if size > 1 and not torch.distributed.is_initialized():
            with lost_peers():
                torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
            atexit.register(leave)
        return cls(rank, size)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    @contextmanager
    def agree(self) -> Iterator[None]:
        """Run a block that can fail in one process alone; it then fails in all.

        Raises:
            PeerError: It failed in another process, which says why.
        """
        with fail_together(self._flags, self.rank):
            yield

    def share(self, value: Any) -> Any:
        """Return what the main process has, plain values that JSON can say, in all."""
        if self.size == 1:
            return value
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(text)])
        with lost_peers():
            torch.distributed.broadcast(length, 0)
            text = text if self.is_main else torch.empty(int(length), dtype=torch.uint8)
            torch.distributed.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))

    def largest(self, value: int) -> int:
        """Return the largest value of all processes, in all of them."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        with lost_peers():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def fetch(self, tensor: Tensor, owner: int) -> Tensor:
        """Return in the main process what `owner` has; the others give a tensor of its shape and dtype."""
        if owner == 0 or self.rank not in (0, owner):
            return tensor
        with lost_peers():
            if self.is_main:
                torch.distributed.recv(tensor, owner)
            else:
                torch.distributed.send(tensor.contiguous(), 0)
        return tensor

    def _flags(self, flag: bool) -> list[bool]:
        if self.size == 1:
            return [flag]
        flags = [torch.zeros(1) for _ in range(self.size)]
        with lost_peers():
            torch.distributed.all_gather(flags, torch.tensor([float(flag)]))
        return [bool(one) for one in flags]


@contextmanager
def fail_together(flags: Callable[[bool], list[bool]], rank: int) -> Iterator[None]:
    """Run a block in all processes; where it fails in some, the first of them raises its error and says why.

    Args:
        flags: Returns the flags of all processes, by rank, from one's own.
        rank: Number of this process.

    Raises:
        PeerError: In the other processes.
    """
    failure: Exception | None = None
    try:
        yield
    except PeerError:
        raise  # the others have heard of it already
    except Exception as error:
        failure = error
    failed = flags(failure is not None)
    if failure is not None and not any(failed[:rank]):
        raise failure
    if any(failed):
        raise PeerError("another process of this run failed; its own message says why and what to do.") from failure


@contextmanager
def lost_peers() -> Iterator[None]:
    """Say in one line that another process has ended, which torch says in many.

    Raises:
        PeerError: The connection to another process broke.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "Connection" in str(error):
            raise PeerError(
                "another process of this run ended, so that this one cannot go on; the reason is in that process's "
                "own output.",
                told=False,
            ) from error
        raise


def leave() -> None:
    """Leave the group of processes in order: gloo aborts a process that ends while a peer still talks to it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
