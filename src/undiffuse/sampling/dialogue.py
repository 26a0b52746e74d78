"""Plans that are written while the run goes on: a generator asks, is told the answers, and says where the state goes.

Adaptive solvers need this. Everything around them stays with the loop, as for plans known beforehand: asking and
counting, constraints, callbacks. A generator yields, and is sent in return,

    Begin     a step begins: constraints enter; it is sent the state,
    Question  an evaluation: it is sent (state, posterior) after corrections,
    Arrival   the step is done: constraints leave; it is sent the state, which they may have edited.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.process.times import Time
from undiffuse.sampling.plan import Plan


@dataclass(kw_only=True)
class Begin:
    """A step begins at times `t` of the samples."""

    step: int
    t: Time


@dataclass(kw_only=True)
class Question:
    """The denoiser is asked about `x` at `t`, on a step that is to lead to `s`."""

    step: int
    t: Time
    s: Time
    x: Tensor


@dataclass(kw_only=True)
class Arrival:
    """A step ends with the state `x` at times `s`; samples whose attempt was refused stand where they stood."""

    step: int
    t: Time
    s: Time
    x: Tensor


Talk = Generator[Begin | Question | Arrival, Any, None]


@dataclass(frozen=True)
class OpenPlan(Plan):
    """A plan whose entries follow from the answers.

    Args:
        entries: None known beforehand.
        grid: First and last times, (2,) or (2, B, F).
        talk: Starts the generator.
    """

    talk: Callable[[Tensor], Talk]

    @property
    def evaluations(self) -> int:
        """Refuse: the number is not known beforehand.

        Raises:
            PlanError: Always.
        """
        raise PlanError("an adaptive solver finds its number of evaluations on the way; read nfe of the result.")

    def to(self, x: Tensor) -> OpenPlan:
        """Return the plan itself: its coefficients are made on the device of the state."""
        return self
