r"""Sampling in parallel over time: Picard iteration on a window of steps.

With F_i the i-th step of a solver, noise fixed, the states solve X_{j+1} = X_b + sum_{i=b..j} (F_i(X_i) - X_i). A sweep
evaluates all steps of a window [b, b + w) at the present guesses, in one batch, and sums anew. Each sweep makes at
least one more state final, and in practice many: the number of batched calls falls by several times, the number of
evaluations grows. It pays where a batch of w costs less than as many single calls as a sweep makes states final.

The sum is that of the states x themselves; in x / alpha or x / sigma the iteration first diverges.

Source: Shih et al. 2023, "Parallel sampling of diffusion models" (ParaDiGMS), algorithm 1, arXiv:2305.16317.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time, expand_time
from undiffuse.sampling.constraints import Constraint, enter_all, leave_all, own_state
from undiffuse.sampling.dialogue import OpenPlan
from undiffuse.sampling.plan import Plan, Renoise, Stage, split_steps
from undiffuse.sampling.solver import NOTHING, Memory, Solver


@dataclass(kw_only=True)
class Work:
    """What a parallel run cost.

    Args:
        sweeps: Passes over a window.
        calls: Batched calls of the denoiser; several per sweep for solvers with several evaluations per step.
        nfe: Network evaluations per sample.
    """

    sweeps: int = 0
    calls: int = 0
    nfe: int = 0


def check_parallel(
    denoiser: Denoiser, solver: Solver, plan: Plan, constraints: Sequence[Constraint], window: int, tol: float
) -> None:
    """Refuse what cannot run in parallel over time.

    Raises:
        ValueError: `window` below 1, or `tol` below 0.
        PlanError: Steps that depend on more than their own state: a solver that chooses its times, tokens, a
            self-conditioned denoiser, or a constraint that does not say that it is `stateless`.
    """
    if window < 1 or not tol >= 0:
        raise ValueError(f"parallel={window} must be at least 1 and parallel_tol={tol} at least 0.")
    name, ask = type(solver).__name__, "leave parallel out"
    if solver.discrete:
        raise PlanError(f"{name} walks tokens, whose states cannot be summed up over time; {ask}.")
    if isinstance(plan, OpenPlan) or solver.draws_times:
        raise PlanError(f"{name} chooses its times on the way, so that later steps are not known; {ask}.")
    if any(isinstance(entry, Renoise) and entry.undoes for entry in plan.entries):
        raise PlanError(f"{name} takes steps back, so that a time has several states; {ask}.")
    if denoiser.self_conditioned:
        raise PlanError(f"a self-conditioned denoiser needs its answer of the step before; {ask}.")
    for constraint in constraints:
        if not constraint.stateless:
            raise PlanError(
                f"{type(constraint).__name__} may remember earlier steps, which run at the same time here; {ask}, or "
                "set stateless = True on the class if what it does in a step depends on that step alone."
            )


def walk_in_parallel(
    denoiser: Denoiser,
    embed: Callable[[int], Any],
    plan: Plan,
    solver: Solver,
    x: Tensor,
    constraints: Sequence[Constraint],
    noise: NoiseSource,
    window: int,
    tol: float,
) -> tuple[list[Tensor], Work]:
    """Run a plan by Picard iteration and return the states at all grid times.

    A window slides past a state when its last change is below tol n, in root mean square and for every sample of the
    batch, with n the standard deviation of the step's noise; of the ancestral step for a deterministic solver.

    Args:
        denoiser: What is asked, for several steps at once with a time per row.
        embed: Gives the conditions of the batch repeated so many times.
        plan: Plan on the device of `x`.
        solver: Its solver. Multistep memory is that of the guesses, and so final where they are.
        x: First state (B, *).
        constraints: Stateless ones.
        noise: Noise source; what a step draws is drawn once.
        window: Steps at once.
        tol: Tolerance; 0 goes on until nothing changes, which gives the numbers of the sequential run.
    """
    run = _Run(denoiser, embed, solver, constraints, noise, len(x))
    steps, noises = split_steps(plan.entries), _noise_levels(denoiser.process, plan)  # type: ignore[arg-type]
    states: list[Tensor] = [x] + [x] * len(steps)
    begin = 0
    end = min(window, len(steps))
    while begin < len(steps):
        moved = run.sweep(steps, states, begin, end)
        change, shift = [], torch.zeros_like(x)
        for j, new in enumerate(moved, begin):
            new = new + shift if j > begin else new  # X_{j+1} = F_j(X_j) + (new X_j - old X_j)
            shift = new - states[j + 1]
            change.append(shift.flatten(1).square().mean(1).amax())
            states[j + 1] = new
        settled = torch.stack(change).double().cpu() <= (tol * noises[begin:end]) ** 2
        begin += max(int(settled.long().cumprod(0).sum()), 1)  # the first of a window is always final
        last, end = end, min(begin + window, len(steps))
        for j in range(last + 1, end + 1):
            states[j] = states[last]  # what enters starts as a copy
        run.forget(begin)
    return states, run.work


@dataclass
class _Run:
    """The sweeps of one run: asks for many steps at once, then applies each step's own rule."""

    denoiser: Denoiser
    embed: Callable[[int], Any]
    solver: Solver
    constraints: Sequence[Constraint]
    noise: NoiseSource
    batch: int
    work: Work = field(default_factory=Work)
    memories: dict[int, Memory] = field(default_factory=dict)
    draws: dict[tuple[int, int], Tensor | None] = field(default_factory=dict)
    embedded: dict[int, Any] = field(default_factory=dict)

    def sweep(self, steps: list[list[Stage | Renoise]], states: list[Tensor], begin: int, end: int) -> list[Tensor]:
        """Return F_i(X_i) of the steps begin to end - 1."""
        cursors = [self._start(i, steps[i], states[i]) for i in range(begin, end)]
        self.work.sweeps += 1
        while asking := [cursor for cursor in cursors if self._to_stage(cursor)]:
            stages = [cursor.stage for cursor in asking]
            posts = self._ask([cursor.x for cursor in asking], [stage.t for stage in stages])
            for cursor, stage, post in zip(asking, stages, posts, strict=True):
                self._apply(cursor, stage, post)
        return [cursor.x for cursor in cursors]

    def forget(self, begin: int) -> None:
        """Drop the noise of steps that are done."""
        self.draws = {key: z for key, z in self.draws.items() if key[0] >= begin}

    def _start(self, number: int, entries: list[Stage | Renoise], x: Tensor) -> _Cursor:
        first = entries[0]
        return _Cursor(number, entries, enter_all(self.constraints, x, first.t, first.step, self.noise))

    def _to_stage(self, cursor: _Cursor) -> bool:
        """Go up where the step says so; return whether an evaluation is next."""
        while cursor.place < len(cursor.entries) and isinstance(entry := cursor.entries[cursor.place], Renoise):
            z = self._drawn(cursor, entry)
            assert z is not None
            cursor.x, cursor.memory = entry.apply(cursor.x, z), NOTHING
            cursor.place += 1
        return cursor.place < len(cursor.entries)

    def _ask(self, states: list[Tensor], times: list[Time]) -> Iterable[Any]:
        count = len(states)
        if count not in self.embedded:
            self.embedded[count] = self.embed(count)
        if count == 1:
            t: Time = times[0]
        else:
            rows = [expand_time(time, x) for time, x in zip(times, states, strict=True)]
            t = torch.cat(rows)
        post = self.denoiser(torch.cat(states), t, self.embedded[count])
        self.work.calls += 1
        self.work.nfe += self.denoiser.calls(t) * count
        return [_rows(post, i * self.batch, (i + 1) * self.batch) for i in range(count)]

    def _apply(self, cursor: _Cursor, stage: Stage, post: Any) -> None:
        if cursor.memory is None:  # read now: the step before may have just been made
            cursor.memory = self.memories.get(cursor.number, NOTHING)
        for constraint in self.constraints:
            post = constraint.correct(post, cursor.x, stage.t, stage.s)
        own = own_state(self.denoiser.process, cursor.x, post, stage.t, stage.frozen)
        z = self._drawn(cursor, stage)
        cursor.x, cursor.memory = self.solver.step(stage, own, post, cursor.memory, z)
        cursor.place += 1
        if stage.closes:
            cursor.x, edited = leave_all(self.constraints, cursor.x, stage.s, stage.step, self.noise)
            cursor.memory = NOTHING if edited else cursor.memory
            self.memories[cursor.number + 1] = cursor.memory

    def _drawn(self, cursor: _Cursor, entry: Stage | Renoise) -> Tensor | None:
        key = cursor.number, cursor.place
        if key not in self.draws:
            self.draws[key] = self.solver.draw(entry, cursor.x, self.noise)
        return self.draws[key]


