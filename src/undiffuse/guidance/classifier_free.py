"""Classifier-free guidance, for continuous and discrete posteriors alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.categorical import guide_logits
from undiffuse.denoisers.posterior import AnyPosterior, CategoricalPosterior, Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time, align


class ClassifierFreeGuidance(Wrapper):
    """D = D_null + scale (D_cond - D_null), on the posterior mean; for tokens the same on log-probabilities.

    Scale 1 is the conditional model and costs one evaluation, as do times outside `interval`; elsewhere it costs
    two, in one batched call of 2B rows or in two calls. Scales above 1 do not sample p(x) p(y|x)^scale.

    Args:
        denoiser: Conditional denoiser that knows a null condition.
        scale: A number, or one per sample (B,).
        interval: (low, high]: guide only where sigma / alpha lies inside (categorical processes: where t does).
        rescale: Share phi of the guided mean that is scaled back to the per-sample spread of the conditional one
            (diffusers rescales the raw network output instead, which is another operation).
        batched: Ask for both in one call.

    Raises:
        ValueError: A negative scale, an empty interval, or `rescale` outside [0, 1] or used on tokens.

    Source: Ho and Salimans 2022, arXiv:2207.12598; interval: Kynkaanniemi et al. 2024, arXiv:2404.07724; rescale:
        Lin et al. 2023, arXiv:2305.08891, section 3.4.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Tensor,
        *,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        batched: bool = True,
    ) -> None:
        super().__init__(denoiser)
        if not isinstance(scale, Tensor) and not scale >= 0:
            raise ValueError(f"guidance scale={scale} must be at least 0; 1 is conditional without guidance.")
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"guidance interval={interval} is empty; give (low, high) with low < high.")
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale={rescale} is outside [0, 1].")
        if rescale and not isinstance(denoiser.process, GaussianProcess):
            raise ValueError("rescale works on means of continuous data; this model's data are tokens.")
        self.scale = scale
        self.interval = interval
        self.rescale = rescale
        self.batched = batched
        self.time_dependent = denoiser.time_dependent or interval is not None

    def embed(
        self, cond: dict[str, Tensor] | None, batch: int, drop: dict[str, Tensor] | None = None
    ) -> Embedded | None:
        """Embed the condition, and below it the null: 2B rows (B where the scale is 1).

        Conditions whose null is a value like others (`kept_conditions`) are the same in both.

        Raises:
            ValueError: No condition that can be left out is given, so there is nothing to guide by.
        """
        conditional = self.denoiser.embed(cond, batch, drop)
        if self._is_neutral:
            return conditional
        kept = {name: rows for name, rows in (cond or {}).items() if name in self.kept_conditions}
        still = {name: rows for name, rows in (drop or {}).items() if name in kept}
        null = self.denoiser.embed(kept or None, batch, still or None)
        if len(kept) == len(cond or {}) or conditional is None or null is None:
            raise ValueError(
                "guidance needs a condition, such as cond={'label': ...}, and a model trained with one; use scale 1."
            )
        return Embedded.cat([conditional, null])

    def with_estimate(self, cond: Embedded | None, estimate: Tensor) -> Embedded:
        """Tell both rows of a sample the same estimate: the guided one, for it is where the sample goes."""
        return self.denoiser.with_estimate(cond, estimate if self._is_neutral else torch.cat([estimate, estimate]))

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Ask once or twice, and combine."""
        if self._is_neutral:
            return self.denoiser(x, t, cond)
        if cond is None or cond.batch != 2 * len(x):
            raise ValueError("guidance needs both embeddings; pass what this wrapper's embed() returned.")
        rows = slice(0, len(x)), slice(len(x), None)
        if not self._is_active(t):
            return self.denoiser(x, t, cond.take(rows[0]))
        conditional, null = (
            self._ask_batched(x, t, cond) if self.batched else [self.denoiser(x, t, cond.take(part)) for part in rows]
        )
        return self._combine(conditional, null, x, t)

    def _ask_batched(self, x: Tensor, t: Time, cond: Embedded) -> list[AnyPosterior]:
        """Ask for conditional and null rows in one call of 2B rows."""
        twice = torch.cat([t, t]) if isinstance(t, Tensor) else t
        both = self.denoiser(torch.cat([x, x]), twice, cond)
        return [tree_map(lambda field: field[: len(x)], both), tree_map(lambda field: field[len(x) :], both)]

    def calls(self, t: Time) -> int:
        """Twice the wrapped denoiser's cost where guidance acts."""
        return self.denoiser.calls(t) * (1 if self._is_neutral or not self._is_active(t) else 2)

    @property
    def _is_neutral(self) -> bool:
        return not isinstance(self.scale, Tensor) and self.scale == 1.0

    def _is_active(self, t: Time) -> bool:
        """Whether guidance may act at `t`. Times in tensors count as active: looking at them would synchronise."""
        return (
            isinstance(t, Tensor) or self.interval is None or bool(self._inside(torch.tensor(t, dtype=torch.float64)))
        )

    def _inside(self, t: Tensor) -> Tensor:
        assert self.interval is not None
        level = t
        if isinstance(self.process, GaussianProcess):
            level = torch.exp(-self.process.schedule.half_logsnr(t.double()))
        return (level > self.interval[0]) & (level <= self.interval[1])

    def _scale_at(self, x: Tensor, t: Time) -> float | Tensor:
        if isinstance(self.scale, Tensor):
            self.scale = self.scale.to(x.device)  # once; it stays there
        scale = align(self.scale, x) if isinstance(self.scale, Tensor) else self.scale
        if self.interval is None or not isinstance(t, Tensor):
            return scale
        return torch.where(align(self._inside(t), x), scale, 1.0)

    def _combine(self, conditional: AnyPosterior, null: AnyPosterior, x: Tensor, t: Time) -> AnyPosterior:
        scale = self._scale_at(x, t)
        if isinstance(conditional, CategoricalPosterior):
            assert isinstance(null, CategoricalPosterior)
            per_token = scale[..., None] if isinstance(scale, Tensor) else scale
            return CategoricalPosterior(guide_logits(conditional.logits, null.logits, per_token), conditional.extras)
        assert isinstance(null, Posterior)
        mean = null.mean + (scale * (conditional.mean - null.mean)).to(x.dtype)
        return Posterior(self._rescaled(mean, conditional.mean), extras=conditional.extras)

    def _rescaled(self, guided: Tensor, conditional: Tensor) -> Tensor:
        if not self.rescale:
            return guided
        axes = tuple(range(1, guided.ndim))
        spread = guided.std(axes, correction=0, keepdim=True)
        ratio = torch.where(spread > 0, conditional.std(axes, correction=0, keepdim=True) / spread, 1.0)
        return self.rescale * ratio * guided + (1 - self.rescale) * guided
