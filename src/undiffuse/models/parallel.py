"""Sampling split over processes, with the samples that one process would give, bit for bit.

The samples are computed in the batches in which one process would compute them; the processes take turns at the
batches, and noise is keyed by the number of the sample. So a batch is the same numbers whoever computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.limits import check_counts
from undiffuse.models.conditions import Fitted, fit_conditions
from undiffuse.models.guided import ClassifierTarget
from undiffuse.models.processes import Processes
from undiffuse.models.states import refuse_states

if TYPE_CHECKING:
    from undiffuse.models.model import Model

BATCH = 256
_FITTED = "-fitted-"  # no condition can have this name: it is no word
_OF_ONE_BATCH = ("trajectory", "callback", "constraints", "start")


@dataclass(frozen=True)
class SplitSamples:
    """Samples in data units on the CPU, (n, *shape), and network evaluations per sample.

    In processes other than the main one, the first axis of `x` is empty. `sweeps` and `calls`, of runs in parallel over
    time, are those of the process with the most.
    """

    x: Tensor
    nfe: int
    sweeps: int | None = None
    calls: int | None = None


def sample_split(
    model: Model,
    n: int = 1,
    *,
    processes: Processes,
    cond: dict[str, Any] | None = None,
    negative: dict[str, Any] | None = None,
    classifier: ClassifierTarget | None = None,
    first: int = 0,
    batch_size: int = BATCH,
    listener: Listener = silent,
    **options: Any,
) -> SplitSamples:
    """Sample with all processes, which must call this with the same arguments.

    Args:
        model: The model, on this process' device.
        n: How many samples over all processes.
        processes: Who takes part.
        cond, negative, classifier: As in `Model.sample`: one value, or n.
        first: Number of the first sample.
        batch_size: Samples computed at once, and the unit that is shared out.
        listener: Hears about progress.
        options: Further arguments of `Model.sample_result`, but for those that belong to a single batch.

    Raises:
        ValueError: As `Model.sample`; or an option that needs a single batch.
        PeerError: Another process failed.
    """
    parts: dict[int, Tensor] = {}
    nfe = sweeps = calls = 0
    with processes.agree():
        _refuse(n, batch_size, options)
        refuse_states(model, options.get("grid"))
        starts = range(0, n, batch_size)
        spec = model.state_spec_at(options.get("size"))
        conditions, away = (fit_conditions(part, n, spec, model.device, model.codec) for part in (cond, negative))
        listener(Started("sample", n, "sample"))
        for turn in range(processes.rank, len(starts), processes.size):
            low = starts[turn]
            high = min(low + batch_size, n)
            part = model.sample_result(
                high - low,
                cond=conditions.rows(low, high),
                negative=away.rows(low, high) or None,
                classifier=None if classifier is None else classifier.rows(low, high),
                first=first + low,
                batch_size=batch_size,
                **options,
            )
            with torch.no_grad():
                parts[turn] = model.decode(part.x).cpu()
            nfe, sweeps, calls = max(nfe, part.nfe), sweeps + (part.sweeps or 0), calls + (part.calls or 0)
            listener(Advanced("sample", min(n, (turn - processes.rank + processes.size) * batch_size)))
    listener(Finished("sample"))
    x, nfe = _collect(parts, n, batch_size, processes, model), processes.largest(nfe)
    if options.get("parallel") is None:
        return SplitSamples(x, nfe)
    return SplitSamples(x, nfe, processes.largest(sweeps), processes.largest(calls))


def idle_processes(n: int, batch_size: int, processes: Processes) -> int:
    """Return how many processes get no batch of `n` samples."""
    return max(0, processes.size - -(-n // batch_size))


class SplitModel:
    """A model in the main process whose samples all processes compute; the others `serve` meanwhile.

    All else (`spec`, `elbo`, ...) is that of the model.

    Args:
        model: The model; every process has it.
        processes: Who takes part.
    """

    def __init__(self, model: Model, processes: Processes) -> None:
        self.model, self.processes = model, processes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def sample(self, n: int = 1, *, listener: Listener = silent, **options: Any) -> Tensor:
        """Return `n` samples in data units; options are those of `Model.sample`, as plain values or tensors.

        Raises:
            ValueError: An option cannot be sent to another process.
        """
        request = {"n": n} | {name: _plain(name, value) for name, value in options.items()}
        self.processes.share(request)
        return sample_split(self.model, processes=self.processes, listener=listener, **_received(request)).x

    def serve(self) -> None:
        """Compute what the main process asks for, until it closes."""
        while (request := self.processes.share(None)) is not None:
            sample_split(self.model, processes=self.processes, **_received(request))

    def close(self) -> None:
        """Let the other processes end."""
        self.processes.share(None)


def _refuse(n: int, batch_size: int, options: dict[str, Any]) -> None:
    check_counts(n=n, batch_size=batch_size)
    for name in _OF_ONE_BATCH:
        if options.get(name):
            raise ValueError(f"{name} belongs to a single batch; use Model.sample_result in one process.")


def _collect(parts: dict[int, Tensor], n: int, batch_size: int, processes: Processes, model: Model) -> Tensor:
    """Bring all batches to the main process, in order."""
    shape = tuple(parts[0].shape[1:] if 0 in parts else model.spec.shape)
    gathered = []
    for turn, low in enumerate(range(0, n, batch_size)):
        part = parts.get(turn)
        if part is None and processes.is_main:
            part = parts[0].new_empty(min(batch_size, n - low), *shape)
        if part is not None:
            gathered.append(processes.fetch(part, turn % processes.size))
    return torch.cat(gathered) if processes.is_main else torch.empty(0, *shape)


def _received(request: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a request, its conditions as they were before they were said in JSON."""
    cond = request.get("cond") or {}
    if _FITTED not in cond:
        return request
    return request | {"cond": Fitted((name, torch.tensor(rows)) for name, rows in cond[_FITTED].items())}


def _plain(name: str, value: Any) -> Any:
    """Return a value as JSON can say it."""
    if isinstance(value, Fitted):
        return {_FITTED: {key: part.tolist() for key, part in value.items()}}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(f"{name}.{key}", part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(name, part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{name} is a {type(value).__name__}, which cannot be sent to other processes; give plain values.")
