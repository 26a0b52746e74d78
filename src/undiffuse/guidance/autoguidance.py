"""Autoguidance: the reference is a worse version of the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import AnyPosterior
from undiffuse.denoisers.reschedule import Reschedule
from undiffuse.guidance.contrast import Conditions, Contrast
from undiffuse.guidance.guidance import part_of
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time


class Autoguidance(Contrast):
    """D = D_weak + scale (D - D_weak): away from the errors that a weaker model makes under the same condition.

    Unlike classifier-free guidance it needs no condition and costs no variety, because both models aim at the same
    distribution. The weaker model is a smaller network, one trained less long, or an earlier snapshot of the same run.
    Costs the evaluations of both models where it acts.

    Args:
        denoiser: What is guided.
        weak: Denoiser of the same data. A Gaussian process of its own is translated exactly (`Reschedule`). It is told
            the conditions that it knows: an unconditional one makes this classifier-free guidance by two networks.
        scale, interval, rescale: See `Guidance`.
        negative: See `Contrast`.

    Raises:
        ValueError: The two denoisers are of different data, or of different categorical processes.

    Source: Karras et al. 2024, "Guiding a diffusion model with a bad version of itself", arXiv:2406.02507.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weak: Denoiser,
        scale: float | Tensor,
        *,
        negative: Conditions = None,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(denoiser, scale, negative=negative, interval=interval, rescale=rescale)
        _check_same_data(denoiser, weak)
        self.weak = _on_process_of(denoiser, weak)
        self.time_dependent = self.time_dependent or weak.time_dependent
        self.needs_grad = denoiser.needs_grad or weak.needs_grad

    def _embed_reference(self, cond: Conditions, batch: int, drop: Conditions) -> Embedded | None:
        known = None if self.weak.spec is None else self.weak.spec.conditions
        told = (self._kept(cond) if self.negative else dict(cond or {})) | self._negative_rows(batch)
        told = {name: rows for name, rows in told.items() if known is None or name in known}
        left = {name: rows for name, rows in (drop or {}).items() if name in told}
        return self.weak.embed(told or None, batch, left or None)

    @property
    def self_conditioned(self) -> bool:
        """Whether one of the two is."""
        return self.denoiser.self_conditioned or self.weak.self_conditioned

    def with_estimate(self, cond: Embedded | None, estimate: Tensor) -> Embedded:
        """Tell the guided estimate to the one of the two, or to both, that reads it."""
        if self.is_neutral:
            return self.denoiser.with_estimate(cond, estimate)
        asked = [
            denoiser.with_estimate(part_of(cond, index), estimate)
            if denoiser.self_conditioned
            else part_of(cond, index)
            for index, denoiser in enumerate((self.denoiser, self.weak))
        ]
        return replace(cond or Embedded(), parts=tuple(part or Embedded() for part in asked))

    def calls(self, t: Time) -> int:
        """The cost of both where guidance acts."""
        return self.denoiser.calls(t) + (self.weak.calls(t) if self.is_active(t) else 0)

    def prefetch(self, times: Sequence[float]) -> None:
        """Pass the times on to both."""
        self.denoiser.prefetch(times)
        self.weak.prefetch(times)

    def _answers(self, x: Tensor, t: Time, cond: Embedded | None) -> list[AnyPosterior]:
        return [self.denoiser(x, t, part_of(cond, 0)), self.weak(x, t, part_of(cond, 1))]


def _check_same_data(denoiser: Denoiser, weak: Denoiser) -> None:
    if denoiser.causal != weak.causal:
        raise ValueError(
            "autoguidance by a model that reads in another way: one of the two reads from left to right, the other "
            "from both sides; take two of one kind."
        )
    strong_spec, weak_spec = denoiser.spec, weak.spec
    if strong_spec is None or weak_spec is None:
        return
    for what in ("kind", "shape"):
        ours, theirs = getattr(strong_spec, what), getattr(weak_spec, what)
        if ours != theirs:
            raise ValueError(
                f"autoguidance by a model of another {what}, {theirs} against {ours}; both must fit the data."
            )
    for what in ("vocabulary", "codebook"):
        if getattr(strong_spec, what) != getattr(weak_spec, what):
            raise ValueError(f"autoguidance by a model of another {what}; a token's number must mean the same to both.")
    for name, part in weak_spec.conditions.items():
        if name in strong_spec.conditions and strong_spec.conditions[name] != part:
            raise ValueError(
                f"autoguidance by a model whose condition {name!r} differs; both must mean the same by it."
            )


def _on_process_of(denoiser: Denoiser, weak: Denoiser) -> Denoiser:
    """Return `weak` on the process of `denoiser`."""
    if weak.process == denoiser.process:
        return weak
    if isinstance(weak.process, GaussianProcess) and isinstance(denoiser.process, GaussianProcess):
        return Reschedule(weak, denoiser.process)
    raise ValueError("autoguidance needs two models of one process; these corrupt their data in different ways.")
