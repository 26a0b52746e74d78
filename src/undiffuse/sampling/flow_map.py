"""Sampling flow maps: jump along a grid, one evaluation per jump."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.noise import NoiseSource
from undiffuse.process.grids import check_grid
from undiffuse.sampling.loop import SampleResult
from undiffuse.sampling.plan import row_time


@torch.no_grad()
def sample_flow_map(
    flow_map: FlowMap,
    *,
    noise: NoiseSource,
    shape: tuple[int, ...],
    grid: Tensor,
    cond: dict[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
) -> SampleResult:
    """Apply x <- Phi(x, t_k, t_{k+1}) along `grid`; a grid (1, 0) is one-step generation.

    Args:
        flow_map: Any flow map.
        noise: Source of the first state; its items are the batch.
        shape: Shape of one item, model units.
        grid: Falling times, (K+1,) or (K+1, B or 1, F).
        cond: Conditions, embedded once here.
        dtype: Of the state.

    Raises:
        PlanError: The grid is not one.
    """
    x = flow_map.process.prior(noise.normal("init", 0, shape, dtype))
    times = [row_time(row) for row in check_grid(grid, tuple(x.shape))]
    embedded = flow_map.embed(cond, len(x))
    for t, s in pairwise(times):
        x = flow_map(x, t, s, embedded)
    return SampleResult(x, len(times) - 1)
