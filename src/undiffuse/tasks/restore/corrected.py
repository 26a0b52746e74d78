"""Restorers that correct the posterior mean by a wrapper and walk down with DDIM: PiGDM, MMPS, TMPD, JFPS, DiffPIR."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.guidance.covariance import JFPS, MMPS, TMPD
from undiffuse.guidance.measurement import LEAST_TAKEN, PiGDM, Proximal
from undiffuse.limits import at_least_one
from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.ddim import DDIM
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.resampling import Resampled
from undiffuse.sampling.solver import Solver
from undiffuse.tasks.restore.constraints import KnownPixels
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.walk import grid_of, walk

LEAST_NOISE = 1e-2
"""Least noise of y, as a share of the data's standard deviation, of methods that divide by it."""
_MOST_VARIANCE = 4.0  # of x_0 given x_t over that of the data, for the proximal step of DiffPIR
_TRAVELS = 40  # evaluations from which MMPS goes each part of the way twice


@dataclass(frozen=True, kw_only=True)
class Corrected(Restorer):
    """Base: a wrapper around the prior, and a solver.

    Args:
        grid: Spacing of the steps; see `process.make_grid`.
        solver: Another solver than the method's own, or its name, for experiments; options of its own are then not
            used.
    """

    grid: str = "logsnr"
    solver: Solver | str | None = None

    @abstractmethod
    def wrap(self, problem: Problem) -> Denoiser:
        """Return the prior that knows the measurement."""

    @abstractmethod
    def rule(self, problem: Problem) -> Solver:
        """Return the method's own solver."""

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Return what holds beside the correction."""
        return ()

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down with the corrected mean."""
        grid = grid_of(problem, steps, self.grid)
        solver = make_solver(self.solver) if isinstance(self.solver, str) else self.solver or self.rule(problem)
        return self.walked(problem, noise, solver, grid)

    def walked(self, problem: Problem, noise: NoiseSource, solver: Solver, grid: Tensor) -> Solution:
        """Walk down a grid by a solver with the corrected mean."""
        options: dict[str, Any] = {"constraints": self.constraints(problem), "gradient": self.gradient}
        return walk(problem, noise, solver, grid, denoiser=self.wrap(problem), **options)


