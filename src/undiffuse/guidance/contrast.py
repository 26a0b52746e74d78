"""`Contrast`: guidance by a second answer, the reference, that the first is pushed away from."""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.categorical import guide_logits
from undiffuse.denoisers.posterior import AnyPosterior, CategoricalPosterior, Posterior
from undiffuse.guidance.guidance import Guidance, part_of, tiled
from undiffuse.networks.embedded import Embedded
from undiffuse.process.times import Time

Conditions = dict[str, Tensor] | None


class Contrast(Guidance):
    """D = D_ref + scale (D - D_ref), on the posterior mean; for tokens the same on log-probabilities.

    Scale 1 is the wrapped denoiser alone and costs what it costs, as do times outside `interval`.

    Args:
        denoiser, scale, interval, rescale: See `Guidance`.
        negative: Conditions of the reference, instead of those that it has by default: name -> rows (B, ...), or one
            row for all. Conditions that are never dropped stay as they are unless named here.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Tensor,
        *,
        negative: Conditions = None,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(denoiser, scale, interval=interval, rescale=rescale)
        self.negative = negative

    def embed(self, cond: Conditions, batch: int, drop: Conditions = None) -> Embedded | None:
        """Embed the conditions of the question, and those of the reference: two parts of B rows each.

        At scale 1 only what the wrapped denoiser returns.
        """
        asked = self.denoiser.embed(cond, batch, drop)
        if self.is_neutral:
            return asked
        reference = self._embed_reference(cond, batch, drop)
        return Embedded(parts=(asked or Embedded(), reference or Embedded()))

    @abstractmethod
    def _embed_reference(self, cond: Conditions, batch: int, drop: Conditions) -> Embedded | None:
        """Embed the conditions of the reference."""

    @abstractmethod
    def _answers(self, x: Tensor, t: Time, cond: Embedded | None) -> list[AnyPosterior]:
        """Return the answer and the reference."""

    def _kept(self, cond: Conditions) -> dict[str, Tensor]:
        """The conditions that the reference shares with the question because no model is ever without them."""
        return {name: rows for name, rows in (cond or {}).items() if name in self.kept_conditions}

    def _negative_rows(self, batch: int) -> dict[str, Tensor]:
        """The conditions given for the reference, with `batch` rows."""
        return {name: tiled(rows, batch) for name, rows in (self.negative or {}).items()}

    def _guided(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        asked, reference = self._answers(x, t, cond)
        scale = self._scale_at(x, t)
        if isinstance(asked, CategoricalPosterior):
            per_token = scale[..., None] if isinstance(scale, Tensor) else scale
            logits = guide_logits(asked.logits, cast(CategoricalPosterior, reference).logits, per_token)
            return CategoricalPosterior(logits, asked.extras)
        assert isinstance(asked, Posterior) and isinstance(reference, Posterior)
        mean = reference.mean + (scale * (asked.mean - reference.mean)).to(x.dtype)
        eps = None
        if asked.eps is not None or reference.eps is not None:  # a correction inside kept a noise of its own
            base = self._own_noise(reference, x, t)
            eps = base + (scale * (self._own_noise(asked, x, t) - base)).to(x.dtype)
        return Posterior(self._rescaled(mean, asked.mean, t), eps=eps, extras=asked.extras)


def ask_in_one_call(denoiser: Denoiser, x: Tensor, t: Time, conds: list[Embedded | None]) -> list[AnyPosterior]:
    """Ask one denoiser about the same x (B, *) under several conditions, in one call of B rows for each."""
    count, rows = len(conds), len(x)
    times = torch.cat([t] * count) if isinstance(t, Tensor) else t
    embedded = None if any(cond is None for cond in conds) else Embedded.cat(cast(list[Embedded], conds))
    answer = denoiser(torch.cat([x] * count), times, embedded)
    return [tree_map(lambda field, low=low: field[low : low + rows], answer) for low in range(0, count * rows, rows)]


def ask_in_turn(denoiser: Denoiser, x: Tensor, t: Time, cond: Embedded | None, parts: int) -> list[AnyPosterior]:
    """Ask one denoiser under several conditions, one after the other."""
    return [denoiser(x, t, part_of(cond, index)) for index in range(parts)]
