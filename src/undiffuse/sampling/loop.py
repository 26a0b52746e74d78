"""The sampling loop, one for every solver, denoiser, wrapper and constraint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.errors import NotFiniteError, PlanError
from undiffuse.networks.dropout import Drawing
from undiffuse.networks.hooks import direct
from undiffuse.networks.recomputation import recomputed
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time
from undiffuse.sampling.beginning import check_solver, check_start, drawn, first_plan, first_state
from undiffuse.sampling.constraints import Constraint, enter_all, leave_all, own_state
from undiffuse.sampling.dialogue import Arrival, Begin, OpenPlan
from undiffuse.sampling.left_to_right import LeftToRight
from undiffuse.sampling.parallel import check_parallel, walk_in_parallel
from undiffuse.sampling.plan import Plan, Renoise, Stage
from undiffuse.sampling.solver import NOTHING, Solver


@dataclass(frozen=True)
class Snapshot:
    """What a callback sees after each evaluation: the step, the time asked at, the new state, the posterior."""

    step: int
    t: Time
    x: Tensor
    post: Any


@dataclass(frozen=True)
class SampleResult:
    """Result of a run.

    Args:
        x: Samples (B, *) in model units, or token ids.
        nfe: Network evaluations per sample; those of the slowest of the batch where samples have steps of their own,
            since the others wait for it.
        trajectory: States at the grid's times, (K + 1, B, *), where asked for.
        sweeps, calls: Of a run in parallel over time: passes over its window, and batched calls of the denoiser.
    """

    x: Tensor
    nfe: int
    trajectory: Tensor | None = None
    sweeps: int | None = None
    calls: int | None = None


def sample(
    denoiser: Denoiser,
    *,
    noise: NoiseSource,
    shape: tuple[int, ...],
    solver: Solver,
    grid: Tensor | None = None,
    cond: dict[str, Tensor] | None = None,
    constraints: Sequence[Constraint] = (),
    start: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    grad: bool | Literal["checkpoint"] = False,
    callback: Callable[[Snapshot], None] | None = None,
    trajectory: bool = False,
    up: bool = False,
    parallel: int | None = None,
    parallel_tol: float = 0.1,
) -> SampleResult:
    """Walk the grid from noise to data, asking the denoiser.

    Args:
        denoiser: Any denoiser or wrapper.
        noise: Where random numbers come from; its items are the batch.
        shape: Shape of one item, model units.
        solver: The rule of a step.
        grid: Falling times; see `process.grids`. Solvers that draw their own times take None.
        cond: Conditions, embedded once here.
        constraints: Applied in the order given.
        start: State at the grid's first times (B, *), instead of the prior.
        dtype: Of the state; float64 for oracles.
        grad: Keep the graph, so that the result can be differentiated; "checkpoint" recomputes each evaluation in
            the backward pass instead of storing it.
        callback: Called after each evaluation.
        trajectory: Keep the state at every grid time.
        up: Walk the grid the other way, from data to noise: `start` is the state at its last time. Needs a
            deterministic solver; see `upwards.upward_plan`.
        parallel: Compute so many steps at once, by Picard iteration; see `undiffuse.sampling.parallel`.
        parallel_tol: When a state counts as final there, in units of the noise of its step.

    Raises:
        PlanError: Solver, process, grid and state do not fit.
        NotFiniteError: The result is not finite.
    """
    if denoiser.needs_grad and torch.is_inference_mode_enabled():
        raise PlanError("this denoiser differentiates inside, which inference mode forbids; use torch.no_grad().")
    process = denoiser.process
    check_solver(denoiser, solver, constraints)
    x = drawn(process, noise, shape, dtype) if start is None else check_start(process, start, shape, dtype)
    if isinstance(solver, LeftToRight):
        if up or grad or trajectory or callback is not None or parallel is not None:
            raise PlanError("texts are written token after token: leave up, grad, trajectory, callback, parallel out.")
        x = x if start is not None else first_state(process, x, 1.0, constraints)
        return _written(denoiser, solver, x, cond, constraints, noise)
    if up and (start is None or constraints):
        raise PlanError("up=True walks from data to noise: give start, the state at the last time, and no constraints.")
    plan, x = first_plan(process, solver, grid, x, constraints, noise, is_state=start is not None, up=up)
    if trajectory and isinstance(plan, OpenPlan):
        raise PlanError("samples of an adaptive solver have no common times; leave trajectory out or use a callback.")
    if parallel is None:
        return _in_turn(denoiser, plan, solver, x, cond, constraints, noise, grad, callback, trajectory)
    if grad or callback is not None:
        raise PlanError("a run in parallel over time takes neither grad nor callback; leave parallel out.")
    return _in_parallel(denoiser, plan, solver, x, cond, constraints, noise, parallel, parallel_tol, trajectory)


def _written(
    denoiser: Denoiser,
    solver: LeftToRight,
    x: Tensor,
    cond: dict[str, Tensor] | None,
    constraints: Sequence[Constraint],
    noise: NoiseSource,
) -> SampleResult:
    """Write texts token after token."""
    written, nfe = solver.write(denoiser, enter_all(constraints, x, 1.0, 0, noise), cond, noise)
    check_result(written, denoiser.process, nfe)
    return SampleResult(written, nfe)


def _in_turn(
    denoiser: Denoiser,
    plan: Plan,
    solver: Solver,
    x: Tensor,
    cond: dict[str, Tensor] | None,
    constraints: Sequence[Constraint],
    noise: NoiseSource,
    grad: bool | Literal["checkpoint"],
    callback: Callable[[Snapshot], None] | None,
    trajectory: bool,
) -> SampleResult:
    """Take the steps of a plan one after the other; arguments as of `sample`."""
    denoiser.prefetch([stage.t for stage in plan.entries if isinstance(stage, Stage) and isinstance(stage.t, float)])
    ask = direct(denoiser)
    if grad == "checkpoint":
        drawing = _drawing_generator(denoiser)
        ask = lambda *question: recomputed(denoiser, question, drawing, keep_global=True)  # noqa: E731
    # no_grad, not inference_mode: wrappers that differentiate inside re-enable gradients.
    with torch.set_grad_enabled(bool(grad)):
        answers = _Answers(denoiser, ask, denoiser.embed(cond, len(x)), solver.reuses)
        if isinstance(plan, OpenPlan):
            states = [_converse(answers, plan, x, constraints, noise, callback)]
        else:
            states = _walk(answers, plan, solver, x, constraints, noise, callback, trajectory)

    def again(heard: Callable[[Snapshot], None]) -> None:
        if not isinstance(plan, OpenPlan):
            fresh = _Answers(denoiser, denoiser, answers.embedded, solver.reuses)
            _walk(fresh, plan, solver, x, constraints, noise, heard, False)

    check_result(states[-1], denoiser.process, answers.nfe, again)
    return SampleResult(states[-1], answers.nfe, torch.stack(states) if trajectory else None)


def _in_parallel(
    denoiser: Denoiser,
    plan: Plan,
    solver: Solver,
    x: Tensor,
    cond: dict[str, Tensor] | None,
    constraints: Sequence[Constraint],
    noise: NoiseSource,
    window: int,
    tol: float,
    trajectory: bool,
) -> SampleResult:
    check_parallel(denoiser, solver, plan, constraints, window, tol)

    def embed(count: int) -> Any:
        repeated = {name: torch.cat([value] * count) for name, value in (cond or {}).items()}
        return denoiser.embed(repeated or None, count * len(x))

    with torch.no_grad():
        states, work = walk_in_parallel(denoiser, embed, plan, solver, x, constraints, noise, window, tol)
    check_result(states[-1], denoiser.process, work.nfe)
    return SampleResult(states[-1], work.nfe, torch.stack(states) if trajectory else None, work.sweeps, work.calls)


def _drawing_generator(denoiser: Denoiser) -> torch.Generator | None:
    """Return where the layers of a network draw from in training, such as dropout; None where they do not."""
    layers = (part for part in denoiser.modules() if isinstance(part, Drawing) and part.draws)
    return next((layer.generator for layer in layers), None)


class _Answers:
    """Asks the denoiser and counts evaluations; with `reuse`, a state that has not changed is not asked about again.

    A self-conditioned denoiser is told its last answer: whatever the stage, also after noise was added (the answer is
    still the best guess of where the sample goes), for frozen elements as for others, and before any correction by a
    constraint. Training shows a network its own answers and nothing else; a correction reaches it through the state.

    Raises:
        PlanError: Answers are to be reused but depend on the time.
    """

    def __init__(self, denoiser: Denoiser, ask: Callable[..., Any], embedded: Any, reuse: bool) -> None:
        if reuse and denoiser.time_dependent:
            raise PlanError(
                "answers cannot be reused: this denoiser depends on the time where no token changed; use cache=False."
            )
        self.denoiser = denoiser
        self.ask = ask
        self.embedded = embedded
        self.reuse = reuse
        self.last: tuple[Tensor, Any] | None = None
        self.remembers = denoiser.self_conditioned
        self.estimate: Tensor | None = None
        self.nfe = 0

    def __call__(self, x: Tensor, t: Time) -> Any:
        """Return the posterior of `x` at `t`."""
        if self.reuse and self.last is not None and torch.equal(self.last[0], x):
            return self.last[1]
        self.nfe += self.denoiser.calls(t)
        cond = self.embedded if self.estimate is None else self.denoiser.with_estimate(self.embedded, self.estimate)
        post = self.ask(x, t, cond)
        if self.remembers:
            self.estimate = post.mean
        if self.reuse:
            self.last = (x, post)
        return post


def _walk(
    answers: _Answers,
    plan: Plan,
    solver: Solver,
    x: Tensor,
    constraints: Sequence[Constraint],
    noise: NoiseSource,
    callback: Callable[[Snapshot], None] | None,
    keep: bool,
) -> list[Tensor]:
    """Run the entries of the plan; return all states at grid times where `keep`, else the last alone."""
    states, memory, opened = [x], NOTHING, not constraints
    process = answers.denoiser.process
    for entry in plan.entries:
        if not opened:
            x, opened = enter_all(constraints, x, entry.t, entry.step, noise), True
        z = solver.draw(entry, x, noise)
        if isinstance(entry, Renoise):
            assert z is not None
            x, memory = entry.apply(x, z), NOTHING
            if entry.undoes:  # steps are taken back, and the next begins where the first of them began
                states, opened = states[: -entry.undoes] if keep else states, False
            continue
        if not solver.idle(entry, x):
            post = answers(x, entry.t)
            for constraint in constraints:
                post = constraint.correct(post, x, entry.t, entry.s)
            own = own_state(process, x, post, entry.t, entry.frozen)
            x, memory = solver.step(entry, own, post, memory, z)
            if callback is not None:
                callback(Snapshot(entry.step, entry.t, x, post))
        if entry.closes:
            if constraints:
                x, edited = leave_all(constraints, x, entry.s, entry.step, noise)
                memory, opened = NOTHING if edited else memory, False
            states = [*states, x] if keep else [x]
    return states


def _converse(
    answers: _Answers,
    plan: OpenPlan,
    x: Tensor,
    constraints: Sequence[Constraint],
    noise: NoiseSource,
    callback: Callable[[Snapshot], None] | None,
) -> Tensor:
    """Run a plan that is written as answers come; callbacks see the state that was asked about."""
    talk = plan.talk(x)
    reply: Any = None
    while True:
        try:
            said = talk.send(reply)
        except StopIteration:
            return x
        if isinstance(said, Begin):
            reply = x = enter_all(constraints, x, said.t, said.step, noise)
        elif isinstance(said, Arrival):
            reply = x = leave_all(constraints, said.x, said.s, said.step, noise)[0]
        else:
            post = answers(said.x, said.t)
            for constraint in constraints:
                post = constraint.correct(post, said.x, said.t, said.s)
            if callback is not None:
                callback(Snapshot(said.step, said.t, said.x, post))
            reply = own_state(answers.denoiser.process, said.x, post, said.t), post


def check_result(
    x: Tensor,
    process: GaussianProcess | CategoricalProcess,
    nfe: int,
    again: Callable[[Callable[[Snapshot], None]], None] | None = None,
) -> None:
    """Refuse what is no data; categorical draws from weights that are NaN leave ids beyond the classes.

    With `again`, which makes the run once more for a callback, the message says which answer was the first bad one: to
    look at each in the run itself would make every run wait for its device at every step.
    """
    if x.is_floating_point() and math.isfinite(x.detach().sum()):  # a sum of which one part is not finite never is
        return
    sound = x < process.classes if isinstance(process, CategoricalProcess) else x.isfinite()
    if not bool(sound.all()):
        bad, what = int((~sound).flatten(1).any(1).sum()), "finite" if x.is_floating_point() else "made of data classes"
        raise NotFiniteError(
            f"{bad} of {len(x)} samples are not {what} after {nfe} evaluations{_first_bad(again)}; the network's "
            "output overflowed. Check the weights, use dtype=float32 or more, or look at each step with callback=."
        )


def _first_bad(again: Callable[[Callable[[Snapshot], None]], None] | None) -> str:
    """Return in words at which step and time a run first met an answer that is not finite; nothing where none was."""
    found: list[Snapshot] = []

    def hear(seen: Snapshot) -> None:
        answer = seen.post.mean if hasattr(seen.post, "mean") else seen.post.probs
        if not found and not bool(answer.isfinite().all()):
            found.append(seen)

    if again is not None:
        with torch.no_grad():
            again(hear)
    if not found:
        return ""
    t = float(torch.as_tensor(found[0].t).max())
    return f", the first of them at step {found[0].step} (t = {t:.4g})"
