"""Steps of several stages: a rule in whatever the method thinks in, laid out as stages in the posterior means.

A stage of a published method reads

    x_{i+1} = start x_0 + sum_j factors_j A_j,

with A_j = by_state x_j + by_mean D_j the noise, the velocity or the mean D itself, at node j. `unfold` replaces every A
by the means met so far, so that one loop applies all of them, and a method in the noise is one in the mean with
other numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.plan import AffineStage, Coefficient, row_time


class Row(NamedTuple):
    """The state at the next node, start x_0 + sum_j factors_j A_j, oldest answer first; numbers or float64 tensors."""

    start: Coefficient
    factors: tuple[Coefficient, ...]


class Form(NamedTuple):
    """What a method calls the answer at a node: by_state x + by_mean D."""

    by_state: Coefficient
    by_mean: Coefficient


def unfold(rows: Sequence[Row], forms: Sequence[Form]) -> list[Row]:
    """Return the rows in terms of the posterior means."""
    states = [Row(1.0, ())]  # the state at each node, in terms of x_0 and the means
    for start, factors in rows:
        total: Coefficient = start
        means: list[Coefficient] = [0.0] * len(factors)
        for j, factor in enumerate(factors):
            form, state = forms[j], states[j]
            total = total + factor * form.by_state * state.start
            for k, mean in enumerate(state.factors):
                means[k] = means[k] + factor * form.by_state * mean
            means[j] = means[j] + factor * form.by_mean
        states.append(Row(total, tuple(means)))
    return states[1:]


def noise_form(alpha: Tensor, sigma: Tensor) -> Form:
    """The expected noise (x - alpha D) / sigma."""
    return Form(1 / sigma, -alpha / sigma)


MEAN_FORM = Form(0.0, 1.0)


def lay_out(
    process: GaussianProcess, numbers: Sequence[int], nodes: Sequence[Tensor], rows: Sequence[Row], alone: Tensor
) -> list[AffineStage]:
    """Return the stages of steps of one kind, in order.

    Args:
        process: Gaussian process.
        numbers: Number of each step in the run, K of them.
        nodes: Times at which the stages ask, and the end: float64 (K,) or (K, B, F), falling.
        rows: The stages in terms of the means, oldest first, one less than nodes.
        alone: Elements that do not follow the rows but go from node to node by first-order steps: those that end at
            t = 0, start in pure noise, or do not move at all.
    """
    frozen = nodes[0] == nodes[-1]
    columns = [_columns(process, nodes[i], nodes[i + 1], row, alone) for i, row in enumerate(rows)]
    stages: list[AffineStage] = []
    for k, step in enumerate(numbers):
        last = len(rows) - 1
        while last and bool((alone[k] & (nodes[last][k] == nodes[-1][k])).all()):
            last -= 1  # everything has arrived
        for i in range(last + 1):
            start, state, means = columns[i]
            stages.append(
                AffineStage(
                    step=step,
                    t=row_time(nodes[i][k]),
                    s=row_time(nodes[i + 1][k]),
                    closes=i == last,
                    frozen=frozen[k] if frozen.ndim > 1 and bool(frozen[k].any()) else None,
                    start=None if start is None else number(start[k]),
                    state=number(state[k]),
                    means=(tuple(number(c[k]) for c in means),),
                )
            )
    return stages


def first_order(process: GaussianProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return (state, mean) of a first-order step: x = mean at s = 0, nothing at s = t."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.schedule.levels(t), process.schedule.levels(s)
    state = torch.where(s == t, 1.0, sigma_s / sigma_t)
    return state, torch.where(s == t, 0.0, alpha_s - state * alpha_t)


def number(c: Tensor) -> Coefficient:
    """A Python float for a coefficient that all share."""
    return float(c) if c.ndim == 0 else c


def _columns(
    process: GaussianProcess, t: Tensor, s: Tensor, row: Row, alone: Tensor
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """Return the factors of x_start (None where that is the state itself), of the state, and of the means, newest
    first."""
    state, mean = first_order(process, t, s)
    newest, *older = (torch.as_tensor(c, dtype=t.dtype).expand_as(t) for c in reversed(row.factors))
    means = [torch.where(alone, mean, newest), *(torch.where(alone, 0.0, c) for c in older)]
    start = torch.as_tensor(row.start, dtype=t.dtype).expand_as(t)
    if not older:
        return None, torch.where(alone, state, start), means
    return torch.where(alone, 0.0, start), torch.where(alone, state, 0.0), means