@dataclass
class _Cursor:
    """How far a step of the sweep is."""

    number: int
    entries: list[Stage | Renoise]
    x: Tensor
    memory: Memory | None = None
    place: int = 0

    @property
    def stage(self) -> Stage:
        entry = self.entries[self.place]
        assert isinstance(entry, Stage)
        return entry


def _noise_levels(process: GaussianProcess, plan: Plan) -> Tensor:
    """Standard deviation of the noise of each step, as a root of a mean square over elements, float64 (K,)."""
    grid = plan.grid.cpu()
    late, early = torch.maximum(grid[:-1], grid[1:]), torch.minimum(grid[:-1], grid[1:])
    ancestral = torch.where(early == late, 0.0, torch.as_tensor(process.bridge(late, early, "ddim", 1.0).std))
    return ancestral.reshape(len(ancestral), -1).square().mean(1).sqrt()


def _rows(post: Any, low: int, high: int) -> Any:
    """The posterior of some rows of a batch."""
    changes = {f.name: _cut(getattr(post, f.name), low, high) for f in fields(post)}
    return post.replace(**changes)


def _cut(value: Any, low: int, high: int) -> Any:
    if isinstance(value, dict):
        return {name: part[low:high] for name, part in value.items()}
    return value[low:high] if isinstance(value, Tensor) else value
