"""The exact denoiser of a small discrete distribution, by enumeration: the oracle of the discrete world."""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.denoisers.base import ExactDenoiser
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.times import Time
from undiffuse.spec import DataSpec

_ROUNDING = 1e-5  # allowance for a table that should sum to 1; float32 tables do to about 1e-7


class JointDenoiser(ExactDenoiser):
    """Exact posterior p(x0_i | x_t) when the joint law of all L tokens is a table of K^L probabilities.

    Every kind of process and every shape of time. For an absorbing one it does not depend on the time and is the
    conditional given the open tokens, also where these were never drawn but given. Costs O(B L K^L), in float64.

    Args:
        table: Probabilities (K,) * L that sum to 1.
        process: Categorical process with K classes.
        spec: What one item is.

    Raises:
        ValueError: The table is no distribution over K classes at each position.
    """

    process: CategoricalProcess

    def __init__(self, table: Tensor, process: CategoricalProcess, *, spec: DataSpec | None = None) -> None:
        super().__init__()
        if table.ndim == 0 or set(table.shape) != {process.classes}:
            raise ValueError(f"the table has shape {tuple(table.shape)}; expected ({process.classes},) * length.")
        table = table.double()
        total = float(table.sum())
        if not bool((table >= 0).all()) or abs(total - 1) > _ROUNDING:
            raise ValueError(f"the table sums to {total}, or dips below 0; give probabilities.")
        self.register_buffer("table", table / total, persistent=False)
        self.table: Tensor
        self.process = process
        self.spec = spec
        self.time_dependent = process.kind != "absorbing"

    @property
    def length(self) -> int:
        """Number of positions L."""
        return self.table.ndim

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> CategoricalPosterior:
        """Return log p(x0_i | x_t), float64 (B, L, K).

        Raises:
            ValueError: `x` is not (B, L), or shows tokens that have probability 0.
        """
        if x.ndim != 2 or x.shape[1] != self.length:
            raise ValueError(f"tokens have shape {tuple(x.shape)}; this joint has {self.length} positions: (B, L).")
        weights = self._weights(x, t)
        marginals = torch.stack([self._onto(position, weights) for position in range(self.length)], dim=1)  # (B, L, K)
        total = marginals.sum(-1, keepdim=True)
        if not bool((total > 0).all()):
            raise ValueError("the open tokens have probability 0 under this joint, so nothing follows from them.")
        return CategoricalPosterior((marginals / total).log())

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) of clean tokens (B, L): float64 (B,), in nats."""
        return self.table[tuple(x.unbind(-1))].log()

    def entropy(self) -> float:
        """Return the entropy of the joint in nats."""
        return float(-torch.xlogy(self.table, self.table).sum())

    def _weights(self, x: Tensor, t: Time) -> Tensor:
        """Return p(x_0) q(x_t | x_0) up to a factor per row, (B, K, ..., K)."""
        seen = self.process.likelihood(x, t)  # (B, L, K)
        weights = self.table.expand(len(x), *self.table.shape)
        for position in range(self.length):
            layout = [1] * self.length
            layout[position] = self.process.classes
            weights = weights * seen[:, position].reshape(len(x), *layout)
        return weights

    def _onto(self, position: int, weights: Tensor) -> Tensor:
        """Sum over all positions but one, (B, K)."""
        others = [1 + axis for axis in range(self.length) if axis != position]
        return weights.sum(others) if others else weights
