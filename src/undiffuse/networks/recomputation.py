"""Gradient checkpointing: keep a block's inputs only, and compute its inside again in the backward pass.

Costs one more forward pass and saves the memory of the activations; gradients are the same bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(
    call: Callable[..., Any], args: tuple[Any, ...], generator: torch.Generator | None, *, keep_global: bool = False
) -> Any:
    """Return call(*args), whose inside the backward pass computes again.

    Args:
        call: Draws from `generator`, and with `keep_global` from the global one; the second time it draws the same
            numbers.
        args: Its arguments.
        generator: Where the network's layers draw from; None where they do not.
        keep_global: Rewind the global generators too, for networks that are not ours.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
    """
    again = nullcontext() if generator is None else _Rewound(generator)
    return checkpoint(
        call, *args, use_reentrant=False, preserve_rng_state=keep_global, context_fn=lambda: (nullcontext(), again)
    )


class _Rewound:
    """Inside, a generator stands where it stood when this was made; afterwards where it stood before."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.then = generator, generator.get_state()

    def __enter__(self) -> None:
        self.now = self.generator.get_state()
        self.generator.set_state(self.then)

    def __exit__(self, *raised: object) -> None:
        self.generator.set_state(self.now)
