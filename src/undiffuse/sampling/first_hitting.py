r"""First-hitting sampling: jump from one opening of a mask to the next, instead of waiting for it on a grid.

With n masks left at time t, the next one opens (going down) at tau with P(tau <= s) = ((1 - a_s) / (1 - a_t))^n,

    tau = a^{-1}(1 - u^{1/n} (1 - a_t)),

at a place drawn uniformly among the n, with its class from the posterior there. None of this depends on the
network, so times and places of the whole run are drawn before it: the times are the grid, (K + 1, B, 1).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.draw import sample_categorical
from undiffuse.sampling.plan import Plan, Renoise, Stage, row_time
from undiffuse.sampling.solver import Memory, Solver


@dataclass(kw_only=True)
class OpeningStage(Stage):
    """The masks that open with one evaluation.

    Args:
        positions: Places in the flattened item, int64 (B, G), different within a row.
        active: Whether the place opens, bool (B, G): rows open different numbers, finished ones none.
        mask_id: Id of the mask.
    """

    positions: Tensor
    active: Tensor
    mask_id: int


@dataclass(frozen=True, kw_only=True)
class FirstHitting(Solver):
    """Opens the masks of an absorbing process one per evaluation, in random order: exact in as many as there are masks.

    The law is that of the continuous-time reverse process. Open tokens of the start are conditions and never change;
    rows may have different numbers of them, and those that are done wait. A start without masks costs nothing.

    Args:
        steps: Evaluations per row, fewer than its n masks to open several at once: opening j (from 0) belongs to
            evaluation floor(j steps / n). They are drawn independently, which is the only error. None for n.

    Raises:
        ValueError: `steps` is below 1.

    Source: Zheng et al. 2024, arXiv:2409.02908. The grouping is ours; the paper's parallel decoding may differ in it.
    """

    discrete = True
    draws_times = True
    needs: ClassVar[str] = "tokens with a mask; no grid"
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1; leave it out for one evaluation per mask.")

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise: always."""
        return True

    def prepare(self, process: Any, grid: Tensor | None, x: Tensor, noise: NoiseSource) -> Plan:
        """Draw times and places for the masks in `x` (B, ...) and return the plan.

        Raises:
            PlanError: The process is not absorbing, or a grid was given.
        """
        if not isinstance(process, CategoricalProcess) or process.kind != "absorbing":
            raise PlanError("FirstHitting opens the masks of an absorbing process; this denoiser has another one.")
        if grid is not None:
            raise PlanError("FirstHitting draws its own times; leave the grid out, or use Ancestral.")
        process.check_tokens(x)
        schedule = schedule_openings(process, x, noise, self._budget(x))
        return Plan(tuple(schedule.stage(k, process) for k in range(len(schedule.times) - 1)), schedule.times)

    def plan(self, process: Any, grid: Tensor) -> Plan:
        """Refuse: the plan depends on the masks of the start, which `prepare` sees.

        Raises:
            PlanError: Always.
        """
        raise PlanError("the plan of FirstHitting depends on the masks of the start; call prepare().")

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor:
        """Draw one uniform per place of the item, so that a row's classes do not depend on the others' groups."""
        return noise.uniform("class", entry.step, tuple(x.shape[1:]))

    def step(
        self, stage: OpeningStage, x: Tensor, post: Any, memory: Memory, z: Tensor | None
    ) -> tuple[Tensor, Memory]:
        """Draw the classes at the places that open; tokens that are open already stay."""
        assert z is not None
        flat, at = x.flatten(1), stage.positions.flatten(1)
        rows = torch.arange(len(x), device=x.device)[:, None]
        probs = post.logits.flatten(1, -2)[rows, at].double().softmax(-1)  # (B, G, K)
        drawn = sample_categorical(probs, z.flatten(1)[rows, at])
        now = flat[rows, at]
        opens = stage.active.flatten(1) & (now == stage.mask_id)
        return flat.scatter(1, at, torch.where(opens, drawn, now)).view_as(x), memory

    def _budget(self, x: Tensor) -> int:
        length = math.prod(x.shape[1:])
        if self.steps is not None and self.steps > length:
            warnings.warn(
                f"steps={self.steps} but an item has {length} tokens; {length} evaluations are exact already.",
                stacklevel=4,
            )
        return min(self.steps or length, length)


@dataclass(frozen=True)
class Openings:
    """When and where the masks of a batch open.

    Args:
        times: Time of each evaluation, that of its first opening, float64 (K + 1, B, 1); 0 where a row is done.
        order: Places in the order of opening, int64 (B, L); those of the masks come first.
        bounds: Number of masks opened before each evaluation, int64 (K + 1, B).
        widths: The largest number of masks that a row opens in each evaluation.
    """

    times: Tensor
    order: Tensor
    bounds: Tensor
    widths: list[int]

    def stage(self, step: int, process: CategoricalProcess) -> OpeningStage:
        """Return the stage of one evaluation."""
        index = self.bounds[step][:, None] + torch.arange(self.widths[step], device=self.order.device)
        # Past its own group a row names the places that follow, never one twice, and leaves them as they are.
        positions = self.order.gather(1, index % self.order.shape[1])
        return OpeningStage(
            step=step,
            t=row_time(self.times[step]),
            s=row_time(self.times[step + 1]),
            positions=positions,
            active=index < self.bounds[step + 1][:, None],
            mask_id=process.classes,
        )


def schedule_openings(process: CategoricalProcess, x: Tensor, noise: NoiseSource, budget: int) -> Openings:
    """Draw the order and the times in which the masks of `x` (B, ...) open, in at most `budget` evaluations per row."""
    masked = process.is_mask(x).flatten(1)
    count = masked.sum(1)
    order = noise.uniform("order", 0, tuple(x.shape[1:])).flatten(1).masked_fill(~masked, 2.0).argsort(1)
    bounds = _group_bounds(count, budget)
    times = opening_times(process, count, noise.uniform("time", 0, (masked.shape[1],)))
    first = torch.cat((times, times.new_zeros(len(times), 1)), dim=1).gather(1, bounds.T)  # (B, K + 1)
    done = count[:, None] == bounds.T
    widths: list[int] = bounds.diff(dim=0).amax(1).tolist()
    return Openings(first.masked_fill(done, 0.0).T[..., None], order, bounds, widths)


def opening_times(process: CategoricalProcess, count: Tensor, uniform: Tensor) -> Tensor:
    """Return the times at which `count` (B,) masks open one after the other, from t = 1 down.

    Args:
        process: Absorbing process.
        count: Number of masks per row, int64 (B,).
        uniform: Float64 (B, L).

    Returns:
        float64 (B, L), falling along each row; entries from `count` on have no meaning.
    """
    left = (count[:, None] - torch.arange(uniform.shape[1], device=uniform.device)).clamp(min=1)
    shrink = torch.log1p(-uniform) / left  # 1 - u is uniform too, and never 0
    drop = process.keep.drop(torch.ones((), dtype=torch.float64)) * shrink.cumsum(1).exp()
    return process.keep.time(1.0 - drop)


def _group_bounds(count: Tensor, budget: int) -> Tensor:
    """Return how many of `count` (B,) openings precede each evaluation, (K + 1, B).

    Opening j belongs to evaluation floor(j calls / count) with calls = min(budget, count), so evaluation k begins with
    opening ceil(k count / calls).
    """
    calls = count.clamp(max=budget)
    k = torch.arange(int(calls.max()) + 1, device=count.device)[:, None]
    begins = -((-k * count) // calls.clamp(min=1))
    return torch.where(k < calls, begins, count)
