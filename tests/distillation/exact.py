"""Exact flow maps for the tests of objectives, and a flow map with parameters that is exact where they are 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.oracles.continuous import normals, process_of
from undiffuse.denoisers.flow_map import FlowMap, GaussianFlowMap, shared_times
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.distillation.objective import FlowMapObjective
from undiffuse.noise import KeyedNoise
from undiffuse.process.times import align
from undiffuse.training.objectives import Corrupted

SCHEDULES = ("rf", "vp", "trig", "cosine")


def law() -> tuple[Tensor, Tensor]:
    """Mean (3,) and covariance (3, 3) of the data."""
    root = normals(3, 3, seed=2)
    return normals(3, seed=3), root @ root.T / 3 + 0.1 * torch.eye(3, dtype=torch.float64)


def points(n: int, seed: int = 5) -> Tensor:
    """Draws (n, 3) of that law."""
    mean, cov = law()
    return mean + normals(n, 3, seed=seed) @ torch.linalg.cholesky(cov).T


def exact_map(schedule: str) -> GaussianFlowMap:
    return GaussianFlowMap(*law(), process_of(schedule))


def exact_denoiser(schedule: str) -> GaussianDenoiser:
    return GaussianDenoiser(*law(), process_of(schedule))


class Tilted(FlowMap):
    """Another map plus parameters times features of (x, t, s), in the average velocity. It ends where that one ends."""

    def __init__(self, inner: FlowMap) -> None:
        super().__init__()
        self.inner = inner
        self.process, self.start, self.end = inner.process, inner.start, inner.end
        self.tilt = nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def average_velocity(self, x: Tensor, t: Any, s: Any, cond: Any = None) -> Tensor:
        now, then = (align(shared_times(time, x), x) for time in (t, s))
        features = (torch.ones_like(x), x, now * x, (now - then) * x, torch.sin(2 * x + now))
        return self.inner.average_velocity(x, t, s) + sum(a * f for a, f in zip(self.tilt, features, strict=True))


def batch_of(objective: FlowMapObjective, held: FlowMap, n: int = 64, seed: int = 0, **batch: Any) -> Corrupted:
    """What a trainer would give the objective: one batch of n points."""
    return objective.prepare(held, {"x": points(n, seed), **batch}, KeyedNoise(seed, range(n)), n)


def expected_gradient(
    objective: FlowMapObjective, held: Tilted, batches: int = 60, n: int = 400
) -> tuple[Tensor, Tensor]:
    """Return mean and standard error (5,) of the gradient by the tilt, over independent batches."""
    found = []
    for number in range(batches):
        noise = KeyedNoise(7, range(number * n, (number + 1) * n))
        corrupted = objective.prepare(held, {"x": points(n, 100 + number)}, noise, n)
        loss = objective.score(held, corrupted).per_sample.mean()
        found.append(torch.autograd.grad(loss, held.tilt)[0])
    gradients = torch.stack(found)
    return gradients.mean(0), gradients.std(0) / batches**0.5
