r"""Multistep solvers as one rule: a polynomial through the last answers, integrated exactly along the step.

Every solver built on `Multistep` takes the first-order step (DDIM) and adds what the change of the answer contributes.
Let theta run from 0 at the start of a step to 1 at its end, let Q be what is extrapolated, known now and at nodes
r_j < 0, and let m_i = int theta^i dw(theta) be the moments of the solver's weight w. Then

    x_s = first order + sum_i a_i m_i,    sum_i a_i r_j^i = Q_j - Q_now    (i and j = 1 .. order - 1),

which is a sum of differences Q_j - Q_now with weights that `solve_weights` gives in closed form. So a solver is a
choice of three things: what is extrapolated (the mean or the noise), in which variable (its nodes), and the moments.

Sources: Lu et al. 2022, arXiv:2211.01095; Zhang and Chen 2022, arXiv:2204.13902; Zhao et al. 2023, arXiv:2302.04867.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from undiffuse.sampling.solver import AffineSolver, Columns
from undiffuse.sampling.steps import Steps

Form = Literal["data", "noise"]
Lower = bool | Literal["few"] | None
FEW_STEPS = 15  # below it the last orders are lowered, as in the authors' code and in diffusers
_SMALL, _TERMS = 0.05, 8  # below it the recursion of `exponential_moments` cancels; the series then has 16 digits
_MINUS_ONE = torch.tensor(-1.0, dtype=torch.float64, device="cpu")
Rows = tuple[tuple[Tensor, ...], ...]


class Multistep(AffineSolver):
    """Base: subclasses give `nodes` and `moments`, and have the fields below.

    Attributes:
        order: Highest order; the first steps, and those that are lowered, have less.
        form: What is extrapolated: "data", the posterior mean, or "noise".
        lower_final: Make the last steps order 2, then 1; "few": with fewer than 15 steps; None: where it pays.
    """

    highest: ClassVar[int] = 3
    form: Form = "data"
    lower_final: Lower = None

    def check_order(self) -> None:
        """Refuse an order outside 1 to `highest`, an unknown form and an unknown lowering.

        Raises:
            ValueError: One of them.
        """
        if self.order not in range(1, self.highest + 1):
            raise ValueError(f"order={self.order} of {type(self).__name__} must be from 1 to {self.highest}.")
        if self.form not in ("data", "noise"):
            raise ValueError(f"form={self.form!r} is unknown; choose 'data' or 'noise'.")
        if self.lower_final not in (True, False, "few", None):
            raise ValueError(f"lower_final={self.lower_final!r} is unknown; choose True, False, 'few' or None.")

    def nodes(self, steps: Steps, count: int) -> list[Tensor]:
        """Return where the `count` remembered answers lie, newest first, with 0 at t and 1 at s: half log-SNR."""
        return [(past - steps.half_logsnr_t) / steps.h for past in steps.past(count)]

    def moments(self, steps: Steps, count: int) -> list[Tensor]:
        """Return m_1 .. m_count for rules of order count + 1."""
        raise NotImplementedError

    def first_order(self, steps: Steps) -> Columns:
        """Return the step without memory: DDIM, in terms of the mean whatever is extrapolated."""
        state = steps.sigma_s / steps.sigma_t
        return Columns(state, steps.alpha_s - state * steps.alpha_t)

    @property
    def lowers_on_uneven(self) -> bool:
        """Whether the default lowers the last orders on grids that are not even in half log-SNR."""
        return self.order > 2

    def lowered(self, steps: Steps) -> bool | Tensor:
        """Return whether the last steps have at most the order of the number of steps left, of each element.

        By default that is where there are fewer than 15 steps, and for some solvers also where steps are not even in
        half log-SNR: a step that is much longer than those before it extrapolates, and a third-order one is then worse
        than a second-order one (principles, section 2.5).
        """
        if self.lower_final in (True, False):
            return self.lower_final is True
        few = steps.count < FEW_STEPS
        if self.lower_final == "few" or not self.lowers_on_uneven:
            return few
        return few | (steps.even ^ True)  # a number or a mask

    def coefficients(self, steps: Steps) -> Columns:
        """The first-order step and the weights of the memory, for each number of remembered answers."""
        first, count = self.first_order(steps), self.order - 1
        if not count:
            return first
        nodes = self.nodes(steps, count)
        table = [solve_weights(nodes[:q], self.moments(steps, q)) for q in range(1, count + 1)]
        rows = stack_rows(table, usable(steps, count, self.lowered(steps), left=-1))
        return Columns(first.state, first.mean, rows, first.noise, remembered(steps, self.form))


def remembered(steps: Steps, form: Form) -> tuple[Tensor, Tensor] | None:
    """What turns state and mean into what is extrapolated: eps = (x - alpha mean) / sigma, or the mean itself."""
    return None if form == "data" else (1 / steps.sigma_t, -steps.alpha_t / steps.sigma_t)


def usable(steps: Steps, most: int, lowered: bool | Tensor, left: int) -> Tensor | None:
    """Return how many remembered answers each step may use, int64; None for `most` wherever there are so many.

    An answer from alpha = 0 is none: it lies infinitely far back in half log-SNR.

    Args:
        steps: The steps.
        most: At most so many.
        lowered: Where there are also at most `left` more than steps left, this one counted.
        left: See `lowered`.
    """
    if steps.grid.ndim == 1:
        lost = int(steps.alpha_t[0] == 0)  # only the first time can have it
        if not lost and lowered is False:
            return None
        count = len(steps.grid) - 1
        met = [min(most, max(0, k - lost)) for k in range(count)]
        return torch.tensor([min(k, count - i + left) for i, k in enumerate(met)] if lowered else met)
    known = torch.stack([past.isfinite() for past in steps.past(most)]).sum(0)
    return torch.where(torch.as_tensor(lowered), torch.minimum(known, steps.left + left), known)


def stack_rows(table: Sequence[Sequence[Tensor]], counts: Tensor | None) -> Rows:
    """Return the weights for 1, 2, ... remembered answers, of which each step uses at most `counts`."""
    if counts is None:
        return tuple(tuple(weights) for weights in table)
    rows: list[tuple[Tensor, ...]] = []
    for q, weights in enumerate(table, start=1):
        less: tuple[Any, ...] = (*rows[-1], 0.0) if rows else (0.0,)
        enough = counts >= q
        rows.append(tuple(torch.where(enough, full, low) for full, low in zip(weights, less, strict=True)))
    return tuple(rows)


def solve_weights(nodes: Sequence[Tensor], moments: Sequence[Tensor]) -> list[Tensor]:
    """Return w with sum_j w_j Q(r_j) = sum_i a_i m_i for every polynomial Q = sum_i a_i theta^i, i from 1.

    The Vandermonde system of up to three nodes in closed form: w_j = int theta L_j(theta) / r_j with the Lagrange
    polynomials L_j of the nodes.

    Args:
        nodes: r_1 .. r_q, distinct and not 0; any broadcastable shapes.
        moments: m_1 .. m_q.
    """
    if len(nodes) < 2:
        return [moments[0] / node for node in nodes]
    if len(nodes) == 2:
        (a, b), gap = nodes, nodes[0] - nodes[1]
        over_a, over_b = (torch.addcmul(moments[1], other, moments[0], value=-1) for other in (b, a))
        return [over_a / (a * gap), -over_b / (b * gap)]
    a, b, c = torch.broadcast_tensors(*nodes)
    node, one, two = torch.stack((a, b, c)), torch.stack((b, a, a)), torch.stack((c, c, b))  # each with the two others
    both = one * two
    outer = torch.addcmul(moments[2], one + two, moments[1], value=-1)
    integral = torch.addcmul(outer, both, moments[0])  # of theta (theta - r_one) (theta - r_two)
    return list((integral / (node * (node - one) * (node - two))).unbind())


def exponential_moments(y: Tensor, count: int) -> list[Tensor]:
    """Return M_i = i! c_i(y) for i = 1 .. count with c_1 = expm1(y) / y - 1 and c_i = c_(i-1) / y - 1 / i!.

    These are -int_0^1 theta^i d e^(y (1 - theta)), and M_i = i M_(i-1) / y - 1 from M_0 = expm1(y). Small |y| take the
    series M_i = y / (i + 1) + y^2 / ((i + 1) (i + 2)) + ..., because the recursion loses the digits of y at each turn.
    """
    found = [torch.expm1(y)]
    for i in range(1, count + 1):
        found.append(torch.addcdiv(_MINUS_ONE, found[-1], y, value=i))
    small = y.abs() < _SMALL
    if bool(small.any()):
        series = _series(torch.where(small, y, 0.0), count)
        return [torch.where(small, tame, wild) for tame, wild in zip(series, found[1:], strict=True)]
    return found[1:]


def _series(y: Tensor, count: int) -> list[Tensor]:
    """Return M_1 .. M_count by the series of the last, and M_(i-1) = y (M_i + 1) / i."""
    one = torch.ones_like(y)
    inner = one
    for k in range(_TERMS, 1, -1):
        inner = torch.addcmul(one, inner, y, value=1 / (k + count))
    values = [y * inner / (count + 1)]
    for i in range(count, 1, -1):
        values.append(y * (values[-1] + 1) / i)
    return values[::-1]
