"""How far each step may be off: the difference to a step of lower order from the same answers, which costs nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.process.gaussian import GaussianProcess, plus, scaled
from undiffuse.process.times import Time
from undiffuse.sampling.around import Around
from undiffuse.sampling.plan import AffineStage, Coefficient, Plan, Renoise, Stage
from undiffuse.sampling.solver import Memory
from undiffuse.sampling.stages import first_order, number
from undiffuse.sampling.unipc import UniPC


@dataclass(frozen=True)
class StepError:
    """What one step may be off.

    Args:
        step: Number of the step.
        s: Where it ends.
        error: Root mean square difference of each sample (B,), in units of the state.
    """

    step: int
    s: Time
    error: Tensor


@dataclass(frozen=True, kw_only=True)
class Compared(Around):
    """Another solver's steps, each compared with one of lower order that the same answers give.

    A multistep rule is compared with itself with one answer fewer to remember; a step of several evaluations with the
    first-order step (DDIM) of its first. The difference estimates the error of the lower order, so it is an upper
    estimate for the step that is taken, and says where along the grid steps are too long. Steps that are of first order
    themselves, such as a step to t = 0, have nothing to be compared with and are not heard. Noise is the same in both.
    Samples are those of the solver, bit for bit. In a run in parallel over time every guess is heard.

    Args:
        solver: Takes the steps.
        heard: Called after each step that can be compared.

    Source: principles, section 2.11, item 7.
    """

    heard: Callable[[StepError], None]

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Return the solver's plan, in which the last stages of several also know their first-order step.

        Raises:
            PlanError: The solver's steps are no affine rule of a grid, or mend the step before too (UniPC corrector).
        """
        name = type(self.solver).__name__
        if isinstance(self.solver, UniPC) and self.solver.corrector:
            raise PlanError(f"steps of {name} also correct the step before; use corrector=False to compare them.")
        if self.solver.draws_times or self.solver.discrete:
            raise PlanError(
                f"{name} has no steps on a grid that could be compared; use dpm++2m or another such solver."
            )
        plan = self.solver.plan(process, grid)
        if not all(isinstance(stage, AffineStage) for stage in plan.stages):
            raise PlanError(f"steps of {name} are not all affine, so that none of lower order follows from them.")
        return Plan(tuple(_with_first_order(process, plan.entries)), plan.grid)

    def step(self, stage: Any, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Step, and tell how far the step of lower order would have ended from there."""
        moved, kept = self.solver.step(stage, x, post, memory, z)
        if stage.closes:
            lower = self._lower(stage, x, post, memory, z)
            if lower is not None:
                gap = (moved - lower) if stage.frozen is None else torch.where(stage.frozen, 0.0, moved - lower)
                self.heard(StepError(stage.step, stage.s, gap.detach().flatten(1).square().mean(1).sqrt()))
        return moved, kept

    def _lower(self, stage: Any, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> Tensor | None:
        """Return where the step of lower order ends; None where there is none."""
        if isinstance(stage, ComparedStage):
            assert memory.start is not None
            return plus(scaled(stage.first_state, memory.start), stage.first_mean, memory.means[-1])
        used = min(len(memory.past), len(stage.means) - 1)
        fewer = next((q for q in reversed(range(used)) if not _same(stage.means[q], stage.means[used])), None)
        if fewer is None:
            return None
        return self.solver.step(stage, x, post, Memory(memory.start, memory.means, memory.past[:fewer]), z)[0]


@dataclass(kw_only=True)
class ComparedStage(AffineStage):
    """The last stage of a step of several, with the first-order step: first_state x_start + first_mean D_first."""

    first_state: Coefficient
    first_mean: Coefficient


def _with_first_order(process: GaussianProcess, entries: Iterable[Stage | Renoise]) -> Iterator[Stage | Renoise]:
    """Yield the entries of a plan, with a `ComparedStage` where a step of several stages closes."""
    begun: Stage | None = None
    for entry in entries:
        if isinstance(entry, AffineStage):
            begun = begun or entry
            if entry.closes and entry is not begun:
                planned = {f.name: getattr(entry, f.name) for f in fields(AffineStage)}
                t, s = (torch.as_tensor(time, dtype=torch.float64) for time in (begun.t, entry.s))
                state, mean = map(number, first_order(process, t, s))
                entry = ComparedStage(**planned, first_state=state, first_mean=mean)
            begun = None if entry.closes else begun
        yield entry


def _same(short: tuple[Coefficient, ...], row: tuple[Coefficient, ...]) -> bool:
    """Whether a rule that knows more answers gives none of them a weight."""
    padded = (*short, *(0.0 for _ in row[len(short) :]))
    return all(bool((torch.as_tensor(a) == torch.as_tensor(b)).all()) for a, b in zip(padded, row, strict=True))
