r"""Solvers that choose their own steps, one size per sample.

An attempt compares two orders; a sample whose difference is too large stays where it is and tries a shorter step, one
that has arrived waits. So no sample depends on the others of its batch, and the evaluations of a batch are those of
its slowest sample. Every element goes from its first time to its last along its own way; how far along it is, a share
u in [0, 1], is one number per sample, also where frames have times of their own.

All of them go to `t_max` and from `t_min` to 0 by steps of first order, as no others reach the ends.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.errors import PlanError, UndiffuseError
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess, fit
from undiffuse.process.grids import check_grid
from undiffuse.process.times import align
from undiffuse.sampling.dialogue import Arrival, Begin, OpenPlan, Question, Talk
from undiffuse.sampling.dormand_prince import Ask, attempts
from undiffuse.sampling.plan import Plan, row_time
from undiffuse.sampling.singlestep import Kind, check_form, levels, nodes_within, rule_2, rule_3
from undiffuse.sampling.solver import AffineSolver
from undiffuse.sampling.stages import Row, first_order
from undiffuse.sampling.step_control import error_ratio, growth

Way = Generator[Begin | Question | Arrival, Any, tuple[Tensor, int]]


class Adaptive(AffineSolver):
    """What adaptive solvers share: their ends, and the steps to them."""

    draws_times: ClassVar[bool] = True
    evaluations: ClassVar[str] = "adaptive"
    needs: ClassVar[str] = "no grid"
    rtol: float
    atol: float
    max_steps: int

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0 and self.max_steps >= 1):
            raise ValueError(
                f"rtol={self.rtol}, atol={self.atol} must be positive and max_steps={self.max_steps} at least 1."
            )

    def plan(self, process: Any, grid: Tensor) -> Plan:
        """Refuse: the steps depend on the answers.

        Raises:
            PlanError: Always.
        """
        raise PlanError(f"the steps of {type(self).__name__} depend on the answers; call prepare().")

    def prepare(
        self, process: GaussianProcess | CategoricalProcess, grid: Tensor | None, x: Tensor, noise: NoiseSource
    ) -> Plan:
        """Return a plan from 1 to 0, or between the two times of a grid of one step, (2,) or (2, B, F).

        Raises:
            PlanError: The process is not Gaussian, or the grid has times in between.
        """
        if not isinstance(process, GaussianProcess):
            raise PlanError(f"{type(self).__name__} walks Gaussian processes; this one is a {type(process).__name__}.")
        ends = check_grid([1.0, 0.0] if grid is None else grid, tuple(x.shape))
        if len(ends) != 2:
            raise PlanError(
                f"{type(self).__name__} chooses its own times; give no grid, or one of its first and last time alone "
                f"(this one has {len(ends)} rows)."
            )
        return OpenPlan((), ends, lambda state: self._talk(process, ends.to(state.device), state))

    @abstractmethod
    def way(self, process: GaussianProcess, t: Tensor, s: Tensor, x: Tensor, step: int) -> Way:
        """Go from times `t` to `s` (B or 1, F or 1), both within [t_min, t_max] but for what rests; return the state
        and the number of the next step."""

    def _talk(self, process: GaussianProcess, ends: Tensor, x: Tensor) -> Talk:
        """First order to where the levels are finite, adaptively to where they end, first order to the end."""
        t, s = (row.reshape(1, 1) if row.ndim == 0 else row for row in ends)
        schedule, rests = process.schedule, t == s
        begin = torch.where(rests, t, t.clamp(max=schedule.t_max))
        goal = torch.where(rests, s, torch.minimum(s.clamp(min=schedule.t_min), begin))
        step = 0
        x, step = yield from _first_order(process, t, begin, x, step)
        if bool((goal < begin).any()):
            x, step = yield from self.way(process, begin, goal, x, step)
        yield from _first_order(process, goal, s, x, step)


@dataclass(frozen=True, kw_only=True)
class DPMAdaptive(Adaptive):
    r"""DPM-Solver of orders 1 and 2, or 2 and 3, in half log-SNR, with the difference of the two as the error.

    The higher order goes on. Costs 2 or 3 evaluations per attempt.

    Args:
        order: The higher order: 2 ("12") or 3 ("23").
        form: "noise" (DPM-Solver) or "data" (DPM-Solver++).
        rtol, atol: Error allowed per step, relative and absolute, for data of about unit size.
        first: Length of the first step in half log-SNR.
        max_steps: Most attempts of a sample.

    Raises:
        ValueError: An option is out of range.

    Source: Lu et al. 2022, "DPM-Solver", appendix C, arXiv:2206.00927. Deviation: errors and steps are those of each
        sample, where the authors take the largest error of the batch; steps grow by 5 at most.
    """

    order: int = 3  # type: ignore[misc]
    form: Kind = "noise"
    rtol: float = 0.05
    atol: float = 0.0078
    first: float = 0.05
    max_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_form(self.form)
        if self.order not in (2, 3):
            raise ValueError(f"order={self.order} must be 2 (with 1 for the error) or 3 (with 2).")
        if not self.first > 0:
            raise ValueError(f"first={self.first} must be above 0; it is a step in half log-SNR.")

    def way(self, process: GaussianProcess, t: Tensor, s: Tensor, x: Tensor, step: int) -> Way:
        """Attempt steps until every sample has arrived."""
        path = _Path(process, t, s, len(x))
        done = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
        size = (self.first / path.length).expand_as(done)
        for number in range(step, step + self.max_steps):
            last = size >= 1 - done
            trial = torch.where(last, 1.0, done + size)
            here, there = path.at(done), path.at(trial)
            x = yield Begin(step=number, t=row_time(here))
            x, new, error = yield from self._attempt(process, here, there, x, number)
            with torch.no_grad():
                ratio = error_ratio(error, x, new, self.rtol, self.atol)[:, None]
                accepted = ratio <= 1
                size = (trial - done) * growth(ratio, self.order)
            after = torch.where(accepted, there, here)
            x = torch.where(align(accepted, x), new, x)
            done = torch.where(accepted, trial, done)
            x = yield Arrival(step=number, t=row_time(here), s=row_time(after), x=x)
            if bool((done == 1).all()):
                return x, number + 1
        raise UndiffuseError(
            f"{int((done < 1).sum())} of {len(x)} samples have not arrived after max_steps={self.max_steps} attempts; "
            f"allow more, or raise rtol={self.rtol} and atol={self.atol}."
        )

    def _attempt(
        self, process: GaussianProcess, t: Tensor, s: Tensor, x: Tensor, number: int
    ) -> Generator[Question, Any, tuple[Tensor, Tensor, Tensor]]:
        """Return the state as it stood, after the higher order, and the difference to the lower."""
        shares = (0.5,) if self.order == 2 else (1 / 3, 2 / 3)
        rests = t == s
        nodes = [t, *(torch.where(rests, s, node) for node in nodes_within(process, t, s, shares)[1:-1]), s]
        at = levels(process, nodes, self.form)
        rows = rule_2(at) if self.order == 2 else rule_3(at)
        whole = -at.b[-1] * torch.expm1(at.span[-1])
        if self.order == 2:
            lower = Row(rows[-1].start, (whole, torch.zeros_like(whole)))
        else:
            slope = 0.5 * whole * at.span[-1] / at.span[0]
            lower = Row(rows[-1].start, (whole - slope, slope, torch.zeros_like(whole)))
        state = x
        answers: list[Tensor] = []
        for node, row in zip(nodes, rows, strict=False):
            own, post = yield Question(step=number, t=row_time(node), s=row_time(s), x=state)
            if not answers:
                x = torch.where(align(rests, x), x, own)
            answers.append(post.mean if self.form == "data" else process.eps(own, post, row_time(node)))
            state = torch.where(align(rests, x), x, _applied(_still(row, rests), x, answers))
        difference = Row(0.0, tuple(high - low for high, low in zip(rows[-1].factors, lower.factors, strict=True)))
        return x, state, _applied(_still(difference, rests), x, answers)


@dataclass(frozen=True, kw_only=True)
class RK45(Adaptive):
    """The Dormand-Prince pair of orders 5 and 4 in t on the probability-flow ODE.

    Costs 6 evaluations per attempt and 1 for the first. For references; a constraint that edits the state between
    steps costs one more.

    Args:
        rtol, atol: Error allowed per step, relative and absolute.
        max_steps: Most attempts of a sample.

    Raises:
        ValueError: An option is out of range.

    Source: Dormand & Prince 1980; Song et al. 2021, arXiv:2011.13456, appendix D.4.
    """

    order: ClassVar[int] = 5
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000

    def way(self, process: GaussianProcess, t: Tensor, s: Tensor, x: Tensor, step: int) -> Way:
        """Integrate in the share u of the way."""
        x = yield Begin(step=step, t=row_time(t.expand(len(x), -1)))
        talk, reply = attempts((x,), 0.0, 1.0, self.rtol, self.atol, self.max_steps), None
        while True:
            try:
                said = talk.send(reply)
            except StopIteration:
                return x, step
            if isinstance(said, Ask):
                node = _along(t, s, said.times[:, None])
                own, post = yield Question(step=step, t=row_time(node), s=row_time(node), x=said.y[0])
                velocity = process.velocity(own, post, row_time(node))
                reply = (torch.where(align(t == s, x), 0.0, fit(s - t, x) * velocity),)
                continue
            here, there = (_along(t, s, share[:, None]) for share in (said.before, said.times))
            x = yield Arrival(step=step, t=row_time(here), s=row_time(there), x=said.y[0])
            step += 1
            if bool((said.times < 1).any()):
                x = yield Begin(step=step, t=row_time(there))
            reply = (x,)


class _Path:
    """Every element's way from t to s, straight in half log-SNR."""

    def __init__(self, process: GaussianProcess, t: Tensor, s: Tensor, batch: int) -> None:
        self.process, self.t, self.s = process, t.expand(batch, -1), s.expand(batch, -1)
        rests = t == s
        self.start = torch.where(rests, 0.0, process.schedule.half_logsnr(t))
        self.rise = torch.where(rests, 0.0, process.schedule.half_logsnr(s) - self.start)
        self.length = self.rise.amax(1, keepdim=True)

    def at(self, share: Tensor) -> Tensor:
        """Times at the share u (B, 1) of the way, exact at both ends."""
        times = self.process.schedule.time(self.start + share * self.rise)
        times = torch.where((share == 0) | (self.t == self.s), self.t, times)
        return torch.where(share == 1, self.s, times)


