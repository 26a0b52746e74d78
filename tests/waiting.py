"""Finds where code waits for an accelerator, on a machine without one.

Tensors are put on the "meta" device, which has no numbers: whatever needs one on the host fails there. A mode of torch
finds the rest, copies from the host that wait for all that was launched before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

META = torch.device("meta")
_READS = frozenset(
    (
        *("item", "tolist", "cpu", "numpy", "nonzero", "equal", "allclose", "unique", "bincount", "masked_select"),
        *("__bool__", "__float__", "__int__", "__index__", "__contains__"),
    )
)
_MAKES = frozenset(("tensor", "as_tensor", "asarray", "from_numpy"))


class WaitingError(AssertionError):
    """The host would wait for the device here."""


class NoWaiting(TorchFunctionMode):
    """Inside, an operation that makes the host wait for a tensor on the device raises `WaitingError`.

    Args:
        device: "meta"; or "cpu", for what must have numbers, where reads alone are noticed.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name in _READS and any(map(self._holds, args)):
            raise WaitingError(f"{name} reads from the device")
        if name in ("__getitem__", "__setitem__") and self._holds(args[0]):
            self._check_index(args[1])
        result = func(*args, **kwargs)
        if self.device != "cpu" and self._holds(result):
            self._check_copy(name, args, kwargs)
        return result

    def _holds(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.device.type == self.device

    def _check_index(self, index: Any) -> None:
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, Tensor) and part.ndim:
                if part.dtype == torch.bool:
                    raise WaitingError("a mask as index counts its ones")
                if not self._holds(part):
                    raise WaitingError("an index on the host is copied")

    def _check_copy(self, name: str, args: tuple, kwargs: dict) -> None:
        if name in _MAKES and not self._holds(args[0]):
            raise WaitingError(f"torch.{name} copies from the host")
        if name in ("to", "copy_"):
            source = args[0] if name == "to" else args[1]
            if not self._holds(source) and source.ndim and not kwargs.get("non_blocking"):
                raise WaitingError(f"{name} copies from the host without non_blocking")
