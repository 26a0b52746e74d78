"""The classical Runge-Kutta method in t on the probability-flow ODE, for references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.euler import velocity_coefficients
from undiffuse.sampling.plan import Plan
from undiffuse.sampling.solver import AffineSolver
from undiffuse.sampling.stages import Form, Row, lay_out, unfold


@dataclass(frozen=True, kw_only=True)
class RK4(AffineSolver):
    """The classical fourth-order Runge-Kutta step in t. Costs 4 evaluations per step, 1 in a step to 0.

    On a grid with long steps in t near the clean end (`t`, `logsnr` from few steps) it needs many steps to be in its
    asymptotic range: the velocity there changes on the scale of t itself.

    Source: principles, section 2.5; Kutta 1901.
    """

    order: ClassVar[int] = 4
    evaluations: ClassVar[str] = "4 (1 in a step to 0)"

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Ask at the start, twice in the middle and at the end of every step."""
        t, s = grid[:-1], grid[1:]
        alone = (s == 0) | (s == t)
        middle = torch.where(alone, s, 0.5 * (t + s))
        nodes = [t, middle, middle, s, s]
        matrix = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
        rows = runge_kutta_rows(process, nodes, matrix, s - t)
        return Plan(tuple(lay_out(process, range(len(t)), nodes, rows, alone)), grid)


def runge_kutta_rows(
    process: GaussianProcess, nodes: Sequence[Tensor], matrix: Sequence[Sequence[float]], span: Tensor
) -> list[Row]:
    """Return the stages x_{i+1} = x_0 + span sum_j matrix_ij v_j in terms of the means, with v the velocity."""
    forms = [Form(*velocity_coefficients(process, node)) for node in nodes]
    return unfold([Row(1.0, tuple(c * span for c in row)) for row in matrix], forms)
