r"""DPM-Solver and DPM-Solver++ of orders 2 and 3, which ask several times within a step and remember nothing.

In the half log-SNR l the probability-flow ODE is linear up to the network's answer, in two ways that mirror each other:

    noise:  a, b, H = alpha, sigma, l_s - l_t   and A the expected noise,
    data:   a, b, H = sigma, alpha, l_t - l_s   and A the posterior mean,

and in both x at r of the step is (a_r / a) x - b_r expm1(r H) A + ... So each rule stands here once, and
DPM-Solver++ is DPM-Solver in the other form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import check_grid
from undiffuse.process.schedules import Schedule
from undiffuse.sampling.plan import AffineStage, Plan
from undiffuse.sampling.solver import AffineSolver
from undiffuse.sampling.stages import MEAN_FORM, Form, Row, lay_out, noise_form, unfold

Kind = Literal["noise", "data"]
Published = Literal["paper", "diffusers"]


@dataclass(frozen=True, kw_only=True)
class DPMSolver2(AffineSolver):
    r"""Second-order step with one answer at l_t + r h on the way.

    u = (a_r / a) x - b_r expm1(r H) A;  x_s = (a_s / a) x - b_s expm1(H) [A + (A_u - A) / (2 r)].

    Costs 2 evaluations per step; a step to t = 0 or from alpha = 0 is of first order and costs 1. `form="noise"` with
    r = 1/2 is DPM-Solver-2, diffusers' KDPM2; `form="data"` is DPM-Solver++(2S).

    Args:
        form: "noise" or "data".
        r: Where in the step the second answer is asked for, in (0, 1].

    Raises:
        ValueError: `r` out of range or an unknown form.

    Source: Lu et al. 2022, "DPM-Solver", algorithm 4, arXiv:2206.00927; "DPM-Solver++", algorithm 1, arXiv:2211.01095.
    """

    order: ClassVar[int] = 2
    evaluations: ClassVar[str] = "2 (1 in a step to 0)"
    grid: ClassVar[str] = "logsnr"
    form: Kind = "noise"
    r: float = 0.5

    def __post_init__(self) -> None:
        check_form(self.form)
        if not 0 < self.r <= 1:
            raise ValueError(f"r={self.r} is outside (0, 1]; 0.5 asks in the middle of the step.")

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Write both stages of every step."""
        return Plan(tuple(_stages(process, grid, (self.r,), self.form)), grid)


