"""Regional compilation: `torch.compile` for the repeated blocks of a network, each kind of block once.

The network itself, its names and its weights stay as they are. Where derivatives or hooks need the blocks' own code
(`math_attention`, `capture`, `edit`), it runs instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import nn

from undiffuse.networks.dropout import draws_in_training

_EAGER: ContextVar[bool] = ContextVar("undiffuse_eager_blocks", default=False)
_VARIANTS = 64  # a U-Net has a dozen shapes of one block, times whole and odd batches


@contextmanager
def eager_blocks() -> Iterator[None]:
    """Let compiled blocks run their own code while the body runs."""
    token = _EAGER.set(True)
    try:
        yield
    finally:
        _EAGER.reset(token)


def call_of(block: nn.Module) -> Callable[..., Any]:
    """Return what to call for a block: the block, which may be compiled, or inside `eager_blocks` its own code."""
    # Code that is being compiled cannot read context variables.
    return block._call_impl if not torch.compiler.is_compiling() and _EAGER.get() else block


def compile_blocks(network: nn.Module) -> bool:
    """Compile the blocks of a network at their first call, and return whether that is possible here.

    Hooks set by `undiffuse.networks.hooks` act as ever; hooks set by other means must be there before.

    Warns:
        UserWarning: It is not possible, and why; the network goes on as it is.
    """
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    obstacle = _obstacle(device.type)
    if obstacle:
        warnings.warn(f"compiling is not possible here, so the network runs as it is: {obstacle}", stacklevel=2)
        return False
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _VARIANTS)
    for block in getattr(network, "blocks", {}).values():
        if any(block.children()):  # a single layer gains nothing
            block.compile(fullgraph=not draws_in_training(block))  # a generator of its own breaks the graph
    return True


@cache
def _obstacle(device: str) -> str:
    """Return why nothing can be compiled for a kind of device, "" where it can: by trying."""
    try:
        torch.compile(_probe)(torch.zeros(8, device=device))
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return f"{first} A C++ compiler (on CUDA: Triton) is needed."
    return ""


def _probe(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1.0
