"""Plans of solvers that ask twice per step: a predictor to s, then a corrector that also knows the answer there."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.plan import AffineStage, Plan, Renoise, Stage, row_time
from undiffuse.sampling.solver import Columns, affine_stages

Raise = tuple[GaussianProcess, Tensor, float]


def two_stage_plan(
    grid: Tensor,
    predictor: Columns,
    *,
    start: Tensor,
    first: Tensor,
    state: Tensor,
    second: Tensor,
    single: Tensor | None = None,
    raise_from: Raise | None = None,
    noise: Tensor | None = None,
) -> Plan:
    """Lay out x_s = start x_t + state x_predicted + first D_t + second D_s + noise z after the predictor's step.

    Steps to s = 0, where the second answer would be the state itself, end with the predictor, as do elements
    marked in `single`.

    Args:
        grid: (K+1,) or (K+1, B, F).
        predictor: First stage.
        start, first, state, second: Coefficients of the second stage, (K,) or (K, B, F).
        single: Elements that take the predictor alone.
        raise_from: (process, times after churn, size of the noise): renoise entries before the steps.
        noise: Standard deviation of the second stage's noise, 0 where the predictor is alone; None for none.
    """
    t, s = grid[:-1], grid[1:]
    alone = (s == 0) | (s == t)
    alone = alone if single is None else alone | single
    keep = [torch.where(alone, 0.0, c) for c in (start, first, second)]
    state = torch.where(alone, 1.0, state)
    entries: list[Stage | Renoise] = []
    for k, stage in enumerate(affine_stages(predictor, grid)):
        stage = cast(AffineStage, stage)
        if raise_from is not None and bool((raise_from[1][k] > t[k]).any()):
            entries.append(_renoise(k, t[k], *raise_from))
            stage = replace(stage, t=row_time(raise_from[1][k]))
        if bool(alone[k].all()):
            entries.append(stage)
            continue
        c_start, c_first, c_second, c_state = (_number(c[k]) for c in (*keep, state))
        entries.append(replace(stage, closes=False))
        entries.append(
            AffineStage(
                step=k,
                t=stage.s,
                s=stage.s,
                frozen=stage.frozen,
                start=c_start,
                state=c_state,
                means=((c_second, c_first),),
                noise=None if noise is None else _number(noise[k]),
            )
        )
    return Plan(tuple(entries), grid)


def _renoise(k: int, t: Tensor, process: GaussianProcess, raised: Tensor, size: float) -> Renoise:
    scale, std = process.forward_kernel(t, raised[k])
    return Renoise(step=k, t=row_time(t), s=row_time(raised[k]), scale=_number(scale), std=_number(size * std))  # type: ignore[arg-type]


def _number(c: Tensor) -> float | Tensor:
    return float(c) if c.ndim == 0 else c
