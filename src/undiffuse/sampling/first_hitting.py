r"""First-hitting sampling: jump from one opening of a mask to the next, instead of waiting for it on a grid.

None of times, places and groups depends on the network, so those of the whole run are drawn before it (`openings`):
the times are the grid, (K + 1, B, 1).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.noise import NoiseSource
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.draw import sample_categorical
from undiffuse.sampling.openings import Groups, Openings, schedule_openings
from undiffuse.sampling.plan import Plan, Renoise, Stage, row_time
from undiffuse.sampling.solver import Memory, Solver

Space = Literal["probabilities", "log"]
Pick = Literal["random", "confidence"]
_STEEPEST = 5.0  # slope of a log-probability by the share of masks: more is the noise of rare classes
_SMALLEST = 1e-12  # probability below which logarithms say nothing


@dataclass(kw_only=True)
class OpeningStage(Stage):
    """The masks that open with one evaluation.

    Args:
        positions: Places in the flattened item, int64 (B, G), different within a row.
        active: Whether the place opens, bool (B, G): rows open different numbers, finished ones none.
        mask_id: Id of the mask.
        weights: How earlier answers enter; see `Openings.weights`.
        reach: How far an opening lies behind the evaluation, as a share of the row's masks, float64 (B, G).
        remask: Where tokens are masked again afterwards, for a correction, bool (B, L); None for nowhere.
        correction: Number of the correction that this is; None for an opening.
    """

    positions: Tensor
    active: Tensor
    mask_id: int
    weights: tuple[Tensor, ...] = ()
    reach: Tensor | None = None
    remask: Tensor | None = None
    correction: int | None = None


@dataclass(frozen=True, kw_only=True)
class FirstHitting(Solver):
    """Opens the masks of an absorbing process one per evaluation, in random order: exact in as many as there are masks.

    The law is that of the continuous-time reverse process. Open tokens of the start are conditions and never change;
    rows may have different numbers of them, and those that are done wait. A start without masks costs nothing.

    Args:
        steps: Evaluations per row, fewer than its n masks to open several at once. They are drawn independently from
            one answer, which is the only error. None for n.
        order: Answers through which the ones between evaluations are extrapolated: 1 takes the last as it is, 2 halves
            the error of few steps (measured), 3 adds nothing to that. Without effect where masks open one by one.
        groups: How many open at once: "linear" as evenly as can be, "cosine" few at first and many in the end.
        space: What is extrapolated: "probabilities", or "log" (measured weaker).
        clock: What answers are functions of: "count" of masks left, for networks without a time, or the "time".
        pick: "random" places, or "confidence": those where the answer is surest. One by one that is exact too; several
            at once it is another law than that of the model, and a warning says so.
        corrections: Evaluations more at the end: each masks one drawn place again and draws it anew (a step of Gibbs
            sampling, which leaves the exact law as it is and mends a law that is not).

    Raises:
        ValueError: A number out of range, or an unknown choice.

    Source: Zheng et al. 2024, arXiv:2409.02908, for the exact sampler and the idea of orders. The grouping, where
        answers are taken and the corrections are ours; the paper's may differ.
    """

    discrete = True
    draws_times = True
    needs: ClassVar[str] = "tokens with a mask; no grid"
    steps: int | None = None
    order: int = 1
    groups: Groups = "linear"
    space: Space = "probabilities"
    clock: Literal["count", "time"] = "count"
    pick: Pick = "random"
    corrections: int = 0

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1; leave it out for one evaluation per mask.")
        if self.order not in (1, 2, 3):
            raise ValueError(f"order={self.order} is not 1, 2 or 3, the answers that an extrapolation goes through.")
        if self.corrections < 0:
            raise ValueError(f"corrections={self.corrections} must not be negative; 0 is none.")
        choices = {"groups": Groups, "space": Space, "clock": Literal["count", "time"], "pick": Pick}
        for name, known in choices.items():
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose {' or '.join(get_args(known))}.")

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
        openings = schedule_openings(process, x, noise, self._budget(x), self.groups)
        self._warn(openings)
        times = openings.grid
        stages = [self._opening(openings, k, times, process) for k in range(openings.evaluations)]
        if stages:
            self._correct(openings, stages, process, noise)
        return Plan(tuple(stages), times)

    def plan(self, process: Any, grid: Tensor) -> Plan:
        """Refuse: the plan depends on the masks of the start, which `prepare` sees.

        Raises:
            PlanError: Always.
        """
        raise PlanError("the plan of FirstHitting depends on the masks of the start; call prepare().")

    def draw(self, entry: Stage | Renoise, x: Tensor, noise: NoiseSource) -> Tensor:
        """Draw one uniform per place of the item, so that a row's classes do not depend on the others' groups."""
        assert isinstance(entry, OpeningStage)
        if entry.correction is not None:  # numbered by themselves: rows of other batches take other numbers of steps
            return noise.uniform("corrector", 2 * entry.correction + 1, tuple(x.shape[1:]))
        return noise.uniform("class", entry.step, tuple(x.shape[1:]))

    def step(
        self, stage: OpeningStage, x: Tensor, post: Any, memory: Memory, z: Tensor | None
    ) -> tuple[Tensor, Memory]:
        """Draw the classes at the places that open; tokens that are open already stay."""
        assert z is not None
        answers = (post.logits.flatten(1, -2), *memory.past)  # (B, L, K), newest first
        flat, at = x.flatten(1), self.places(stage, x, answers[0])
        now = flat.gather(1, at)
        drawn = sample_categorical(self.law(stage, at, answers), z.flatten(1).gather(1, at))
        opens = stage.active.flatten(1) & (now == stage.mask_id)
        flat = flat.scatter(1, at, torch.where(opens, drawn, now))
        if stage.remask is not None:
            flat = flat.masked_fill(stage.remask.flatten(1), stage.mask_id)
        return flat.view_as(x), Memory(past=answers[: self.order - 1])

    def law(self, stage: OpeningStage, at: Tensor, answers: tuple[Tensor, ...]) -> Tensor:
        """Return weights of the classes at the places `at` (B, G) from the answers so far: float64 (B, G, K).

        Args:
            stage: Says how much each answer counts.
            at: Places in the flattened item.
            answers: Logits (B, L, K), newest first.
        """
        rows = torch.arange(len(at), device=at.device)[:, None]
        used = min(len(answers) - 1, len(stage.weights))
        logs = [answer[rows, at].double().log_softmax(-1) for answer in answers[: used + 1]]
        if not used:
            return logs[0].exp()
        weights = stage.weights[used - 1].flatten(2).unbind(-1)
        if self.space == "probabilities":
            now, *before = [log.exp() for log in logs]
            return _plus(now, weights, before, now).clamp(min=0.0)
        now, *before = [log.clamp(min=math.log(_SMALLEST)) for log in logs]
        change = _plus(torch.zeros_like(now), weights, before, now)
        if used == 1:  # a curve through three answers bends back by itself (measured)
            assert stage.reach is not None
            most = (_STEEPEST * stage.reach.flatten(1))[..., None]
            change = torch.maximum(torch.minimum(change, most), -most)
        return (now + change).softmax(-1)

    def places(self, stage: OpeningStage, x: Tensor, logits: Tensor) -> Tensor:
        """Return where this stage opens masks (B, G): planned, or where the answer is surest now."""
        if self.pick == "random" or stage.correction is not None:
            return stage.positions.flatten(1)
        surest = logits.float().log_softmax(-1).amax(-1).masked_fill(x.flatten(1) != stage.mask_id, -torch.inf)
        return surest.argsort(dim=1, descending=True, stable=True)[:, : stage.active.shape[1]]

    def _opening(self, openings: Openings, step: int, times: Tensor, process: CategoricalProcess) -> OpeningStage:
        first, count = openings.bounds[step], openings.count.clamp(min=1)
        return OpeningStage(
            step=step,
            t=row_time(times[step]),
            s=row_time(times[step + 1]),
            positions=openings.positions(step),
            active=openings.active(step),
            mask_id=process.classes,
            weights=openings.weights(step, self.order, self.clock),
            reach=(openings.index(step) - first[:, None]) / count[:, None].double(),
        )

    def _correct(
        self, openings: Openings, stages: list[OpeningStage], process: CategoricalProcess, noise: NoiseSource
    ) -> None:
        """Append the stages of the corrections; each place is masked by the stage before."""
        count = openings.count
        time = process.keep.time(1.0 - 1.0 / (count + 1).double())  # expected with one mask left
        for number in range(self.corrections):
            which = (noise.uniform("corrector", 2 * number, ()) * count).long()
            place, any_masks = openings.order.gather(1, which[:, None]), count[:, None] > 0
            stages[-1].remask = torch.zeros_like(openings.order, dtype=torch.bool).scatter(1, place, any_masks)
            stages.append(
                OpeningStage(
                    step=len(stages),
                    t=row_time(time[:, None]),
                    s=0.0,
                    positions=place,
                    active=any_masks,
                    mask_id=process.classes,
                    correction=number,
                )
            )

    def _budget(self, x: Tensor) -> int:
        length = math.prod(x.shape[1:])
        if self.steps is not None and self.steps > length:
            warnings.warn(
                f"steps={self.steps} but an item has {length} tokens; {length} evaluations are exact already.",
                stacklevel=4,
            )
        return min(self.steps or length, length)

    def _warn(self, openings: Openings) -> None:
        together = max(openings.widths, default=0) > 1
        if self.order > 1 and openings.widths and not together:
            warnings.warn(
                f"order={self.order} has no effect where masks open one by one; give fewer steps than there are masks.",
                stacklevel=4,
            )
        if self.pick == "confidence" and together:
            warnings.warn(
                "pick=confidence opens the surest of several masks at once, which is not the model's law: samples will "
                "be more alike. pick=random draws the model's.",
                stacklevel=4,
            )


def _plus(start: Tensor, weights: tuple[Tensor, ...], before: list[Tensor], now: Tensor) -> Tensor:
    """Return start + sum_j weights_j (before_j - now); weights are (B, G), the others (B, G, K)."""
    for weight, earlier in zip(weights, before, strict=True):
        start = start + weight[..., None] * (earlier - now)
    return start
