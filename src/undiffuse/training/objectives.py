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
from undiffuse.noise import NoiseSource


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
        cut: dict[str, Any] = {name: part[start:stop] for name, part in self._tensors().items()}
        for group in ("cond", "drop", "extras"):
            cut[group] = {name: part[start:stop] for name, part in getattr(self, group).items()}
        return replace(self, **cut)

    def _tensors(self) -> dict[str, Tensor]:
        parts = {name: getattr(self, name) for name in ("x", "t", "target", "weight", "half_logsnr")}
        return {name: part for name, part in parts.items() if part is not None}


class Objective(nn.Module, ABC):
    """A loss for a kind of process. A module, because it may keep running figures as buffers.

    Args:
        drop: Probability that a row's condition is replaced by its null.

    Attributes:
        adapts: Whether `prepare` depends on losses observed before, so that batches cannot be made ahead.
    """

    adapts: bool = False

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = drop

    @abstractmethod
    def prepare(self, denoiser: Denoiser, batch: dict[str, Any], noise: NoiseSource, batch_size: int) -> Corrupted:
        """Corrupt N rows, a whole number of batches of `batch_size`.

        Args:
            denoiser: Read for its process and prediction only.
            batch: What a data set gives: "x" (N, *), "cond".
            noise: Source of N rows.
            batch_size: Rows over which draws are stratified.
        """

    @abstractmethod
    def score(self, denoiser: Denoiser, corrupted: Corrupted) -> Losses:
        """Run the denoiser on one batch and return its losses."""

    def losses(self, denoiser: Denoiser, batch: dict[str, Any], noise: NoiseSource) -> Losses:
        """Corrupt and score one batch."""
        return self.score(denoiser, self.prepare(denoiser, batch, noise, len(batch["x"])))

    def observe(self, t: Tensor, per_sample: Tensor) -> None:
        """Learn from the losses (B,) at times (B,) of a whole batch, after its optimizer step. Nothing by default."""

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
