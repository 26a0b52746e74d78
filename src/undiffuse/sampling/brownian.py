r"""One Brownian path for every number of steps: the noise of a step as the increment of a fixed path.

With `path=True` a stochastic solver draws no noise per step. A seed has one Brownian path W, and the step from t to s
gets z = (W(c_s) - W(c_t)) / sqrt(c_s - c_t): standard normal and independent between steps, as before, but runs of
different numbers of steps now follow the same path and converge to the same sample.

The clock is c = (alpha / sigma)^(2 tau^2), in which the noise of the exact SDE step of temperature tau is an increment
times a number: sigma_s sqrt(1 - e^(-2 tau^2 h)) z. So where the mean is constant, N and 2 N steps agree exactly.

W is known at the two ends of the schedule and halved by Brownian bridges, keyed by their place in the tree. The tree
halves the range of half log-SNR 16 times, and times are rounded to its leaves for W alone; the step's own clock is that
of the leaves, so that the law is exact. The plan holds which nodes a step combines; nothing is stored between steps.

Source: Levy's construction; the virtual Brownian tree of Li et al. 2020, arXiv:2001.01328, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.schedules import Schedule
from undiffuse.sampling.plan import AffineStage, Stage

STREAM = "path"
_DEPTH = 16  # 65536 leaves: a schedule's 20 nats of half log-SNR in pieces of 0.0003
_BLOCK = 1 << 20  # numbers drawn at once

Nodes = dict[int, float]


def check_path(path: bool, stochastic: bool) -> None:
    """Refuse a path where there is no noise.

    Raises:
        ValueError: `path` with a deterministic solver.
    """
    if path and not stochastic:
        raise ValueError("path=True is about the noise of the steps; this solver draws none. Leave it out.")


def on_path(stages: Iterable[Stage], schedule: Schedule, grid: Tensor, tau: float) -> tuple[Stage, ...]:
    """Return the stages with noise from the Brownian path in the clock (alpha / sigma)^(2 tau^2).

    Raises:
        PlanError: The grid has times of its own per element, or two times share a leaf of the tree.
    """
    if grid.ndim != 1:
        raise PlanError("path=True needs times shared by the batch; this grid has times per element. Use path=False.")
    tree = _Tree(schedule, tau)
    steps = list(pairwise(tree.leaves(schedule.half_logsnr(grid))))
    return tuple(
        replace(stage, path=_increment(*steps[stage.step], tree))
        if isinstance(stage, AffineStage) and stage.noise
        else stage
        for stage in stages
    )


def path_normal(path: tuple[tuple[int, ...], Tensor], noise: NoiseSource, shape: tuple[int, ...], dtype: Any) -> Tensor:
    """Return the standard normals (B, *shape) that a step's nodes and weights say."""
    nodes, weights = path
    block = getattr(noise, "normal_block", None)
    if block is None:
        each = zip(nodes, weights.tolist(), strict=True)
        shares = [weight * noise.normal(STREAM, node, shape, dtype) for node, weight in each]
    else:
        rows = max(1, _BLOCK // (math.prod(shape) * len(noise.items)))  # type: ignore[attr-defined]
        parts = (
            (weights[i : i + rows], block(STREAM, nodes[i : i + rows], shape, dtype))
            for i in range(0, len(nodes), rows)
        )
        shares = [torch.tensordot(weight.to(part), part, dims=1) for weight, part in parts]
    return sum(shares[1:], start=shares[0])


class _Tree:
    """Where the path is known: nodes of the tree over half log-SNR, with their clock.

    Node 0 is the value at the beginning, node 1 the increment to the end, and node 2^d + j halves interval j of level d
    (from 1): the one of level 1 is the middle.
    """

    def __init__(self, schedule: Schedule, tau: float) -> None:
        ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
        self.low, self.high = schedule.half_logsnr(ends).tolist()
        self._known: dict[int, Nodes] = {}  # each time is the end of a step and the start of the next
        self.power = 2 * min(tau, 2.0) ** 2  # any rising clock has the same law; hotter ones would overflow

    def leaves(self, half_logsnr: Tensor) -> list[int]:
        """Return the leaf of each time, 0 .. 2^16; -1 before the beginning, at alpha = 0 or above t_max."""
        place = (half_logsnr - self.low) / (self.high - self.low) * 2**_DEPTH
        return [-1 if p < -0.5 else round(p) for p in place.clamp(-1, 2**_DEPTH).tolist()]

    def clock(self, leaf: int) -> float:
        """Return c at a leaf; 0 before the beginning, where the signal is."""
        return 0.0 if leaf < 0 else math.exp(self.power * (self.low + (self.high - self.low) * leaf / 2**_DEPTH))

    def value(self, leaf: int) -> Nodes:
        """Return W at a leaf as weights of the nodes' normals."""
        if leaf not in self._known:
            self._known[leaf] = self._value(leaf) if leaf >= 0 else {}
        return self._known[leaf]

    def _value(self, leaf: int) -> Nodes:
        shares, found = {leaf: 1.0}, {}
        for left, middle, right, node in reversed(self._way_down(leaf)):
            share = shares.pop(middle, 0.0)
            start, now, end = self.clock(left), self.clock(middle), self.clock(right)
            ahead = (now - start) / (end - start)
            shares[left] = shares.get(left, 0.0) + share * (1 - ahead)
            shares[right] = shares.get(right, 0.0) + share * ahead
            found[node] = share * math.sqrt((now - start) * (end - now) / (end - start))
        first, last = self.clock(0), self.clock(2**_DEPTH)
        found[0] = sum(shares.values()) * math.sqrt(first)
        found[1] = shares.get(2**_DEPTH, 0.0) * math.sqrt(last - first)
        return found

    def _way_down(self, leaf: int) -> list[tuple[int, int, int, int]]:
        """Return (left, middle, right, node) of the intervals that are halved until `leaf` is an end."""
        left, right, way = 0, 2**_DEPTH, []
        level, index = 1, 0
        while leaf not in (left, right):
            middle = (left + right) // 2
            way.append((left, middle, right, 2**level + index))
            left, right, index = (left, middle, 2 * index) if leaf <= middle else (middle, right, 2 * index + 1)
            level += 1
        return way


def _increment(start: int, end: int, tree: _Tree) -> tuple[tuple[int, ...], Tensor]:
    """Return nodes and weights of the normalised increment between two leaves."""
    span = tree.clock(end) - tree.clock(start)
    if not span > 0:
        raise PlanError(
            f"two times of the grid fall into leaf {start} of the {2**_DEPTH} of a Brownian path; take fewer steps, or "
            "path=False."
        )
    weights = dict(tree.value(end))
    for node, weight in tree.value(start).items():
        weights[node] = weights.get(node, 0.0) - weight
    return tuple(weights), torch.tensor(list(weights.values()), dtype=torch.float64) / math.sqrt(span)
