"""Restoration by a model that was trained for it: the measurement is a condition, and the model is sampled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from undiffuse.data.pairs import SOURCE
from undiffuse.denoisers.shift import ShiftedDenoiser
from undiffuse.noise import NoiseSource
from undiffuse.sampling.registry import make_solver
from undiffuse.tasks.restore.restorer import Problem, Restorer, Solution
from undiffuse.tasks.restore.walk import grid_of, walk


@dataclass(frozen=True, kw_only=True)
class Supervised(Restorer):
    """Draw from a model with the condition "source", given y on the grid of the items.

    Where the model walks from the given picture (`process.start=source`), so do these steps, and a latent model walks
    from its latents. The operator only brings y to that grid; which operator and noise the model can undo was settled
    by its training.

    Args:
        solver: By name; "ddim" or "ddpm" for bridges, any other for SR3 and Palette.
        grid: Spacing of the steps.
        eta: Of "ddim": share of fresh noise; at 0 all follows from the first noise (InDI's rule).
        rule: Of "ddim": "ddim", or "increments" for ResShift's own steps.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    any_noise: ClassVar[bool] = True
    default_steps: ClassVar[int] = 15

    solver: str = "ddim"
    grid: str = "t"
    eta: float = 1.0
    rule: str = "ddim"

    def solve(self, problem: Problem, noise: NoiseSource, steps: int) -> Solution:
        """Sample with y as a condition."""
        y = problem.y.to(problem.dtype)
        given = problem.operator.to_items(y)
        options: dict[str, Any] = {"eta": self.eta, "rule": self.rule} if self.solver == "ddim" else {}
        told = replace(problem, cond={**problem.cond, SOURCE: given})
        return walk(told, noise, make_solver(self.solver, **options), grid_of(told, steps, self.grid))

    def check(self, problem: Problem) -> list[str]:
        """Refuse a model that was not trained with given pictures.

        Raises:
            ValueError: It has no such condition.
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
        return []
