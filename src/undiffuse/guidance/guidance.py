"""`Guidance`: what all guidance has in common: its scale, the interval in which it acts, and rescaling."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, cast

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import AnyPosterior, Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time, align


class Guidance(Wrapper):
    """A wrapper that moves an answer along a direction, as far as `scale` says.

    Args:
        denoiser: What is guided.
        scale: A number, or one per sample (B,).
        interval: (low, high]: guide only where sigma / alpha lies inside (categorical processes: where t does).
        rescale: Share phi of the guided mean that is scaled back to the per-sample spread of the unguided one
            (diffusers rescales the raw network output instead, which is another operation).

    Attributes:
        neutral: The scale at which nothing is guided.

    Raises:
        ValueError: A negative scale, an empty interval, or `rescale` outside [0, 1] or used on tokens.

    Source: interval: Kynkaanniemi et al. 2024, arXiv:2404.07724; rescale: Lin et al. 2023, arXiv:2305.08891,
        section 3.4.
    """

    neutral: ClassVar[float] = 1.0

    def __init__(
        self,
        denoiser: Denoiser,
        scale: float | Tensor,
        *,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(denoiser)
        if not isinstance(scale, Tensor) and not scale >= 0:
            raise ValueError(f"guidance scale={scale} must be at least 0; {self.neutral:g} is without guidance.")
        if interval is not None and not interval[0] < interval[1]:
            raise ValueError(f"guidance interval={interval} is empty; give (low, high) with low < high.")
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale={rescale} is outside [0, 1].")
        if rescale and not isinstance(denoiser.process, GaussianProcess):
            raise ValueError("rescale works on means of continuous data; this model's data are tokens.")
        self.scale = scale
        self.interval = interval
        self.rescale = rescale
        self.time_dependent = denoiser.time_dependent or interval is not None

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Guide where guidance acts; elsewhere pass the question on."""
        if self.is_neutral:
            return self.denoiser(x, t, cond)
        if cond is not None and len(cond.parts) != self._questions:
            raise ValueError(
                "guidance needs the embeddings of its questions; pass what this wrapper's embed() returned."
            )
        return self._guided(x, t, cond) if self.is_active(t) else self.denoiser(x, t, part_of(cond, 0))

    @abstractmethod
    def _guided(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Answer with guidance; `cond` holds a part for each question, the first of them for the wrapped denoiser."""

    @property
    def normalised(self) -> bool:
        """Whether nothing is guided: guided means are those of no density."""
        return self.is_neutral and self.denoiser.normalised

    @property
    def _questions(self) -> int:
        """How many parts `embed` returns."""
        return 2

    @property
    def is_neutral(self) -> bool:
        """Whether nothing is ever guided."""
        return not isinstance(self.scale, Tensor) and self.scale == self.neutral

    def is_active(self, t: Time) -> bool:
        """Whether guidance may act at `t`. Times in tensors count as active: looking at them would synchronise."""
        if self.is_neutral:
            return False
        if isinstance(t, Tensor) or self.interval is None:
            return True
        return bool(self._inside(torch.tensor(t, dtype=torch.float64)))

    def _inside(self, t: Tensor) -> Tensor:
        assert self.interval is not None
        level = t
        if isinstance(self.process, GaussianProcess):
            level = torch.exp(-self.process.schedule.half_logsnr(t.double()))
        return (level > self.interval[0]) & (level <= self.interval[1])

    def _acts_where(self, x: Tensor, t: Time) -> Tensor | None:
        """Mask of the elements in which guidance acts, to broadcast over `x`; None for all."""
        if self.interval is None or not isinstance(t, Tensor):
            return None
        return align(self._inside(t), x)

    def _scale_at(self, x: Tensor, t: Time) -> float | Tensor:
        """Return the scale of each element of `x`; the neutral one outside of the interval."""
        scale: float | Tensor = self.scale
        if isinstance(scale, Tensor):
            self.scale = scale = scale.to(x.device)  # once; it stays there
            scale = align(tiled(scale, len(x)), x)
        acts = self._acts_where(x, t)
        return scale if acts is None else torch.where(acts, scale, self.neutral)

    def _rescaled(self, guided: Tensor, plain: Tensor, t: Time) -> Tensor:
        """Give a share of the spread of `plain` back, (B, *); elements outside of the interval stay as they are."""
        if not self.rescale:
            return guided
        axes = tuple(range(1, guided.ndim))
        spread = guided.std(axes, correction=0, keepdim=True)
        ratio = torch.where(spread > 0, plain.std(axes, correction=0, keepdim=True) / spread, 1.0)
        scaled = self.rescale * ratio * guided + (1 - self.rescale) * guided
        acts = self._acts_where(guided, t)
        return scaled if acts is None else torch.where(acts, scaled, guided)

    def _own_noise(self, post: Posterior, x: Tensor, t: Time) -> Tensor:
        """The noise that goes with an answer: its own, or what follows from the mean."""
        return cast(GaussianProcess, self.process).eps(x, post, t)


def part_of(cond: Embedded | None, index: int) -> Embedded | None:
    """Return what `cond` keeps for one question; None where that is nothing."""
    part = None if cond is None else cond.parts[index]
    return part if part is not None and (part.batch is not None or part.parts) else None


def tiled(values: Tensor, rows: int) -> Tensor:
    """Repeat values per sample (B, ...) for a batch of `rows`: wrappers that ask more stack whole batches.

    Raises:
        ValueError: The batch is no multiple of B.
    """
    if rows % len(values):
        raise ValueError(f"guidance was given {len(values)} values for a batch of {rows}; give one per sample, or one.")
    return values if rows == len(values) else values.repeat(rows // len(values), *[1] * (values.ndim - 1))
