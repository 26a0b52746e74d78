"""Restorers that project: DDNM, DDS, RePaint, ILVR and Score-MRI. Most reproduce the measurement's noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from undiffuse.noise import NoiseSource
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.ddim import DDIM
from undiffuse.sampling.langevin import PredictorCorrector
from undiffuse.sampling.resampling import Resampled
from undiffuse.sampling.solver import Solver
from undiffuse.tasks.restore.constraints import DataFit, RangeProjection, StateFit, poorly_conditioned
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.walk import grid_of, process_of, walk


@dataclass(frozen=True, kw_only=True)
class Held(Restorer):
    """Base: a solver and a constraint.

    Args:
        grid: Spacing of the steps.
    """

    noise: ClassVar[bool] = False
    grid: str = "t"

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Return what holds the sample to the measurement."""
        raise NotImplementedError

    def solver(self) -> Solver:
        """Return the rule of the steps."""
        raise NotImplementedError

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down under the constraint."""
        grid = grid_of(problem, steps, self.grid)
        return walk(problem, noise, self.solver(), grid, constraints=self.constraints(problem))

    def check(self, problem: Problem) -> list[str]:
        """Warn of noise that will be reproduced, and of operators that amplify it."""
        found = []
        if problem.noise_std > 0 or problem.noise_model is not None:
            found.append(
                f"noise of {problem.noise_std:g} in y will be reproduced: this method takes y for exact; use mmps, "
                "diffpir or ddrm."
            )
        operator: Any = problem.operator
        if operator.linear and poorly_conditioned(operator):
            found.append("the operator's pseudo-inverse is ill-conditioned, so this method fails; use mmps or diffpir.")
        return found


@dataclass(frozen=True, kw_only=True)
class Projected(Held):
    """Base: DDIM, and time travel where asked for.

    Args:
        eta: Share of fresh noise.
        rule: "ddim", or "mixed" as in the published codes of DDNM and DDS.
        jump: Steps that time travel goes back.
        repeats: How often each group of `jump` steps is gone through; 1 is without travel.
    """

    eta: float = 0.85
    rule: Literal["ddim", "mixed"] = "ddim"
    jump: int = 1
    repeats: int = 1

    def solver(self) -> Solver:
        """Return the rule of the steps."""
        steps = DDIM(eta=self.eta, rule=self.rule)
        travels = {"passes": self.repeats, "jump": self.jump, "last": True}
        return steps if self.repeats == 1 else Resampled(solver=steps, **travels)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class DDNMRestorer(Projected):
    """The null-space model; see `constraints.RangeProjection`.

    Args:
        eps: "own" noise, or "new" to see why not.
    """

    needs: ClassVar[tuple[str, ...]] = ("linear", "pinv")
    eps: Literal["own", "new"] = "own"

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Project every answer."""
        return [RangeProjection(process_of(problem), _linear(problem), problem.y, self.eps)]


@dataclass(frozen=True, kw_only=True)
class DDSRestorer(Projected):
    """The decomposed diffusion sampler; see `constraints.DataFit`.

    Args:
        gamma: Weight of the data; None: by the noise, min(2, 0.016 / noise_std^2): 2 at 0.05, 0.1 at 0.4 (measured).
        iterations: Of conjugate gradients.
    """

    noise: ClassVar[bool] = True
    gamma: float | None = None
    iterations: int = 5

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Fit every answer to the data."""
        std = problem.noise_std
        gamma = self.gamma if self.gamma is not None else min(2.0, 0.016 / std**2) if std > 0 else 5.0
        return [DataFit(process_of(problem), _linear(problem), problem.y, gamma, self.iterations)]

    def check(self, problem: Problem) -> list[str]:
        """Nothing to warn of."""
        return []


@dataclass(frozen=True, kw_only=True)
class RePaintRestorer(Projected):
    """Inpainting by noisy replacement with resampling; see `constraints.StateFit` and `sampling.resampling`.

    The paper has jump 10, repeats 10 and 250 steps; on small pictures jump 1 is better calibrated (measured).
    """

    needs: ClassVar[tuple[str, ...]] = ("mask",)
    eta: float = 1.0
    repeats: int = 10

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Replace the known part after every step."""
        return [StateFit(process_of(problem), _linear(problem), problem.y)]


@dataclass(frozen=True, kw_only=True)
class ILVRRestorer(Projected):
    """Replacement of the low frequencies, or of whatever the operator keeps; see `constraints.StateFit`.

    With weight lam below 1 this is the proximal step in measurement space of Song et al. for MRI and CT.

    Args:
        weight: lam in [0, 1].
        until: Below this time the sample goes its own way.
    """

    needs: ClassVar[tuple[str, ...]] = ("linear", "pinv")
    eta: float = 1.0
    weight: float = 1.0
    until: float = 0.0

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Replace what the operator keeps after every step."""
        options: dict[str, Any] = {"noise": "x", "weight": self.weight, "until": self.until}
        return [StateFit(process_of(problem), _linear(problem), problem.y, **options)]


@dataclass(frozen=True, kw_only=True)
class ScoreMRIRestorer(Held):
    """Predictor and corrector steps, each followed by x + weight A^T (alpha y - A x).

    Args:
        weight: Of the projection: 1 for one coil.
        snr: Of the Langevin corrector.

    Source: Chung and Ye 2022, "Score-based diffusion models for accelerated MRI", arXiv:2110.05243, algorithm 2.
    """

    weight: float = 1.0
    snr: float = 0.16

    def solver(self) -> Solver:
        """Return the predictor-corrector."""
        return PredictorCorrector(snr=self.snr)

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Step towards the data after every step."""
        options: dict[str, Any] = {"weight": self.weight, "back": "adjoint", "noise": "none"}
        return [StateFit(process_of(problem), _linear(problem), problem.y, **options)]


def _linear(problem: Problem) -> Any:
    return problem.operator
