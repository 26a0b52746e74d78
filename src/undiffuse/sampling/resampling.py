r"""Resampling (RePaint), or time travel: take every step several times, going back up in between.

A constraint that overwrites known elements at the noise level of the step (`constraints.Replacement`) tells the rest
too little: the rest was drawn before it saw the values that it is now put beside. Going back up, q(x_t | x_s), and
stepping down again lets the rest follow. The bias falls with the number of passes and not with the number of steps.

Source: Lugmayr et al. 2022, "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", algorithm 1,
    arXiv:2201.09865, for Gaussian processes; the same for tokens. Groups of steps: section 4.2 there, and Wang et al.
    2022, "DDNM", arXiv:2212.00490, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.around import Around
from undiffuse.sampling.plan import Coefficient, Plan, Renoise, Stage, split_steps


@dataclass(kw_only=True)
class RenoiseTokens(Renoise):
    """Going up with tokens: x_s ~ q(x_s | x_t), from one uniform per token."""

    process: CategoricalProcess
    scale: Coefficient = 1.0
    std: Coefficient = 0.0

    def apply(self, x: Tensor, z: Tensor) -> Tensor:
        """Draw the noisier tokens."""
        return self.process.renoise(x, self.t, self.s, z)


@dataclass(frozen=True, kw_only=True)
class Resampled(Around):
    """Any solver on a grid, with each group of `jump` steps but the last taken `passes` times.

    With jump 1 it costs passes * (steps - 1) + 1 times the evaluations of a step. Constraints enter and leave in every
    pass. Entries of the plan are numbered anew, so that each pass has noise of its own.

    Args:
        solver: See `Around`.
        passes: How often a group is gone through; 1 is the solver itself.
        jump: Steps per group.
        last: Whether the group that ends with clean data is repeated as well.

    Raises:
        ValueError: `passes` or `jump` is below 1.
        PlanError: The solver draws its own times, or its noise is that of one path, which has a value at each time.
    """

    passes: int = 8
    jump: int = 1
    last: bool = False

    def __post_init__(self) -> None:
        if self.jump < 1:
            raise ValueError(f"jump={self.jump} must be at least 1, which goes back step by step.")
        if self.passes < 1:
            raise ValueError(f"resample={self.passes} must be at least 1, which is every step once.")
        name = type(self.solver).__name__
        if self.solver.draws_times or self.solver.reads_start:
            raise PlanError(
                f"{name} plans by the masks that there are or its own times; repeat another solver's steps."
            )
        if getattr(self.solver, "path", False):
            raise PlanError(f"{name} with path=True has one value of its noise at each time; set path=False.")

    @property
    def discrete(self) -> bool:  # type: ignore[override]
        """Whether it walks a categorical process."""
        return self.solver.discrete

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise: going up does."""
        return self.passes > 1 or self.solver.stochastic

    def prepare(
        self, process: GaussianProcess | CategoricalProcess, grid: Tensor | None, x: Tensor, noise: NoiseSource
    ) -> Plan:
        """Let the solver check and plan, then repeat its steps."""
        return self._repeated(self.solver.prepare(process, grid, x, noise), process)

    def plan(self, process: Any, grid: Tensor) -> Plan:
        """Repeat the steps of the solver's plan."""
        return self._repeated(self.solver.plan(process, grid), process)

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw what the solver needs; going up with tokens one uniform each, else a normal."""
        if isinstance(entry, RenoiseTokens):
            return noise.uniform("step", entry.step, tuple(x.shape[1:]))
        if isinstance(entry, Renoise) and entry.undoes:
            return noise.normal("step", entry.step, tuple(x.shape[1:]), x.dtype)
        return self.solver.draw(entry, x, noise)

    def _repeated(self, plan: Plan, process: GaussianProcess | CategoricalProcess) -> Plan:
        entries: list[Stage | Renoise] = []
        number = 0
        steps = split_steps(plan.entries)
        for low in range(0, len(steps), self.jump):
            group = steps[low : low + self.jump]
            ends = low + self.jump >= len(steps)
            for again in range(1 if ends and not self.last else self.passes):
                if again:
                    entries.append(_way_up(process, group, number))
                    number += 1
                for step in group:
                    entries += [replace(entry, step=number) for entry in step]
                    number += 1
        return Plan(tuple(entries), plan.grid)


def _way_up(
    process: GaussianProcess | CategoricalProcess, group: Sequence[Sequence[Stage | Renoise]], number: int
) -> Renoise:
    """Return the entry that takes the steps of a group back by the forward kernel."""
    t, s, undoes = group[-1][-1].s, group[0][0].t, len(group)
    if isinstance(process, CategoricalProcess):
        return RenoiseTokens(step=number, t=t, s=s, process=process, undoes=undoes)
    scale, std = process.forward_kernel(t, s)
    return Renoise(step=number, t=t, s=s, scale=scale, std=std, undoes=undoes)
