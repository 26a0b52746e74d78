r"""SNIPS: annealed Langevin dynamics of the posterior, with a step length of its own for every singular value.

In the coordinates of V, with z = V^T x_t / alpha at level S = sigma / alpha and n = sy / s the noise of a measured
coefficient, z is the clean coefficient with noise of variance S^2, and the noise of y is a part of it, or it of that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.operators.base import SVDOperator
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.plan import Plan, Renoise, Stage
from undiffuse.sampling.solver import NOTHING, Memory
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.spectral import Spectral
from undiffuse.tasks.restore.walk import first_state, grid_of, process_of, walk


@dataclass(kw_only=True)
class UpdateStage(Stage):
    """A Langevin step at the level of `t`, after which x / alpha stands at `s` as it is.

    Args:
        number: Of its noise.
    """

    number: int


@dataclass(frozen=True, kw_only=True)
class SpectralLangevin(Spectral):
    """z += c a g + sqrt(2 c a) xi with the score g of p(z | y) and a step length a for each coefficient:

    - s = 0:  g = (z0 - z) / S^2 with z0 = V^T mean, a = S^2
    - n < S:  g = (y~ - z) / (S^2 - n^2) with y~ = U^T y / s, a = S^2 - n^2
    - n > S:  g = (z0 - z) / S^2 + (y~ - z) / (n^2 - S^2), a = S^2 (1 - S^2 / n^2)

    Args:
        updates: Langevin steps at each level.
        size: c, in (0, 2): beyond, the steps overshoot.
    """

    updates: int = 5
    size: float = 0.33

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """The updates of each level, and an answer at the end.

        Raises:
            PlanError: The grid has times per element.
        """
        if grid.ndim != 1:
            raise PlanError("SNIPS takes times shared by the batch; this grid has times per element.")
        entries: list[Stage] = []
        for k, (t, s) in enumerate(pairwise(grid.tolist())):
            there = t if s == 0 else s
            for j in range(self.updates):
                last = j == self.updates - 1
                number = k * self.updates + j
                entries.append(UpdateStage(step=k, t=t, s=there if last else t, closes=last and s > 0, number=number))
            if s == 0:
                entries.append(Stage(step=k, t=t, s=0.0))
        return Plan(tuple(entries), grid)

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw the normals of an update."""
        if not isinstance(entry, UpdateStage):
            return None
        return noise.normal("langevin", entry.number, tuple(x.shape[1:]), x.dtype)

    def step(self, stage: Stage, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Move every coefficient along its score, or end with the answer."""
        if not isinstance(stage, UpdateStage):
            return post.mean, NOTHING
        assert z is not None
        alpha, sigma = cast(tuple[float, float], self.process.coefficients(stage.t, x))
        alpha_s, _ = cast(tuple[float, float], self.process.coefficients(stage.s, x))
        level = sigma / alpha
        here, clean = self.operator.Vt(x) / alpha, self.operator.Vt(post.mean)
        _, measured, ratio, told = self.coefficients(x)
        noise, aim = self.noise_std * ratio, ratio * told
        known, heard = measured & (noise < level), measured & (noise >= level)
        share = torch.where(heard, (level / torch.where(heard, noise, 1.0)) ** 2, 0.0)  # S^2 / n^2 of weak ones
        move = torch.where(known, aim - here, (1 - share) * (clean - here) + share * (aim - here))
        length = torch.where(known, level**2 - noise**2, level**2 * (1 - share))
        moved = here + self.size * move + (2 * self.size * length).sqrt() * self.operator.Vt(z)
        return alpha_s * self.operator.V(moved), NOTHING


@dataclass(frozen=True, kw_only=True)
class SNIPSRestorer(Restorer):
    """Stochastic restoration by annealed Langevin dynamics; see `SpectralLangevin`. A step is a level.

    The steps keep each level's law, but for an error that falls with `size`; what is left of the level before fades
    slowly, so that with few levels samples vary too much.

    Args:
        updates: Langevin steps at each level, an evaluation each.
        size: Length of a step, in (0, 2), in units of the coefficient's variance. 0.33 as published.
        grid: Spacing of the levels; the published ones are geometric.

    Source: Kawar, Vaksman, Elad 2021, "SNIPS: solving noisy inverse problems stochastically", arXiv:2105.14951,
        algorithm 1. Deviation: the last state is denoised.
    """

    needs: ClassVar[tuple[str, ...]] = ("svd",)
    default_steps: ClassVar[int] = 100
    updates: int = 5
    size: float = 0.33
    grid: str = "logsnr"

    def __post_init__(self) -> None:
        if self.updates < 1 or not 0 < self.size < 2:
            raise ValueError(f"updates={self.updates} must be at least 1 and size={self.size} in (0, 2).")

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down the levels."""
        # The first level must be finite, and sigma / alpha is not where alpha(1) = 0.
        highest = min(problem.t_start, process_of(problem).schedule.t_max)
        grid = grid_of(replace(problem, t_start=highest), steps, self.grid)
        solver = SpectralLangevin(
            operator=cast(SVDOperator, problem.operator),
            y=problem.y,
            noise_std=problem.noise_std,
            process=process_of(problem),
            updates=self.updates,
            size=self.size,
        )
        start = first_state(problem, noise, float(grid[0]))
        if start is None:
            start = solver.first(noise.normal("init", 0, problem.shape, problem.dtype), float(grid[0]))
        return walk(problem, noise, solver, grid, start=start)