def _along(t: Tensor, s: Tensor, share: Tensor) -> Tensor:
    return torch.where(share == 1, s, t + share * (s - t))


def _still(row: Row, rests: Tensor) -> Row:
    """The row with 0 for what rests, where factors are no numbers: gradients would inherit that through a mask."""
    start, factors = torch.as_tensor(row.start, dtype=torch.float64), row.factors
    return Row(torch.where(rests, 0.0, start), tuple(torch.where(rests, 0.0, torch.as_tensor(c)) for c in factors))


def _applied(row: Row, x: Tensor, answers: Sequence[Tensor]) -> Tensor:
    total = fit(row.start, x) * x
    for factor, answer in zip(row.factors, answers, strict=True):
        total = total + fit(factor, x) * answer
    return total


def _first_order(process: GaussianProcess, t: Tensor, s: Tensor, x: Tensor, step: int) -> Way:
    """One step of first order, of what moves."""
    if bool((t == s).all()):
        return x, step
    moves = s < t
    state, mean = first_order(process, t, s)
    x = yield Begin(step=step, t=row_time(t))
    own, post = yield Question(step=step, t=row_time(t), s=row_time(s), x=x)
    moved = _applied(Row(torch.where(moves, state, 1.0), (torch.where(moves, mean, 0.0),)), own, (post.mean,))
    x = torch.where(align(moves, x), moved, x)
    x = yield Arrival(step=step, t=row_time(t), s=row_time(s), x=x)
    return x, step + 1
