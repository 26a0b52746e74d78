"""Restoration by a model that was trained for it: the measurement is a condition, and the model is sampled."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from undiffuse.data.pairs import SOURCE
from undiffuse.denoisers.shift import ShiftedDenoiser
from undiffuse.noise import NoiseSource
from undiffuse.operators.noise import STREAM
from undiffuse.operators.parse import image_units
from undiffuse.sampling.registry import make_solver
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.walk import grid_of, walk
from undiffuse.training.degrade import NOISE_LEVEL

_ROUNDING = 1e-6
_ADDED = 1  # step of the draw of noise that is added to y; the noise of measurements is drawn at step 0


@dataclass(frozen=True, kw_only=True)
class Supervised(Restorer):
    """Draw from a model with the condition "source", given y on the grid of the items.

    Where the model walks from the given picture (`process.start=source`), so do these steps, and a latent model walks
    from its latents. The operator only brings y to that grid; which operator and noise the model can undo was settled
    by its training.

    A model trained with a range of noise (`data.degrade=...|noise:gaussian,0..0.2`) is told how noisy y is. Where that
    is less than `level`, or than the lowest level it knows, y gets the noise that it lacks: a network that takes its
    input for noisy forgives what is wrong with it, and so the models of a cascade follow each other.

    Args:
        solver: By name; "ddim" or "ddpm" for bridges, any other for SR3 and Palette.
        grid: Spacing of the steps.
        eta: Of "ddim": share of fresh noise; at 0 all follows from the first noise (InDI's rule).
        rule: Of "ddim": "ddim", or "increments" for ResShift's own steps.
        level: Of noise that y is brought to before it is given, in the units of `data.degrade` (of a picture's range,
            [0, 1]); None: the noise that y has, or the lowest that the model knows.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    any_noise: ClassVar[bool] = True
    default_steps: ClassVar[int] = 15

    solver: str = "ddim"
    grid: str = "t"
    eta: float = 1.0
    rule: str = "ddim"
    level: float | None = None

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Sample with y as a condition."""
        y, cond = problem.y.to(problem.dtype), dict(problem.cond)
        if (levels := _levels_of(problem)) is not None and NOISE_LEVEL not in cond:
            level = self._level(problem, levels)
            y = y + levels.missing(level, problem) * problem.operator.measured(
                noise.normal(STREAM, _ADDED, tuple(y.shape[1:]), y.dtype)
            )
            cond[NOISE_LEVEL] = levels.told(level, y)
        cond[SOURCE] = problem.operator.to_items(y)
        options: dict[str, Any] = {"eta": self.eta, "rule": self.rule} if self.solver == "ddim" else {}
        told = replace(problem, cond=cond)
        return walk(told, noise, make_solver(self.solver, **options), grid_of(told, steps, self.grid))

    def check(self, problem: Problem) -> list[str]:
        """Refuse a model that was not trained with given pictures.

        Raises:
            ValueError: It has no such condition, or `level` is none that it knows.
        """
        spec = problem.denoiser.spec
        if spec is None or SOURCE not in spec.conditions:
            raise ValueError(
                "method 'supervised' needs a model trained with given pictures (data.degrade or data.pair; recipe "
                "restoration); this one was not. Other methods restore with any model: method='auto'."
            )
        walks = any(isinstance(part, ShiftedDenoiser) for part in problem.denoiser.modules())
        if walks and problem.t_start < 1:
            raise ValueError("a model that walks from the given picture starts there; leave start out.")
        return self._check_level(problem)

    def _check_level(self, problem: Problem) -> list[str]:
        levels = _levels_of(problem)
        if levels is None:
            if self.level is None:
                return []
            raise ValueError(
                f"level={self.level} but this model was not trained with a range of noise, as by "
                "data.degrade='...|noise:gaussian,0..0.2'; leave level out."
            )
        stated = problem.noise_std / levels.unit
        if NOISE_LEVEL in problem.cond:
            if self.level is None:
                return []
            raise ValueError(f"level and the condition {NOISE_LEVEL!r} both say how noisy y is; give one of them.")
        if self.level is not None and not max(levels.low, stated) - _ROUNDING <= self.level <= levels.high + _ROUNDING:
            noisy = f" and y has noise of {stated:g} already" if stated > levels.low else ""
            raise ValueError(
                f"level={self.level} is outside of what this model knows, {levels.low:g} to {levels.high:g}{noisy} (in "
                "the units of data.degrade)."
            )
        if stated > levels.high + _ROUNDING:
            return [
                f"noise of {stated:g} in y is more than this model knows, {levels.low:g} to {levels.high:g} (in the "
                "units of data.degrade); it is told the most."
            ]
        return []

    def _level(self, problem: Problem, levels: Levels) -> float:
        stated = problem.noise_std / levels.unit
        return min(max(stated if self.level is None else self.level, levels.low), levels.high)


@dataclass(frozen=True)
class Levels:
    """The noise that a model was trained with, in the units of `data.degrade`.

    Args:
        low, high: Lowest and highest standard deviation.
        unit: Model units per unit.
    """

    low: float
    high: float
    unit: float

    def missing(self, level: float, problem: Problem) -> float:
        """Return the standard deviation, in model units, of what y lacks to be as noisy as `level`."""
        return math.sqrt(max((level * self.unit) ** 2 - problem.noise_std**2, 0.0))

    def told(self, level: float, y: Tensor) -> Tensor:
        """Return the level as the condition of the rows of y, (B, 1)."""
        return y.new_full((len(y), 1), (level - self.low) / (self.high - self.low)).float()


def _levels_of(problem: Problem) -> Levels | None:
    """Return the range of noise that a model is told of, None where it is not."""
    spec = problem.denoiser.spec
    part = None if spec is None else spec.cond.get(NOISE_LEVEL)
    if part is None or part.kind != "vector" or part.null != "zero":
        return None  # also a column of the data that happens to have the name
    unit = image_units(spec if problem.codec is None else problem.codec.data)
    return Levels(part.mean[0], part.mean[0] + part.std[0], unit)
