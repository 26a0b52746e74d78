"""`Backbone`: what every network has in common. Networks know nothing of schedules, samplers or losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.networks.compilation import call_of, compile_blocks
from undiffuse.networks.conditioners import Conditioners
from undiffuse.networks.dropout import draws_in_training, set_dropout_generator
from undiffuse.networks.embedded import Embedded
from undiffuse.networks.embeddings import ContextMLP
from undiffuse.networks.recomputation import recomputed


class Backbone(nn.Module):
    """Base of all networks: (x, noise level, condition) -> named heads.

    Args:
        conditioners: Conditioners by name; `conditioners.embed` makes the `cond` that `forward` takes.
        time_dependent: Whether the noise level is read; if not, it may be None and is ignored.

    Attributes:
        options: The options the network was built from, kept for saving; None where built by hand.
        recomputes: Whether the backward pass computes the blocks' activations again, instead of keeping them.
        self_conditioned: Whether the network reads `Embedded.estimate`.
        learns_variance: Whether there is a head "variance", of the shape of "out"; see `sampling.learned_variance`.
        counts_steps: Whether the noise level is told as the number of a training step, as diffusers counts them.
        reads_vector: Whether `Embedded.vector` is read where no conditioner fills it; flow maps tell their second time
            in it.
    """

    self_conditioned: bool = False
    learns_variance: bool = False
    counts_steps: bool = False
    reads_vector: bool = False

    def __init__(self, conditioners: Conditioners, *, time_dependent: bool = True) -> None:
        super().__init__()
        self.conditioners = conditioners
        self.time_dependent = time_dependent
        self.options: Any = None
        self.recomputes = False
        self._dropout_generator: torch.Generator | None = None

    def forward(self, x: Tensor, noise_level: Tensor | None, cond: Embedded | None = None) -> dict[str, Tensor]:
        """Return the heads by name; "out" has the shape of `x` (tokens: (B, L, K) logits).

        Args:
            x: (B, ...).
            noise_level: Float (B,), or (B, F) with one level per element where the network allows it. Any
                monotone function of the noise that spans one to a few units: log(sigma / alpha) / 4, or time.
            cond: Embedded conditions of the same batch; None stands for every condition's null.

        Raises:
            ValueError: Shapes that do not fit.
        """
        raise NotImplementedError

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """Named blocks in order of execution, each returning one tensor; hooks address them by these names."""
        raise NotImplementedError

    def returns_tokens(self, name: str) -> bool:
        """Whether the block called `name` returns tokens (B, L, width) where others return maps (B, width, *)."""
        return False

    def run(self, block: nn.Module, *args: Any) -> Tensor:
        """Return block(*args): compiled where the block is, recomputed in the backward pass where `recomputes`."""
        call = call_of(block)
        if self.recomputes and torch.is_grad_enabled():
            return recomputed(call, args, self._dropout_generator if draws_in_training(block) else None)
        return call(*args)

    def recompute(self, on: bool) -> None:
        """Let the backward pass compute the blocks' activations again, or keep them."""
        self.recomputes = on

    def compile_network(self) -> bool:
        """Compile the blocks; return whether that is possible here. See `compile_blocks`."""
        return compile_blocks(self)

    @property
    def context_dim(self) -> int:
        """Size of `Embedded.vector`, which shifts the context of every block.

        Raises:
            ValueError: The network has no context.
        """
        context = getattr(self, "context", None)
        if not isinstance(context, ContextMLP):
            raise ValueError(f"{type(self).__name__} has no context that a vector could shift.")
        return context.second.in_features

    @property
    def draws_in_training(self) -> bool:
        """Whether training needs a `dropout_generator`."""
        return draws_in_training(self)

    @property
    def dropout_generator(self) -> torch.Generator | None:
        """Generator that dropout and token routing draw from; must be set for training with either."""
        return self._dropout_generator

    @dropout_generator.setter
    def dropout_generator(self, generator: torch.Generator | None) -> None:
        self._dropout_generator = generator
        set_dropout_generator(self, generator)

    def conditions(self, cond: Embedded | None, batch: int) -> Embedded:
        """Return `cond`, checked; the nulls of all conditions where it is None.

        Raises:
            ValueError: Another batch, parts that this network would ignore, or parts that it misses.
        """
        if cond is None:
            return self.conditioners.embed(None, batch)
        held = {name for name in ("vector", "tokens", "maps") if getattr(cond, name) is not None}
        read = self.conditioners.fields
        if held - read - ({"vector"} if self.reads_vector else set()):
            raise ValueError(
                f"{type(self).__name__} does not read the condition's {', '.join(sorted(held - read))}; "
                "embed with its own conditioners."
            )
        if read - held:
            raise ValueError(
                f"the embedded condition holds no {', '.join(sorted(read - held))}; embed with this network's "
                "conditioners, or give None."
            )
        if cond.estimate is not None and not self.self_conditioned:
            raise ValueError(
                f"this {type(self).__name__} does not read an estimate of the data; build it with self_condition=True."
            )
        if cond.batch not in (None, batch):
            raise ValueError(
                f"the condition has {cond.batch} rows but x has {batch}; use cond.expand({batch}) or embed anew."
            )
        return cond

    def add_estimate(self, x: Tensor, cond: Embedded, axis: int) -> Tensor:
        """Return `x` with the estimate of x_0 (zeros for none) behind it on `axis`; `x` where it is not read.

        Raises:
            ValueError: The estimate has another shape than `x`.
        """
        if not self.self_conditioned:
            return x
        estimate = torch.zeros_like(x) if cond.estimate is None else cond.estimate.to(x.dtype)
        if estimate.shape != x.shape:
            raise ValueError(f"the estimate has shape {tuple(estimate.shape)}; expected that of x, {tuple(x.shape)}.")
        return torch.cat([x, estimate], dim=axis)

    def noise_level_for(self, level: Tensor | None, batch: int, elements: int | None) -> Tensor | None:
        """Check a noise level against (B,) and, where `elements` is given, (B, elements); None where time-free."""
        if not self.time_dependent:
            return None
        allowed = [(batch,)] if elements is None else [(batch,), (batch, elements)]
        if level is None or tuple(level.shape) not in allowed:
            given = "None" if level is None else f"of shape {tuple(level.shape)}"
            raise ValueError(
                f"the noise level is {given}; {type(self).__name__} expects {' or '.join(map(str, allowed))}."
            )
        return level
