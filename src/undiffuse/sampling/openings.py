r"""When and where the masks of a batch open: everything about first-hitting sampling that no network is asked for.

With n masks left at time t, the next one opens (going down) at tau with P(tau <= s) = ((1 - a_s) / (1 - a_t))^n,

    tau = a^{-1}(1 - u^{1/n} (1 - a_t)),

at a place drawn uniformly among the n. With fewer evaluations than masks, several openings share one.

Source: Zheng et al. 2024, arXiv:2409.02908.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess

Groups = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Openings:
    """When and where the masks of a batch open.

    Args:
        times: Time of each opening, float64 (B, L), falling; entries past a row's masks have no meaning.
        order: Places in the order of opening, int64 (B, L); those of the masks come first.
        count: Number of masks per row, int64 (B,).
        bounds: Number of masks opened before each evaluation, int64 (K + 1, B).
        widths: The largest number of masks that a row opens in each evaluation.
    """

    times: Tensor
    order: Tensor
    count: Tensor
    bounds: Tensor
    widths: list[int]

    @property
    def evaluations(self) -> int:
        """Evaluations of the row with the most masks, K."""
        return len(self.widths)

    @property
    def grid(self) -> Tensor:
        """Time of each evaluation, that of its first opening, float64 (K + 1, B, 1); 0 where a row is done."""
        first = torch.cat((self.times, self.times.new_zeros(len(self.times), 1)), dim=1).gather(1, self.bounds.T)
        return first.masked_fill(self.count[:, None] == self.bounds.T, 0.0).T[..., None]

    def index(self, step: int) -> Tensor:
        """Number of each opening that belongs to evaluation `step`, int64 (B, G); those past a row's share do not."""
        return self.bounds[step][:, None] + torch.arange(self.widths[step], device=self.order.device)

    def active(self, step: int) -> Tensor:
        """Whether each of `index` does belong to the evaluation, bool (B, G)."""
        return self.index(step) < self.bounds[step + 1][:, None]

    def positions(self, step: int) -> Tensor:
        """Places that open, int64 (B, G). Past its own share a row names those that follow, never one twice."""
        return self.order.gather(1, self.index(step) % self.order.shape[1])

    def weights(self, step: int, order: int, clock: Literal["count", "time"]) -> tuple[Tensor, ...]:
        """Return Lagrange weights with which earlier answers enter the openings of an evaluation.

        Entry m - 1 is for m remembered answers, newest first, float64 (B, G, m). They are weights of differences to
        the newest answer, and 0 for the first opening of a row's evaluation.

        Args:
            step: Number of the evaluation.
            order: Answers used, with the newest; the first evaluation has no other, the second one.
            clock: What the answers are functions of: the number of masks left, or the time.
        """
        if order == 1 or self.widths[step] == 1:
            return ()
        nodes = [self._clock(self.bounds[step - age][:, None], clock) for age in range(min(order, step + 1))]
        at = self._clock(self.index(step), clock)
        return tuple(_lagrange(at, nodes[: used + 1]) for used in range(1, len(nodes)))

    def _clock(self, index: Tensor, clock: Literal["count", "time"]) -> Tensor:
        """Return the time of openings, or what it is counted by: they fall by 1 each."""
        return -index.double() if clock == "count" else self.times.gather(1, index.clamp(max=self.times.shape[1] - 1))


def schedule_openings(
    process: CategoricalProcess, x: Tensor, noise: NoiseSource, budget: int, groups: Groups = "linear"
) -> Openings:
    """Draw the order and the times in which the masks of `x` (B, ...) open, in at most `budget` evaluations per row."""
    masked = process.is_mask(x).flatten(1)
    count = masked.sum(1)
    order = noise.uniform("order", 0, tuple(x.shape[1:])).flatten(1).masked_fill(~masked, 2.0).argsort(1)
    bounds = group_bounds(count, budget, groups)
    times = opening_times(process, count, noise.uniform("time", 0, (masked.shape[1],)))
    widths: list[int] = bounds.diff(dim=0).amax(1).tolist()
    return Openings(times, order, count, bounds, widths)


def opening_times(process: CategoricalProcess, count: Tensor, uniform: Tensor) -> Tensor:
    """Return the times at which `count` (B,) masks open one after the other, from t = 1 down.

    Args:
        process: Absorbing process.
        count: Number of masks per row, int64 (B,).
        uniform: Float64 (B, L).

    Returns:
        float64 (B, L), falling along each row; entries from `count` on have no meaning.
    """
    left = (count[:, None] - torch.arange(uniform.shape[1], device=uniform.device)).clamp(min=1)
    shrink = torch.log1p(-uniform) / left  # 1 - u is uniform too, and never 0
    drop = process.keep.drop(torch.ones((), dtype=torch.float64)) * shrink.cumsum(1).exp()
    return process.keep.time(1.0 - drop)


def group_bounds(count: Tensor, budget: int, groups: Groups = "linear") -> Tensor:
    """Return how many of `count` (B,) openings precede each evaluation, int64 (K + 1, B); every one opens at least one.

    With calls = min(budget, count): "linear" gives opening j (from 0) to evaluation floor(j calls / count), so
    evaluation k begins with opening ceil(k count / calls). "cosine" opens few at first, when least is known, and many
    in the end: count (1 - cos(pi k / (2 calls))) before evaluation k, rounded.

    Source of the cosine: Chang et al. 2022 (MaskGIT), section 3.3, arXiv:2202.04200.
    """
    calls = count.clamp(max=budget)
    k = torch.arange(int(calls.max()) + 1, device=count.device)[:, None]
    if groups == "linear":
        begins = -((-k * count) // calls.clamp(min=1))
    else:
        angle = k.double() / calls.clamp(min=1) * (math.pi / 2)
        spare = (count * (1 - angle.cos())).round().long() - k  # beyond one each; may neither shrink nor run out
        begins = spare.clamp(min=0).cummax(0).values.minimum(count - calls) + k
    return torch.where(k < calls, begins, count)


def _lagrange(at: Tensor, nodes: list[Tensor]) -> Tensor:
    """Return the weights at `at` (B, G) of the nodes (B, 1) after the first, (B, G, m); 0 where nodes coincide."""
    weights = []
    for j, node in enumerate(nodes[1:], 1):
        others = [other for i, other in enumerate(nodes) if i != j]
        above = torch.stack([at - other for other in others]).prod(0)
        below = torch.stack([node - other for other in others]).prod(0)
        weights.append(torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below)))
    return torch.stack(weights, dim=-1)