@dataclass(frozen=True, kw_only=True)
class Matched(Corrected):
    """Base: DDIM with the corrected mean, and time travel where asked for.

    A corrected mean is a guess where there is much noise and good where there is little. Going back up forgets what the
    guesses chose, and down again with the answer nearly known chooses better.

    Args:
        eta: Share of fresh noise; 1 is the DDPM posterior.
        repeats: How often each part of the way is gone through; 1 is without travel. The number of steps is that of
            evaluations: the grid has as many fewer.
        jump: Steps of the grid that time travel goes back; None: a fifth of them.
    """

    eta: float = 1.0
    repeats: int | None = 1
    jump: int | None = None

    def __post_init__(self) -> None:
        if any(count is not None and count < 1 for count in (self.repeats, self.jump)):
            raise ValueError(f"repeats={self.repeats} and jump={self.jump} must be at least 1.")

    def passes(self, steps: int) -> int:
        """Return how often each part of the way is gone through with `steps` evaluations."""
        return self.repeats or 1

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Walk down with the corrected mean, and back where asked for."""
        passes = self.passes(steps)
        if self.solver is not None or passes == 1:
            return super().solve(problem, noise, steps)
        grid = grid_of(problem, max(1, round(steps / passes)), self.grid)
        jump = self.jump or max(1, (len(grid) - 1) // 5)
        solver = Resampled(solver=self.rule(problem), passes=passes, jump=jump, last=True)
        return self.walked(problem, noise, solver, grid)

    def rule(self, problem: Problem) -> Solver:
        """Return DDIM."""
        return DDIM(eta=self.eta)


@dataclass(frozen=True, kw_only=True)
class MMPSRestorer(Matched):
    """Moment-matching posterior sampling; see `guidance.covariance.MMPS`.

    Args:
        iterations: Of the linear solver, a backward pass each.
        krylov: "cg" or "gmres".
        repeats: As in `Matched`; None: 2 from 40 evaluations on, below which they are too few for two ways. On the
            digits with half of the pixels missing the spread is then 1.01 instead of 1.16 of the exact one, and the
            energy distance about half, at equal cost (measured).
    """

    gradient: ClassVar[bool] = True
    repeats: int | None = None
    iterations: int = 5
    krylov: Literal["cg", "gmres"] = "cg"

    def passes(self, steps: int) -> int:
        """Return `repeats`, or 2 where the steps are enough for it."""
        return self.repeats or (2 if steps >= _TRAVELS else 1)

    def wrap(self, problem: Problem) -> Denoiser:
        """Put MMPS around the prior."""
        std = floored(problem)
        return MMPS(problem.denoiser, _linear(problem), problem.y, std, self.iterations, self.krylov)

    def check(self, problem: Problem) -> list[str]:
        """Say where the noise was floored."""
        return floor_warning(problem)


@dataclass(frozen=True, kw_only=True)
class TMPDRestorer(Matched):
    """Tweedie moment projected diffusion; see `guidance.covariance.TMPD`.

    Args:
        probes: Random vectors for the diagonal; 0: unit vectors, a backward pass for each number of y; None: unit
            vectors for analytic priors, else 16 probes.
    """

    gradient: ClassVar[bool] = True
    probes: int | None = None

    def wrap(self, problem: Problem) -> Denoiser:
        """Put TMPD around the prior."""
        probes = (0 if isinstance(problem.denoiser, MixtureDenoiser) else 16) if self.probes is None else self.probes
        return TMPD(problem.denoiser, _linear(problem), problem.y, floored(problem), probes)

    def check(self, problem: Problem) -> list[str]:
        """Say where the noise was floored."""
        return floor_warning(problem)


@dataclass(frozen=True, kw_only=True)
class JFPSRestorer(Matched):
    """The correction with a fixed covariance of the data; see `guidance.covariance.JFPS`.

    Args:
        covariance: Of the data, (D, D); None: that of an analytic prior, else the data's variance times I.
        iterations: Of the linear solver.
    """

    uses_data_var: ClassVar[bool] = True
    covariance: Tensor | None = None
    iterations: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "iterations")

    def wrap(self, problem: Problem) -> Denoiser:
        """Put JFPS around the prior."""
        covariance: Tensor | float = problem.data_var
        if self.covariance is not None:
            covariance = self.covariance
        elif isinstance(problem.denoiser, MixtureDenoiser):
            covariance = problem.denoiser.moments()[1]
        return JFPS(problem.denoiser, _linear(problem), problem.y, floored(problem), covariance, self.iterations)

    def check(self, problem: Problem) -> list[str]:
        """Say where the noise was floored."""
        return floor_warning(problem)


@dataclass(frozen=True, kw_only=True)
class PiGDMRestorer(Matched):
    """Pseudo-inverse guidance of the posterior mean; see `guidance.measurement.PiGDM`.

    Args:
        data_var: Variance of one element of the data; None: measured from the prior. The paper has 1.
        replace_known: Replace the known pixels of every corrected answer by y, for masks and y without noise.
    """

    gradient: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("pinv",)
    uses_data_var: ClassVar[bool] = True
    data_var: float | None = None
    replace_known: bool = False
    grid: str = "t"

    def constraints(self, problem: Problem) -> Sequence[Constraint]:
        """Replace what is known, where asked for."""
        return [KnownPixels(problem, "new")] if self.replace_known else []

    def check(self, problem: Problem) -> list[str]:
        """Refuse to replace pixels where there is no mask, and warn of their noise."""
        return KnownPixels.check(problem) if self.replace_known else []

    def wrap(self, problem: Problem) -> Denoiser:
        """Put PiGDM around the prior."""
        v = problem.data_var if self.data_var is None else self.data_var
        return PiGDM(problem.denoiser, problem.operator, problem.y, problem.noise_std, v)


@dataclass(frozen=True, kw_only=True)
class DiffPIRRestorer(Corrected):
    """Plug-and-play restoration; see `guidance.measurement.Proximal`.

    Args:
        lam: Weight of the prior; 1 takes s^2, up to 4 times the data's variance, for the variance of x_0 given x_t.
        zeta: Share of the noise's variance that is fresh; None: 0.3 where the measurement says something about every
            element, else 0.6.
    """

    lam: float = 1.0
    zeta: float | None = None
    grid: str = "clean-end"

    def __post_init__(self) -> None:
        if self.zeta is not None and not 0 <= self.zeta <= 1:
            raise ValueError(f"zeta={self.zeta} is outside [0, 1], a share of the noise's variance.")

    def wrap(self, problem: Problem) -> Denoiser:
        """Put the proximal step around the prior; the last answer is left as it is."""
        process = problem.denoiser.process
        assert isinstance(process, GaussianProcess)
        last = process.schedule.t_min
        most = _MOST_VARIANCE * problem.data_var
        told = (problem.operator, problem.y, problem.noise_std)
        return Proximal(problem.denoiser, *told, self.lam, until=last, most=most)

    def rule(self, problem: Problem) -> Solver:
        """Return DDIM with a share of fresh noise in every step."""
        zeta = self.zeta if self.zeta is not None else 0.6 if misses_elements(problem) else 0.3
        return DDIM(eta=zeta**0.5, rule="mixed")

    def check(self, problem: Problem) -> list[str]:
        """Say where the noise was floored."""
        return raised_warning(problem, LEAST_TAKEN)


def floored(problem: Problem) -> float | Tensor:
    """Return the noise of y, at least `LEAST_NOISE` of the data's standard deviation."""
    least = LEAST_NOISE * problem.data_var**0.5
    if problem.noise_model is not None:
        std: Any = problem.noise_model.std_like(problem.y)
        return std.clamp(min=least) if isinstance(std, Tensor) else max(float(std), least)
    return max(problem.noise_std, least)


def floored_number(problem: Problem) -> float:
    """Return the noise of y as one number for all rows, floored likewise."""
    return max(problem.noise_std, LEAST_NOISE * problem.data_var**0.5)


def floor_warning(problem: Problem) -> list[str]:
    """Say that `floored` raised the noise."""
    return raised_warning(problem, LEAST_NOISE * problem.data_var**0.5)


def raised_warning(problem: Problem, least: float) -> list[str]:
    """Say that the noise was raised to `least`, where it was below."""
    if problem.noise_model is not None or problem.noise_std >= least:
        return []
    return [
        f"noise_std={problem.noise_std:g} was raised to {least:.3g} (model units): this method divides by the noise."
    ]


def misses_elements(problem: Problem) -> bool:
    """Whether the measurement says nothing about some directions of x, so that the prior alone fills them."""
    operator = problem.operator
    if operator.is_svd:
        return bool((operator.singulars() == 0).any())  # type: ignore[attr-defined]
    size = 1
    for length in operator.in_shape:
        size *= length
    return problem.y[0].numel() < size


def _linear(problem: Problem) -> Any:
    return problem.operator
