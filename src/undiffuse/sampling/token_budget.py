r"""Sampling by budget: at each time of a grid open as many masks as are expected to, but few per evaluation.

Of m masks at the start t_0, m c_s / c_{t_0} are left at s, rounded, where c_t is the probability of a mask at t. A step
that opens more than the cap allows asks several times at the same t, each time knowing what was opened before. Where
the masks open is drawn at random, or more often where the answer is pure. With one mask per evaluation and an absorbing
process, every rule of places is exact.

Source: Tang et al. 2022 (Improved VQ-Diffusion), arXiv:2205.16007, section 3.3, whose tables are those of 1024 tokens
    in 100, 50, 25 or 10 steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from undiffuse.denoisers.posterior import PURITY
from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.draw import sample_categorical
from undiffuse.process.grids import check_grid
from undiffuse.sampling.plan import Plan, Renoise, Stage, row_time
from undiffuse.sampling.solver import Memory, Solver

Positions = Literal["random", "purity"]


@dataclass(kw_only=True)
class BudgetStage(Stage):
    """One evaluation.

    Args:
        process: The process that is walked.
        count: How many masks of each row open, int64 (B, 1); more than there are: all.
        moves: Whether tokens that are no masks may change class, as they do where noise replaces tokens.
        asks: Whether anything can change at all.
    """

    process: CategoricalProcess
    count: Tensor
    moves: bool
    asks: bool


@dataclass(frozen=True, kw_only=True)
class TokenBudget(Solver):
    """Opens masks by expected counts, at most `tokens_per_call` of a row per evaluation.

    Classes are drawn from p(x_s | x_t, not masked). Tokens that are no masks follow p(x_s | x_t) once per step of the
    grid: those of an absorbing process stay, and those that noise put in place of others are drawn again.

    Args:
        tokens_per_call: Most masks of a row that open with one evaluation; None for all of a step.
        positions: "random" places, or "purity": without replacement in proportion to the largest probability of each,
            before `Sharpen` where that is around the denoiser.

    Raises:
        ValueError: A cap below 1, or unknown positions.
    """

    discrete = True
    reads_start = True
    evaluations: ClassVar[str] = "by cap"
    needs: ClassVar[str] = "tokens with a mask"
    tokens_per_call: int | None = None
    positions: Positions = "random"

    def __post_init__(self) -> None:
        if self.tokens_per_call is not None and self.tokens_per_call < 1:
            raise ValueError(f"tokens_per_call={self.tokens_per_call} must be at least 1; leave it out for no cap.")
        if self.positions not in get_args(Positions):
            raise ValueError(f"positions={self.positions!r} is unknown; choose {' or '.join(get_args(Positions))}.")

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise: always."""
        return True

    def prepare(self, process: Any, grid: Tensor | None, x: Tensor, noise: NoiseSource) -> Plan:
        """Count the masks of `x` (B, ...) and return the plan.

        Raises:
            PlanError: The process has no mask, there is no grid, or it ends above 0 or has times per token.
        """
        if not isinstance(process, CategoricalProcess) or process.mask_id is None:
            raise PlanError("TokenBudget opens masks; this denoiser's process has none. Use another solver.")
        if grid is None:
            raise PlanError("TokenBudget needs a grid; make one with uniform_grid(steps).")
        grid = check_grid(grid, tuple(x.shape))
        if bool((grid[-1] > 0).any()):
            raise PlanError("the grid ends above t = 0, where tokens are still noise; end it at 0.")
        if grid.ndim == 3 and grid.shape[2] > 1:
            raise PlanError("TokenBudget counts the masks of an item, whose tokens then share one time; use ancestral.")
        counts = open_counts(process, process.is_mask(x).flatten(1).sum(1), grid)
        stages: list[BudgetStage] = []
        for step in range(len(grid) - 1):
            stages += self._step(process, grid, step, counts[step], math.prod(x.shape[1:]))
        return Plan(tuple(stages), grid)

    def plan(self, process: Any, grid: Tensor) -> Plan:
        """Refuse: the plan depends on the masks of the start, which `prepare` sees.

        Raises:
            PlanError: Always.
        """
        raise PlanError("the plan of TokenBudget depends on the masks of the start; call prepare().")

    def idle(self, stage: Any, x: Tensor) -> bool:
        """Return whether nothing opens and nothing moves."""
        return not stage.asks

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor:
        """Draw two uniforms per token, for its place in the order and for its class: (2, B, ...)."""
        shape = tuple(x.shape[1:])
        return torch.stack((noise.uniform("order", entry.step, shape), noise.uniform("class", entry.step, shape)))

    def step(self, stage: BudgetStage, x: Tensor, post: Any, memory: Memory, z: Tensor | None) -> tuple[Tensor, Memory]:
        """Choose places and draw their classes."""
        assert z is not None
        process, probs = stage.process, post.probs
        masks = process.is_mask(x)
        law = process.reverse(x, probs, stage.t, stage.s)
        law[..., process.classes].masked_fill_(masks, 0.0)  # a mask that opens, opens
        weight = None
        if self.positions == "purity":
            weight = post.extras[PURITY] if PURITY in post.extras else probs.amax(-1)
        opens = choose_places(masks, stage.count, z[0], weight)
        changes = opens | ~masks if stage.moves else opens
        return torch.where(changes, sample_categorical(law, z[1]), x), memory

    def _step(
        self, process: CategoricalProcess, grid: Tensor, step: int, count: Tensor, length: int
    ) -> list[BudgetStage]:
        """Return the stages of one step of the grid, one per evaluation.

        They are numbered by what an item without known tokens might take, so that the noise of a row does not depend on
        the others.
        """
        cap = self.tokens_per_call or length
        calls = max(1, -(-int(count.max()) // cap))
        last = step == len(grid) - 2
        return [
            BudgetStage(
                step=step * (-(-length // cap)) + call,
                t=row_time(grid[step]),
                s=row_time(grid[step + 1]),
                closes=call == calls - 1,
                process=process,
                count=(count - call * cap).clamp(0, length if last and call == calls - 1 else cap)[:, None],
                moves=process.kind != "absorbing" and call == 0,
                asks=bool((count > call * cap).any()) or (process.kind != "absorbing" and call == 0),
            )
            for call in range(calls)
        ]


def open_counts(process: CategoricalProcess, masks: Tensor, grid: Tensor) -> list[Tensor]:
    """Return how many of the `masks` (B,) of each row open in every step: K tensors int64 (B,), which add up to them.

    Args:
        process: Says how likely a mask is at each time.
        masks: Masks at the grid's first time.
        grid: Times (K + 1,) or (K + 1, B, 1) that end at 0.
    """
    chance = torch.as_tensor(process.masked(grid.flatten(1) if grid.ndim == 3 else grid[:, None]))  # (K + 1, 1 or B)
    share = chance / torch.where(chance[0] > 0, chance[0], 1.0)
    left = (share.to(masks.device) * masks.double()).round().long()
    left[0], left[-1] = masks, 0
    return list(-left.diff(dim=0))


def choose_places(masks: Tensor, count: Tensor, uniform: Tensor, weight: Tensor | None = None) -> Tensor:
    """Choose `count` of the masks of each row, one after the other without replacement, with odds as `weight`.

    The smallest of exponential clocks with these rates ring in that order (Efraimidis and Spirakis 2006).

    Args:
        masks: bool (B, ...).
        count: int64 (B, 1).
        uniform: float64 (B, ...) in [0, 1).
        weight: (B, ...), 0 or above; None for equal odds.

    Returns:
        Which are chosen, bool (B, ...).
    """
    clock = -torch.log1p(-uniform)
    if weight is not None:
        clock = clock / weight.double().clamp(min=torch.finfo(torch.float64).tiny)
    rank = clock.masked_fill(~masks, torch.inf).flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    return masks & (rank < count.flatten(1)).view_as(masks)
