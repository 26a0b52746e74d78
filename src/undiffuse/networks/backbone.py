"""`Backbone`: what every network has in common. Networks know nothing of schedules, samplers or losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.networks.conditioners import Conditioners
from undiffuse.networks.dropout import set_dropout_generator
from undiffuse.networks.embedded import Embedded


class Backbone(nn.Module):
    """Base of all networks: (x, noise level, condition) -> named heads.

    Args:
        conditioners: Conditioners by name; `conditioners.embed` makes the `cond` that `forward` takes.
        time_dependent: Whether the noise level is read; if not, it may be None and is ignored.

    Attributes:
        options: The options the network was built from, kept for saving; None where built by hand.
    """

    def __init__(self, conditioners: Conditioners, *, time_dependent: bool = True) -> None:
        super().__init__()
        self.conditioners = conditioners
        self.time_dependent = time_dependent
        self.options: Any = None
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

    @property
    def dropout_generator(self) -> torch.Generator | None:
        """Generator that dropout draws from; must be set for training with dropout."""
        return self._dropout_generator

    @dropout_generator.setter
    def dropout_generator(self, generator: torch.Generator | None) -> None:
        self._dropout_generator = generator
        set_dropout_generator(self, generator)

    def condition_vector(self, cond: Embedded | None, batch: int) -> Tensor | None:
        """Return the vector (B, E) of `cond`, the nulls where `cond` is None, or None without conditioners.

        Raises:
            ValueError: Another batch, or parts that this network would ignore.
        """
        if cond is None:
            return self.conditioners.embed(None, batch).vector
        ignored = [name for name in ("tokens", "maps") if getattr(cond, name) is not None]
        if cond.vector is not None and not len(self.conditioners):
            ignored.append("vector")
        if ignored:
            raise ValueError(
                f"{type(self).__name__} does not read the condition's {', '.join(ignored)}; "
                "embed with its own conditioners."
            )
        if cond.vector is None and len(self.conditioners):
            raise ValueError(
                "the embedded condition holds no vector; embed with this network's conditioners, or give None."
            )
        if cond.batch not in (None, batch):
            raise ValueError(
                f"the condition has {cond.batch} rows but x has {batch}; use cond.expand({batch}) or embed anew."
            )
        return cond.vector

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
