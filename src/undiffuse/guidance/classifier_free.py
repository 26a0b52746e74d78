"""Classifier-free guidance, also against a negative condition, for continuous and discrete posteriors alike."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import AnyPosterior
from undiffuse.guidance.contrast import Conditions, Contrast, ask_in_one_call, ask_in_turn
from undiffuse.guidance.guidance import part_of
from undiffuse.networks.embedded import Embedded
from undiffuse.process.times import Time


class ClassifierFreeGuidance(Contrast):
    """D = D_ref + scale (D_cond - D_ref), where the reference is the same network without the condition.

    With `negative` the reference is the network under another condition: samples move away from that. Scale 1 is the
    conditional model and costs one evaluation, as do times outside `interval`; elsewhere it costs two, in one batched
    call of 2B rows or in two calls. Scales above 1 do not sample p(x) p(y|x)^scale.

    Args:
        denoiser: Conditional denoiser that knows a null condition.
        scale, interval, rescale: See `Guidance`.
        negative: See `Contrast`.
        batched: Ask for both in one call.

    Raises:
        ValueError: A negative scale, an empty interval, or `rescale` outside [0, 1] or used on tokens.

    Source: Ho and Salimans 2022, arXiv:2207.12598; negative conditions: Du et al. 2020, arXiv:2004.06030, and Liu et
        al. 2022, arXiv:2206.01714, in the form that samplers of images use.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Tensor,
        *,
        negative: Conditions = None,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        batched: bool = True,
    ) -> None:
        super().__init__(denoiser, scale, negative=negative, interval=interval, rescale=rescale)
        self.batched = batched

    def _embed_reference(self, cond: Conditions, batch: int, drop: Conditions) -> Embedded | None:
        """Embed the null, in which conditions whose null is a value like others are kept, or the negative condition.

        Raises:
            ValueError: No condition that can be left out is given, or guidance inside would have to answer for the
                null: there is nothing to guide by.
        """
        kept = self._kept(cond)
        still = {name: rows for name, rows in (drop or {}).items() if name in kept}
        told = kept | self._negative_rows(batch)
        inside = (part for part in self.denoiser.modules() if isinstance(part, ClassifierFreeGuidance))
        if cond and not told and not all(part.is_neutral for part in inside):
            raise ValueError(
                "guidance around guidance asks the inner one about no condition, which leaves it nothing to guide by; "
                "use one scale, or give the outer one a negative condition."
            )
        reference = self.denoiser.embed(told or None, batch, still or None)
        if reference is None or (len(kept) == len(cond or {}) and not self.negative):
            raise ValueError(
                "guidance needs a condition, such as cond={'label': ...}, and a model trained with one; use scale 1."
            )
        return reference

    def with_estimate(self, cond: Embedded | None, estimate: Tensor) -> Embedded:
        """Tell both questions the same estimate: the guided one, for it is where the sample goes."""
        if self.is_neutral or cond is None:
            return self.denoiser.with_estimate(cond, estimate)
        return replace(cond, parts=tuple(self.denoiser.with_estimate(part, estimate) for part in cond.parts))

    def calls(self, t: Time) -> int:
        """Twice the wrapped denoiser's cost where guidance acts."""
        return self.denoiser.calls(t) * (2 if self.is_active(t) else 1)

    def _answers(self, x: Tensor, t: Time, cond: Embedded | None) -> list[AnyPosterior]:
        if cond is None:
            raise ValueError("guidance needs both embeddings; pass what this wrapper's embed() returned.")
        if not self.batched:
            return ask_in_turn(self.denoiser, x, t, cond, 2)
        return ask_in_one_call(self.denoiser, x, t, [part_of(cond, 0), part_of(cond, 1)])
