"""What every objective has in common: corrupt a block of batches at once, then score one batch at a time.

`prepare` needs no network, so the trainer calls it for several batches together: keyed noise, noise levels and
weights then cost one launch for many steps. `score` runs the denoiser on some of those rows. Losses are per
sample; the trainer reduces them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.noise import NoiseSource

Trained = Denoiser | FlowMap
"""What a trainer trains."""


class Losses(NamedTuple):
    """Per-sample losses (B,), and the noise level of each sample where the process has one."""

    per_sample: Tensor
    half_logsnr: Tensor | None


@dataclass(frozen=True)
class Corrupted:
    """Noisy rows and what a network must say about them. All tensors have N rows.

    Args:
        x: Noisy data (N, *).
        t: Times, float64 (N,) or (N, F).
        target: What the network must answer, (N, *).
        weight: Loss weight (N,) or (N, F); for tokens (N, L), or empty (N, 0) where the loss has none.
        half_logsnr: Noise level per sample, float64 (N,).
        cond: Conditions by name, as the data set gave them.
        drop: Condition name -> (N,) bool, True where the null takes its place.
        extras: What else an objective drew for its score.
    """

    x: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor
    half_logsnr: Tensor | None = None
    cond: dict[str, Tensor] = field(default_factory=dict)
    drop: dict[str, Tensor] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, start: int, stop: int) -> Corrupted:
        """Return rows [start, stop) as views."""
        return self._cut(slice(start, stop))

    def take(self, index: Tensor) -> Corrupted:
        """Return the rows of `index`, int64 (M,), copied."""
        return self._cut(index)

    def _cut(self, which: slice | Tensor) -> Corrupted:
        cut: dict[str, Any] = {name: part[which] for name, part in self._tensors().items()}
        for group in ("cond", "drop", "extras"):
            cut[group] = {name: part[which] for name, part in getattr(self, group).items()}
        return replace(self, **cut)

    def _tensors(self) -> dict[str, Tensor]:
        parts = {name: getattr(self, name) for name in ("x", "t", "target", "weight", "half_logsnr")}
        return {name: part for name, part in parts.items() if part is not None}


class Objective(nn.Module, ABC):
    """A loss for a kind of process. A module, because it may keep running figures as buffers, and networks of its own.

    Both are saved with a run. What must not be saved again, such as a frozen teacher, is kept out of `state_dict`; see
    `undiffuse.distillation.objective`. An objective trains a `Denoiser`, or a `FlowMap` where it says so.

    Args:
        drop: Probability that a row's condition is replaced by its null.

    Attributes:
        least_rows: Fewest rows of a batch that has a loss.
        adapts: Whether `prepare` depends on losses observed before, so that batches cannot be made ahead.
        watches: Whether `watch` wants to see the losses of each step.
    """

    adapts: bool = False
    least_rows: int = 1
    watches: bool = False

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = drop

    @abstractmethod
    def prepare(self, denoiser: Any, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Corrupt N rows, a whole number of batches of `batch_size`.

        Args:
            denoiser: Read for its process and prediction only.
            batch: What a data set gives: "x" (N, *), "cond".
            noise: Source of N rows.
            batch_size: Rows over which draws are stratified.
        """

    @abstractmethod
    def score(self, denoiser: Any, corrupted: Corrupted) -> Losses:
        """Run the denoiser on one batch and return its losses. It changes nothing: validation asks too."""

    def before_step(self, denoiser: Any, corrupted: Corrupted) -> None:
        """Train what the objective trains itself, on our rows of the batch, before its loss is asked for. Nothing by
        default."""

    def after_step(self, denoiser: Any, step: int) -> None:
        """Follow the weights after each optimizer step; `step` are the steps done. Nothing by default."""

    def span(self, step: int, steps: int) -> tuple[int, int]:
        """Return the first step of the part of a run of `steps` that `step` belongs to, and the step after its last.

        In each part the learning rate falls anew, and the averages begin anew. By default the run is one.
        """
        return 0, steps

    def couple(self, denoiser: Any, corrupted: Corrupted, parts: int) -> Corrupted:
        """Look at a whole batch before it is scored in `parts` of equal size, and return it with what they need of it.

        For losses whose rows depend on each other; the denoiser's parameters get no gradient here. Nothing by default.
        """
        return corrupted

    def losses(self, denoiser: Any, batch: dict[str, Any], noise: NoiseSource) -> Losses:
        """Corrupt and score one batch."""
        return self.score(denoiser, self.prepare(denoiser, batch, noise, len(batch["x"])))

    def observe(self, t: Tensor, per_sample: Tensor) -> None:
        """Learn from the losses (B,) at times (B,) of a whole batch, after its optimizer step. Nothing by default."""

    def without_memory(self) -> Objective:
        """Return an objective with the same expected loss whose draws do not depend on losses seen before: by default
        this one."""
        return self

    def watch(self, losses: Losses) -> None:
        """Learn from the losses of a whole batch, after its optimizer step, where only `score` depends on them."""

    def conditions(
        self, batch: dict[str, Any], noise: NoiseSource, kept: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """Return `cond` and `drop` of a batch; each condition is dropped on its own, stream "class".

        Those in `kept` (`Denoiser.kept_conditions`) are never dropped, for their null is a value like others.
        """
        cond: dict[str, Tensor] = dict(batch.get("cond") or {})
        if not self.drop:
            return {"cond": cond, "drop": {}}
        dropped = [(i, name) for i, name in enumerate(sorted(cond)) if name not in kept]
        return {"cond": cond, "drop": {name: noise.uniform("class", i, ()) < self.drop for i, name in dropped}}


def answer(denoiser: Denoiser, corrupted: Corrupted) -> Any:
    """Return the denoiser's posterior for a batch, its conditions embedded and dropped."""
    cond = denoiser.embed(corrupted.cond, len(corrupted.x), corrupted.drop)
    return denoiser(corrupted.x, corrupted.t, cond)


def mean_over_items(x: Tensor, leading: int = 1) -> Tensor:
    """Average over all axes after the first `leading` ones."""
    return x if x.ndim == leading else x.flatten(leading).mean(-1)
