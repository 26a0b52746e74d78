r"""Langevin dynamics along the way: predictor-corrector sampling, and annealed Langevin dynamics.

A Langevin step x += d S + sqrt(2 d) z leaves the law of x_t as it is, up to an error in d, and so mends what the
steps between noise levels got wrong. With the score S = -eps / sigma and d = 2 (c sigma)^2 it reads

    x <- x - 2 c^2 sigma eps + 2 c sigma z,

where c is a number for annealed dynamics and depends on the answer for predictor-corrector sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.noise import NoiseSource
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import align
from undiffuse.sampling.ddim import bridge_columns
from undiffuse.sampling.plan import AffineStage, Coefficient, Plan, Renoise, Stage, row_time
from undiffuse.sampling.solver import NOTHING, AffineSolver, Memory, affine_stages
from undiffuse.sampling.stages import first_order, number
from undiffuse.sampling.steps import Steps


@dataclass(kw_only=True)
class LangevinStage(Stage):
    """A Langevin step at one noise level.

    Args:
        draw: Number of its noise.
        alpha, sigma: The level; sigma is not 0, also for elements that rest.
        strength: c, or c |S| / |z| where the norms decide.
        by_norms: Whether they do.
        rescale: Factor of the result, which takes x / alpha to the next level as it is.
    """

    draw: int
    alpha: Coefficient
    sigma: Coefficient
    strength: Coefficient
    by_norms: bool
    rescale: Coefficient = 1.0


class Langevin(AffineSolver):
    """What both solvers share: a Langevin step, and its noise."""

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise: always."""
        return True

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor | None:
        """Draw the normals of a Langevin step, or of another stage."""
        if isinstance(entry, LangevinStage):
            return noise.normal("langevin", entry.draw, tuple(x.shape[1:]), x.dtype)
        return super().draw(entry, x, noise)

    def step(self, stage: Any, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Make a Langevin step, or apply the affine rule of another stage."""
        if not isinstance(stage, LangevinStage):
            return super().step(stage, x, post, memory, z)
        assert z is not None
        eps = (x - stage.alpha * post.mean) / stage.sigma
        c = stage.strength
        if stage.by_norms:
            moves = 1.0 if stage.frozen is None else (~stage.frozen).to(x.dtype)
            c = c * align(_norm(z * moves) / _norm(eps * moves), x)
        moved = stage.rescale * (x - 2 * c**2 * stage.sigma * eps + 2 * c * stage.sigma * z)
        return moved if stage.frozen is None else torch.where(stage.frozen, x, moved), NOTHING


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Langevin):
    r"""An ancestral step, then `corrections` Langevin steps at the new time:

        x += d S + sqrt(2 d) z,   d = 2 a (snr |z| / |S|)^2,   a = (alpha_t / alpha_s)^2 of the step from t to s.

    a is 1 - beta of the step on `vp` and 1 on `ve`. Costs 1 + corrections evaluations per step, 1 in a step to t = 0.
    Norms are those of a sample, not means over the batch as in the paper, so that no sample depends on the others of
    its batch; |S| is |eps| / sigma, which says the same, also for elements with times of their own. Elements that rest
    count in neither norm. Data of few elements (below 10 or so) are badly served: |S| is then often near 0.

    Args:
        corrections: Langevin steps after each predictor step, at least 1.
        snr: Size of a correction's noise relative to its drift.
        eta: Share of fresh noise of the predictor, a `ddim` step: 1 is ancestral sampling.

    Raises:
        ValueError: `corrections` below 1, `snr` not above 0, or `eta` outside [0, 1].

    Source: Song et al. 2021, arXiv:2011.13456, algorithms 2 to 5.
    """

    evaluations: ClassVar[str] = "2 (1 in a step to 0)"
    grid: ClassVar[str] = "t"
    corrections: int = 1
    snr: float = 0.16
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.corrections < 1:
            raise ValueError(f"corrections={self.corrections} must be at least 1; without any it is solver 'ddpm'.")
        if not self.snr > 0:
            raise ValueError(f"snr={self.snr} must be above 0.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} is outside [0, 1]; 0 is deterministic, 1 ancestral.")

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Write the predictor's stage and the corrections of every step."""
        steps = Steps(process, grid)
        rests = (steps.s == 0) | (steps.s == steps.t)
        strength = torch.where(rests, 0.0, self.snr * steps.alpha_t / steps.alpha_s)
        sigma = torch.where(rests, 1.0, steps.sigma_s)
        entries: list[Stage] = []
        for k, stage in enumerate(affine_stages(bridge_columns(steps, "ddim", self.eta), grid)):
            entries.append(stage)
            if bool(rests[k].all()):
                continue
            stage.closes = False
            entries += [
                LangevinStage(
                    step=k,
                    t=stage.s,
                    s=stage.s,
                    closes=j == self.corrections - 1,
                    frozen=_mask(rests[k]),
                    draw=k * self.corrections + j,
                    alpha=number(steps.alpha_s[k]),
                    sigma=number(sigma[k]),
                    strength=number(strength[k]),
                    by_norms=True,
                )
                for j in range(self.corrections)
            ]
        return Plan(tuple(entries), grid)


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(Langevin):
    r"""Langevin dynamics at each noise level of the grid in turn. In z = x / alpha at rho = sigma / alpha,

        z += a / 2 S + sqrt(a) xi,   a = size rho^2,

    `updates` times per level, after which z is taken to the next level as it is. A step to t = 0 ends with the mean, so
    that K levels cost K updates + 1 evaluations. NCSN's levels are few and geometric: a `logsnr` grid of about 10
    steps. z does not exist where alpha is 0; such a step is one of DDIM.

    Args:
        updates: Langevin steps per level, at least 1.
        size: a / rho^2, in (0, 4): beyond, the steps overshoot. NCSN's 2e-5 rho_i^2 / rho_L^2 with rho_L = 0.01 is 0.2.

    Raises:
        ValueError: `updates` below 1, or `size` outside (0, 4).

    Source: Song & Ermon 2019, "Generative modeling by estimating gradients of the data distribution", algorithm 1,
        arXiv:1907.05600. Deviation: the last state is denoised, as in the authors' later versions.
    """

    evaluations: ClassVar[str] = "100 (1 more in a step to 0)"
    grid: ClassVar[str] = "logsnr"
    updates: int = 100
    size: float = 0.2

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError(f"updates={self.updates} must be at least 1.")
        if not 0 < self.size < 4:
            raise ValueError(f"size={self.size} is outside (0, 4); 0.2 is NCSN's.")

    def plan(self, process: GaussianProcess, grid: Tensor) -> Plan:
        """Write the updates of every level, each a stage."""
        steps = Steps(process, grid)
        entries: list[Stage] = []
        for k in range(len(grid) - 1):
            entries += self._level(steps, k)
            entries[-1].closes = True
        return Plan(tuple(entries), grid)

    def _level(self, steps: Steps, k: int) -> list[Stage]:
        """The stages of one step: DDIM where there is no z, the updates, and the mean where the step ends at 0."""
        t, s, alpha = steps.t[k], steps.s[k], steps.alpha_t[k]
        endless, ends = (alpha == 0) & (s < t), (s == 0) & (s < t)
        rests = (s == t) | endless
        here = torch.where(endless, s, t)  # what starts in pure noise goes first
        stages: list[Stage] = [_first_order_stage(steps, k, t, here, rests=~endless)] if bool(endless.any()) else []
        if bool(rests.all()):
            return stages
        there = torch.where(ends, here, s)
        stages += [
            LangevinStage(
                step=k,
                t=row_time(here),
                s=row_time(here if j < self.updates - 1 else there),
                closes=False,
                frozen=_mask(rests),
                draw=k * self.updates + j,
                alpha=number(alpha),
                sigma=number(torch.where(rests, 1.0, steps.sigma_t[k])),
                strength=0.5 * self.size**0.5,
                by_norms=False,
                rescale=1.0
                if j < self.updates - 1
                else number(torch.where(rests | ends, 1.0, steps.alpha_s[k] / alpha)),
            )
            for j in range(self.updates)
        ]
        return [*stages, _first_order_stage(steps, k, there, s, rests=~ends)] if bool(ends.any()) else stages


def _first_order_stage(steps: Steps, k: int, t: Tensor, s: Tensor, rests: Tensor) -> AffineStage:
    state, mean = (
        torch.where(rests, unmoved, c) for unmoved, c in zip((1.0, 0.0), first_order(steps.process, t, s), strict=True)
    )
    return AffineStage(
        step=k,
        t=row_time(t),
        s=row_time(s),
        closes=False,
        frozen=_mask(rests),
        state=number(state),
        means=((number(mean),),),
    )


def _mask(rests: Tensor) -> Tensor | None:
    return rests if bool(rests.any()) else None


def _norm(x: Tensor) -> Tensor:
    """Length of each sample, (B,)."""
    return x.flatten(1).square().sum(1).sqrt()
