"""Restorers that project: DDNM, DDS, DiffusionMBIR, RePaint, ILVR and Score-MRI. Most reproduce the noise of y."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from undiffuse.denoisers.each_slice import EachSlice
from undiffuse.limits import at_least_one, not_negative, positive, share
from undiffuse.noise import NoiseSource
from undiffuse.operators.mri import MRI, SingleCoilMRI
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.ddim import DDIM
from undiffuse.sampling.langevin import PredictorCorrector
from undiffuse.sampling.resampling import Resampled
from undiffuse.sampling.solver import Columns, Solver
from undiffuse.sampling.steps import Steps
from undiffuse.tasks.restore.constraints import (
    CoilFit,
    DataFit,
    RangeProjection,
    SmoothSlices,
    StateFit,
    poorly_conditioned,
)
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

    def solver(self, problem: Problem) -> Solver:
        """Return the rule of the steps."""
        raise NotImplementedError

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down under the constraint."""
        grid = grid_of(problem, steps, self.grid)
        return walk(problem, noise, self.solver(problem), grid, constraints=self.constraints(problem))

    def check(self, problem: Problem) -> list[str]:
        """Warn of noise that will be reproduced, and of operators that amplify it."""
        found = []
        if problem.noise_std > 0 or problem.noise_model is not None:
            found.append(
                f"noise of {problem.noise_std:g} (model units) in y will be reproduced: this method takes y for exact; "
                "use mmps, diffpir or ddrm."
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

    def steps(self, problem: Problem) -> Solver:
        """Return the rule of a step without travel."""
        return DDIM(eta=self.eta, rule=self.rule)

    def solver(self, problem: Problem) -> Solver:
        """Return the rule of the steps."""
        steps = self.steps(problem)
        travels = {"passes": self.repeats, "jump": self.jump, "last": True}
        return steps if self.repeats == 1 else Resampled(solver=steps, **travels)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class LessNoise(DDIM):
    """DDIM whose steps add what is missing to noise that the mean has already: sqrt(n^2 - min(n, |k| known)^2).

    Args:
        known: Standard deviation of the mean's noise; k is the mean's factor in a step.
    """

    known: float = 0.0

    def coefficients(self, steps: Steps) -> Columns:
        """Lessen the noise of every step."""
        columns = super().coefficients(steps)
        assert columns.noise is not None
        brought = torch.minimum(columns.noise, self.known * columns.mean.abs())
        return replace(columns, noise=(columns.noise**2 - brought**2).clamp(min=0).sqrt())


@dataclass(frozen=True, kw_only=True)
class DDNMRestorer(Projected):
    """The null-space model; see `constraints.RangeProjection`.

    Args:
        eps: "own" noise, or "new" to see why not.
        scaled: Make as much of each correction as the noise of a step covers, and lessen that noise by it: DDNM+
            without singular values, for operators whose pseudo-inverse does not amplify noise, such as masks. The noise
            of an answer then follows from its corrected mean, whatever `eps` is.

    Source: Wang et al. 2022, arXiv:2212.00490, eq. 17 to 19.
    """

    needs: ClassVar[tuple[str, ...]] = ("linear", "pinv")
    eps: Literal["own", "new"] = "own"
    scaled: bool = False

    def __post_init__(self) -> None:
        if self.scaled and self.eta == 0:
            raise ValueError("scaled=true weighs corrections by the fresh noise of a step; give eta above 0.")

    def steps(self, problem: Problem) -> Solver:
        """Return the rule of a step without travel."""
        if not self.scaled:
            return super().steps(problem)
        return LessNoise(eta=self.eta, rule=self.rule, known=problem.noise_std)

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Project every answer."""
        process, told = process_of(problem), (_linear(problem), problem.y)
        if not self.scaled or problem.noise_std == 0:
            return [RangeProjection(process, *told, self.eps)]
        return [RangeProjection(process, *told, "new", partial(self.covered, process, problem.noise_std))]

    def covered(self, process: GaussianProcess, noise_std: float, t: Time, s: Time) -> float:
        """Return the part of a correction whose noise is no more than the step's own."""
        if isinstance(t, Tensor) or isinstance(s, Tensor):
            raise ValueError("scaled=true takes times shared by the batch; use a grid without items.")
        c_x0, c_eps, std = (float(c) for c in process.bridge(t, s, self.rule, self.eta))
        alpha, sigma = (float(c) for c in process.coefficients(t, torch.zeros(1)))
        brought = abs(c_x0 - c_eps * alpha / sigma) * noise_std
        return min(1.0, std / brought) if brought else 1.0

    def check(self, problem: Problem) -> list[str]:
        """Warn of noise that will be reproduced where nothing is scaled, and of operators that amplify it."""
        return super().check(replace(problem, noise_std=0.0, noise_model=None) if self.scaled else problem)


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

    def __post_init__(self) -> None:
        not_negative(self, "gamma")
        at_least_one(self, "iterations")

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Fit every answer to the data."""
        told = process_of(problem), _linear(problem), problem.y
        return [DataFit(*told, self.weight(problem.noise_std), self.iterations)]

    def weight(self, std: float) -> float:
        """Return gamma for a measurement with this noise."""
        return self.gamma if self.gamma is not None else min(2.0, 0.016 / std**2) if std > 0 else 5.0

    def check(self, problem: Problem) -> list[str]:
        """Nothing to warn of."""
        return []


@dataclass(frozen=True, kw_only=True)
class DiffusionMBIRRestorer(DDSRestorer):
    """DDS of volumes with a prior of slices, whose neighbours are held together; see `constraints.SmoothSlices`.

    Published are lam 0.04 and rho 10, for data weighed differently and CT in its own units; here 0.1 and 1 did well on
    volumes of digits with few pixels each, with slow drifts and with jumps, where rho 10 is too slow (measured).

    Args:
        lam: Weight of the differences between neighbouring slices; 0 is DDS.
        rho: Of ADMM.
        rounds: Of ADMM, in each step.
    """

    needs: ClassVar[tuple[str, ...]] = ("linear", "slices")
    lam: float = 0.1
    rho: float = 1.0
    rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "lam")
        positive(self, "rho")
        at_least_one(self, "rounds")

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Fit every answer to the data and its slices to each other."""
        told = process_of(problem), _linear(problem), problem.y
        more = {"lam": self.lam, "rho": self.rho, "rounds": self.rounds}
        return [SmoothSlices(*told, self.weight(problem.noise_std), self.iterations, **more)]  # type: ignore[arg-type]

    def check(self, problem: Problem) -> list[str]:
        """Refuse a prior that is not one of slices.

        Raises:
            ValueError: It is not.
        """
        if not any(isinstance(part, EachSlice) for part in problem.denoiser.modules()):
            raise ValueError(
                f"diffusion-mbir takes a model of slices for a volume (Z, C, H, W); this one makes all of "
                f"{problem.shape} at once, so use dds, or wrap a bare denoiser of slices by EachSlice."
            )
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

    def __post_init__(self) -> None:
        share(self, "weight", "until")

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Replace what the operator keeps after every step."""
        options: dict[str, Any] = {"noise": "x", "weight": self.weight, "until": self.until}
        return [StateFit(process_of(problem), _linear(problem), problem.y, **options)]


@dataclass(frozen=True, kw_only=True)
class ScoreMRIRestorer(Held):
    """Predictor and corrector steps, each followed by x + weight A^T (alpha y - A x).

    With several coils that is the form for the combined picture. In the hybrid form the picture of each coil goes its
    own way, and every `combine_every` steps they are combined; see `constraints.CoilFit`. The prior is asked about
    each of them, though a coil sees but a part of the picture: with an exact prior the hybrid form is less accurate,
    and the less the more seldom coils are combined (measured).

    Args:
        weight: Of the projection: 1 for one coil.
        snr: Of the Langevin corrector.
        combine_every: Steps; None: one picture for all coils.

    Source: Chung and Ye 2022, "Score-based diffusion models for accelerated MRI", arXiv:2110.05243, algorithm 2 and the
        forms for several coils.
    """

    weight: float = 1.0
    snr: float = 0.16
    combine_every: int | None = None

    def __post_init__(self) -> None:
        not_negative(self, "weight")
        at_least_one(self, "combine_every")

    def check(self, problem: Problem) -> list[str]:
        """Refuse coils where there are none, and warn of noise.

        Raises:
            ValueError: The operator is no MR scan of complex pictures.
        """
        scan = problem.operator
        if self.combine_every and not (isinstance(scan, MRI | SingleCoilMRI) and scan.in_shape[0] == 2):
            raise ValueError(
                f"combine_every={self.combine_every} needs an MR scan of complex pictures (2, H, W), whose coils are "
                f"combined, and {scan.describe()} is not that; leave it out."
            )
        return super().check(problem)

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down with one picture, or with one of each coil."""
        if not self.combine_every:
            return super().solve(problem, noise, steps)
        scan: Any = problem.operator
        coils = scan.out_shape[0]
        first = None if problem.x_init is None else scan.split(problem.x_init)
        apart = replace(problem, denoiser=EachSlice(problem.denoiser, coils), shape=(coils, *problem.shape))
        apart = replace(apart, operator=scan.each_coil(), x_init=first)
        fit = CoilFit(process_of(problem), scan, problem.y, every=self.combine_every, weight=self.weight)
        found = walk(apart, noise, self.solver(problem), grid_of(problem, steps, self.grid), constraints=[fit])
        return replace(found, x=scan.combined(found.x))

    def solver(self, problem: Problem) -> Solver:
        """Return the predictor-corrector."""
        return PredictorCorrector(snr=self.snr)

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Step towards the data after every step."""
        options: dict[str, Any] = {"weight": self.weight, "back": "adjoint", "noise": "none"}
        return [StateFit(process_of(problem), _linear(problem), problem.y, **options)]


def _linear(problem: Problem) -> Any:
    return problem.operator