@dataclass(frozen=True, kw_only=True)
class DPMSolver3(AffineSolver):
    r"""Third-order step with answers at r1 and r2 of the way in l. With q(H) = expm1(H) / H - 1,

        u_1 = (a_1 / a) x - b_1 expm1(r1 H) A
        u_2 = (a_2 / a) x - b_2 expm1(r2 H) A - b_2 (r2 / r1) q(r2 H) (A_1 - A)
        x_s = (a_s / a) x - b_s expm1(H) A - (b_s / r2) q(H) (A_2 - A).

    Of third order for r2 = 2/3 and any r1; else of second. Costs 3 evaluations per step; a step to t = 0 or from
    alpha = 0 is of first order and costs 1. `form="data"` is DPM-Solver++(3S).

    Args:
        form: "noise" or "data".
        r1, r2: Where in the step the answers are asked for, 0 < r1 < r2 <= 1.
        published: "diffusers" has expm1(r2 H) / 2 in place of q(r2 H); the order is the same.

    Raises:
        ValueError: `r1`, `r2` out of order or an unknown form.

    Source: Lu et al. 2022, "DPM-Solver", algorithm 5, arXiv:2206.00927.
    """

    order: ClassVar[int] = 3
    evaluations: ClassVar[str] = "3 (1 in a step to 0)"
    grid: ClassVar[str] = "logsnr"
    form: Kind = "noise"
    r1: float = 1 / 3
    r2: float = 2 / 3
    published: Published = "paper"

    def __post_init__(self) -> None:
        check_form(self.form, self.published)
        if not 0 < self.r1 < self.r2 <= 1:
            raise ValueError(f"r1={self.r1}, r2={self.r2} must rise: 0 < r1 < r2 <= 1.")

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Write the three stages of every step."""
        return Plan(tuple(_stages(process, grid, (self.r1, self.r2), self.form, self.published)), grid)


@dataclass(frozen=True, kw_only=True)
class DPMFast(AffineSolver):
    """Third-order steps for any budget: a grid of n steps costs n evaluations.

    The steps of the grid are taken three at a time, as one step of order 3 that asks at the grid's own times, and what
    is left over by orders 2 and 1: [3, ..., 3, 2, 1] where n is a multiple of 3, else [3, ..., 3, n mod 3]. A step to
    t = 0 is of first order, and elements that rest within three rows walk them by first-order steps. States in
    between are no results: constraints and trajectories see the ends of the larger steps only.

    Args:
        order: Of the larger steps. At 2 they are two steps of the grid, and the last one or two are of first order.
        form: "noise" or "data".
        variant: Weight of the difference in steps of order 2, not within those of order 3: "midpoint" or "heun".
        lower_final: Lower the last orders also where n is a multiple of the order and the grid does not end at 0.
        published: As for `DPMSolver3`; "diffusers" is its `DPMSolverSinglestepScheduler`.

    Raises:
        ValueError: An unknown form or variant, `order` out of range, or "heun" with order 3.

    Source: Lu et al. 2022, "DPM-Solver", section 3.4 and appendix D.2 (DPM-Solver-fast), arXiv:2206.00927. On a
        `logsnr` grid the paper's last, lower steps are as long as the others; `fast_grid` makes that grid.
    """

    evaluations: ClassVar[str] = "1 (steps of 3 together)"
    grid: ClassVar[str] = "logsnr, in threes"
    order: int = 3
    form: Kind = "noise"
    variant: Literal["midpoint", "heun"] = "midpoint"
    lower_final: bool = True
    published: Published = "paper"

    def __post_init__(self) -> None:
        check_form(self.form, self.published)
        if self.order not in (1, 2, 3):
            raise ValueError(f"order={self.order} must be from 1 to 3.")
        if self.variant not in ("midpoint", "heun") or (self.variant == "heun" and self.order == 3):
            raise ValueError(f"variant={self.variant!r} does not fit; use 'midpoint', or 'heun' with order=2.")

    def published_grid(self, schedule: Schedule, steps: int) -> Tensor:
        """Return `fast_grid`, which ends at `t_min`."""
        return fast_grid(schedule, steps)

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Take the grid's steps together, as many as each order asks."""
        to_zero = bool((grid[-1] == 0).all())
        orders = fast_orders(len(grid) - 1, to_zero, self.order, self.lower_final)
        ends = torch.tensor([0, *orders]).cumsum(0).tolist()
        stages: list[AffineStage] = []
        for step, (first, last) in enumerate(pairwise(ends)):
            nodes = [row[None] for row in grid[first : last + 1]]
            stages += _group(process, step, nodes, self.form, self.published, self.variant == "heun")
        return Plan(tuple(stages), grid[ends])


def fast_orders(evaluations: int, to_zero: bool = False, order: int = 3, lowered: bool = True) -> list[int]:
    """Return the orders of steps that cost `evaluations` together; the last is 1 where it ends at t = 0.

    Args:
        evaluations: The budget.
        to_zero: Whether the last step ends at t = 0.
        order: The highest, 1 to 3.
        lowered: Lower the last ones also where they need not be, since the highest divides the budget.
    """
    whole, left = divmod(evaluations, order)
    if not (left or to_zero or lowered) or order == 1:
        return [order] * whole
    if order == 2:
        return [2] * whole + [1] if left else [2] * (whole - 1) + [1, 1]
    orders = [3] * whole + [left] if left else [3] * (whole - 1) + [2, 1]
    return [*orders[:-1], 1, 1] if to_zero and orders[-1] == 2 else orders


def fast_grid(schedule: Schedule, evaluations: int, end: float | None = None) -> Tensor:
    """Return the published grid of DPM-Solver-fast, float64 (evaluations + 1,), from `t_max` to `end`.

    Its steps are equally long in half log-SNR whatever their order; within a step the times are evenly spaced.

    Args:
        schedule: The schedule.
        evaluations: The budget, at least 1.
        end: Last time; None for `t_min`.

    Raises:
        ValueError: `evaluations` below 1.
    """
    if evaluations < 1:
        raise ValueError(f"evaluations={evaluations} must be at least 1.")
    ends = torch.tensor([schedule.t_max, schedule.t_min if end is None else end], dtype=torch.float64)
    orders = fast_orders(evaluations)
    places = [i + j / order for i, order in enumerate(orders) for j in range(order)] + [float(len(orders))]
    low, high = schedule.half_logsnr(ends).tolist()
    times = schedule.time(low + (high - low) / len(orders) * torch.tensor(places, dtype=torch.float64))
    times[0], times[-1] = ends
    return check_grid(times)


