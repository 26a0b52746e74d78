"""Sampling flow maps: jump along a grid, one evaluation per jump.

From t_k the map jumps to a level below that of t_{k+1}, and fresh noise brings the state up to t_{k+1}. A share `gamma`
of the noise of t_{k+1} is fresh, in sigma / alpha:

    rho_between = sqrt(1 - gamma^2) rho_{k+1},    x <- renoise(Phi(x, t_k, t_between), t_between -> t_{k+1}).

gamma = 0 follows the ODE; gamma = 1 jumps to clean data each time, which is multistep consistency sampling.

Source: Kim et al. 2024, "Consistency trajectory models", arXiv:2310.02279, algorithm 3; Song et al. 2023, "Consistency
models", arXiv:2303.01469, algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.grids import End, check_grid, make_grid
from undiffuse.process.times import Time
from undiffuse.sampling.loop import SampleResult, check_result
from undiffuse.sampling.plan import row_time
from undiffuse.sampling.solver import Memory, Solver


@dataclass(frozen=True)
class Jumps(Solver):
    """The rule of `sample_flow_map`, as a solver by name; a denoiser alone cannot follow it.

    Args:
        gamma: Share of fresh noise after each jump, 0 to 1.

    Raises:
        ValueError: `gamma` is out of range.
    """

    gamma: float = 0.0
    needs: ClassVar[str] = "a flow map"

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma} is the share of fresh noise and must lie in [0, 1].")

    @property
    def stochastic(self) -> bool:
        """Whether jumps are followed by fresh noise."""
        return self.gamma > 0

    def plan(self, process: Any, grid: Tensor) -> Any:
        """Refuse: the steps of a flow map are no rule over posterior means.

        Raises:
            PlanError: Always.
        """
        raise PlanError(
            "this solver jumps with a flow map, and a denoiser was given; use sample_flow_map, or another solver such "
            "as dpm++2m."
        )

    def step(self, stage: Any, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Never reached; see `plan`."""
        raise NotImplementedError

    def check(self, flow_map: FlowMap) -> None:
        """Refuse jumps that the map was not trained for.

        Raises:
            PlanError: They are not.
        """
        if flow_map.spans == "clean" and self.gamma < 1:
            raise PlanError(
                f"gamma={self.gamma} needs jumps between any two times, but this flow map was trained for jumps to "
                f"clean data; use solver=consistency (gamma=1)."
            )
        if flow_map.spans == "steps" and self.gamma > 0:
            raise PlanError(
                f"gamma={self.gamma} jumps below the times of the grid, but this flow map was trained for the steps of "
                f"a grid alone; use solver=flow-map (gamma=0)."
            )


def default_solver(flow_map: FlowMap) -> str:
    """Return the name of the solver that fits what a flow map was trained for."""
    return "consistency" if flow_map.spans == "clean" else "flow-map"


def jump_grid(flow_map: FlowMap, steps: int = 1, shape: Any = "t") -> Tensor:
    """Return `steps` jumps from the map's start to its end, float64 (steps + 1,); shapes are those of `make_grid`."""
    end: End = "t_min" if flow_map.end else "zero"
    grid = make_grid(flow_map.process.schedule, steps, shape, end, flow_map.start)
    if flow_map.end:
        grid[-1] = flow_map.end
    return check_grid(grid)


@torch.no_grad()
def sample_flow_map(
    flow_map: FlowMap,
    *,
    noise: NoiseSource,
    shape: tuple[int, ...],
    grid: Tensor,
    gamma: float = 0.0,
    cond: dict[str, Tensor] | None = None,
    start: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    trajectory: bool = False,
) -> SampleResult:
    """Jump along `grid`; a grid (1, 0) is one-step generation.

    Args:
        flow_map: Any flow map.
        noise: Source of the first state and of fresh noise; its items are the batch.
        shape: Shape of one item, model units.
        grid: Falling times, (K+1,) or (K+1, B or 1, F).
        gamma: Share of fresh noise after each jump but the last.
        cond: Conditions, embedded once here.
        start: State at the grid's first times (B, *), instead of the prior.
        dtype: Of the state.
        trajectory: Keep the state at every grid time.

    Raises:
        PlanError: The grid is not one, or the map was not trained for such jumps.
        UndiffuseError: The result is not finite.
    """
    Jumps(gamma).check(flow_map)
    process = flow_map.process
    drawn = noise.normal("init", 0, shape, dtype) if start is None else start.to(dtype)
    times = [row_time(row) for row in check_grid(grid, tuple(drawn.shape))]
    x = process.prior(drawn, times[0]) if start is None else drawn
    embedded = flow_map.embed(cond, len(x))
    states = [x]
    for k, (t, s) in enumerate(pairwise(times)):
        last = k == len(times) - 2
        between = s if last or not gamma else _below(flow_map, s, gamma)
        x = flow_map(x, t, between, embedded)
        if between is not s:
            x = process.renoise(x, between, s, noise.normal("step", k, shape, dtype))
        states.append(x)
    check_result(x, process, len(times) - 1)
    return SampleResult(x, len(times) - 1, torch.stack(states) if trajectory else None)


def _below(flow_map: FlowMap, s: Time, gamma: float) -> Time:
    """Return the time whose level is sqrt(1 - gamma^2) times that of `s`, at least the map's end."""
    if gamma == 1:
        return flow_map.end if not isinstance(s, Tensor) else torch.full_like(s, flow_map.end)
    schedule = flow_map.process.schedule
    level = schedule.half_logsnr(torch.as_tensor(s, dtype=torch.float64)) - 0.5 * math.log1p(-(gamma**2))
    time = schedule.time(level).clamp(min=flow_map.end)
    return time if isinstance(s, Tensor) else float(time)