class Levels(NamedTuple):
    """a and b of the chosen form at each node of a step, H from the first node to each, and the form of the answers."""

    a: list[Tensor]
    b: list[Tensor]
    span: list[Tensor]
    forms: list[Form]


def levels(process: GaussianProcess, nodes: Sequence[Tensor], kind: Kind) -> Levels:
    """Look up what the rules are written in, at the nodes of a step."""
    alphas, sigmas = map(list, zip(*map(process.schedule.levels, nodes), strict=True))
    halves = [torch.log(alpha) - torch.log(sigma) for alpha, sigma in zip(alphas, sigmas, strict=True)]
    sign = 1.0 if kind == "noise" else -1.0
    span = [sign * (half - halves[0]) for half in halves[1:]]
    forms = [noise_form(*pair) if kind == "noise" else MEAN_FORM for pair in zip(alphas, sigmas, strict=True)]
    return Levels(*((alphas, sigmas) if kind == "noise" else (sigmas, alphas)), span, forms)


def rule_1(at: Levels) -> list[Row]:
    """The first-order step to the first node."""
    return [Row(at.a[1] / at.a[0], (-at.b[1] * torch.expm1(at.span[0]),))]


def rule_2(at: Levels, heun: bool = False) -> list[Row]:
    """The second-order step to the second node; with `heun`, q(H) in place of expm1(H) / 2."""
    whole = -at.b[2] * torch.expm1(at.span[1])
    slope = -at.b[2] * _q(at.span[1]) if heun else 0.5 * whole
    difference = slope * at.span[1] / at.span[0]
    return [*rule_1(at), Row(at.a[2] / at.a[0], (whole - difference, difference))]


def rule_3(at: Levels, published: Published = "paper") -> list[Row]:
    """The third-order step to the third node."""
    whole = -at.b[3] * torch.expm1(at.span[2])
    difference = -at.b[3] * _q(at.span[2]) * at.span[2] / at.span[1]
    last = Row(at.a[3] / at.a[0], (whole - difference, torch.zeros_like(whole), difference))
    return [*rule_2(at, heun=published == "paper"), last]


def nodes_within(process: GaussianProcess, t: Tensor, s: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """Return t, the times at `shares` of the way from t to s in half log-SNR, and s."""
    start, end = process.schedule.half_logsnr(t), process.schedule.half_logsnr(s)
    return [t, *(process.schedule.time(start + share * (end - start)) for share in shares), s]


def _stages(
    process: GaussianProcess,
    grid: Tensor,
    shares: tuple[float, ...],
    kind: Kind,
    published: Published = "paper",
) -> list[AffineStage]:
    """The stages of all steps of a grid, each with answers at the same shares of the way."""
    t, s = grid[:-1], grid[1:]
    alone = _alone(process, t, s)
    nodes = [torch.where(alone, s, node) if i else node for i, node in enumerate(nodes_within(process, t, s, shares))]
    at = levels(process, nodes, kind)
    rows = rule_2(at) if len(shares) == 1 else rule_3(at, published)
    return lay_out(process, range(len(t)), nodes, unfold(rows, at.forms), alone)


def _group(
    process: GaussianProcess, step: int, nodes: list[Tensor], kind: Kind, published: Published, heun: bool
) -> list[AffineStage]:
    """The stages of one step that asks at each of its `nodes` but the last; its order is their number."""
    rests = torch.stack([a == b for a, b in pairwise(nodes)]).any(0)
    at = levels(process, nodes, kind)
    rows = rule_1(at) if len(nodes) == 2 else rule_2(at, heun) if len(nodes) == 3 else rule_3(at, published)
    return lay_out(process, [step], nodes, unfold(rows, at.forms), rests | _alone(process, nodes[0], nodes[-1]))


def _alone(process: GaussianProcess, t: Tensor, s: Tensor) -> Tensor:
    """Elements whose step is of first order: to t = 0, from pure noise, or none at all."""
    return (s == 0) | (s == t) | (process.schedule.alpha(t) == 0)


def _q(h: Tensor) -> Tensor:
    """expm1(h) / h - 1; its round-off of 1e-16 is far below the difference that it multiplies."""
    return torch.expm1(h) / h - 1


def check_form(form: str, published: str = "paper") -> None:
    """Refuse unknown names.

    Raises:
        ValueError: The form or the publication is unknown.
    """
    if form not in ("noise", "data"):
        raise ValueError(f"form={form!r} is unknown; choose 'noise' (DPM-Solver) or 'data' (DPM-Solver++).")
    if published not in ("paper", "diffusers"):
        raise ValueError(f"published={published!r} is unknown; choose 'paper' or 'diffusers'.")
