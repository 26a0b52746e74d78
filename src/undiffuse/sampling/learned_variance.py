"""Steps whose noise the network chooses, element by element, between the two bounds of ancestral sampling.

The coefficients of a plan are numbers, or tensors that are the same for every sample; a learned standard deviation is
neither, being known only with the answer. So a `LearnedStage` plans the two bounds and their distance, and adding the
noise waits for the answer. Everything else about the step is that of `AffineStage`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from undiffuse.errors import PlanError
from undiffuse.sampling.plan import AffineStage, Coefficient, Stage

HEAD = "variance"


@dataclass(kw_only=True)
class LearnedStage(AffineStage):
    """An affine stage with noise of standard deviation noise^(1 - v) highest^v, with v from the posterior.

    Args:
        highest: Upper bound; `noise` is the lower one. None where the step draws no noise.
        spread: log(highest / noise), 0 where there is no noise.
    """

    highest: Coefficient | None
    spread: Coefficient

    def add_noise(self, moved: Tensor, z: Tensor, post: Any) -> Tensor:
        """Add `z` to a state that has made the rest of the step; frozen elements stay.

        Raises:
            PlanError: The posterior has no v.
        """
        v = post.extras.get(HEAD)
        if v is None:
            raise PlanError(
                "variance='learned' needs a model with a variance head, trained with objective.learn_variance=true; "
                "use variance='small' or 'large'."
            )
        v = v.to(moved.dtype)
        # From the nearer bound, so that v = 0 and v = 1 give the bounds themselves, bit for bit.
        low = _add(moved, self.noise, z * torch.exp(v * self.spread))
        high = _add(moved, self.highest, z * torch.exp((v - 1) * self.spread))
        noisy = torch.where(v > 0.5, high, low)
        return noisy if self.frozen is None else torch.where(self.frozen, moved, noisy)


def learned_stages(small: Iterable[Stage], large: Iterable[Stage]) -> tuple[LearnedStage, ...]:
    """Join the stages of the two bounds of one grid."""
    pairs = zip(cast(Iterable[AffineStage], small), cast(Iterable[AffineStage], large), strict=True)
    return tuple(_between(low, high) for low, high in pairs)


def _between(low: AffineStage, high: AffineStage) -> LearnedStage:
    planned = {f.name: getattr(low, f.name) for f in fields(AffineStage)}
    return LearnedStage(**planned, highest=high.noise, spread=_log_ratio(high.noise, low.noise))


def _log_ratio(high: Coefficient | None, low: Coefficient | None) -> Coefficient:
    if isinstance(high, Tensor) and isinstance(low, Tensor):
        return torch.where(low > 0, torch.log(high / torch.where(low > 0, low, 1.0)), 0.0)
    return math.log(cast(float, high) / cast(float, low)) if high and low else 0.0


def _add(total: Tensor, factor: Any, x: Tensor) -> Tensor:
    """total + factor * x, rounded as `AffineSolver.step` does."""
    return torch.add(total, x, alpha=factor) if isinstance(factor, float) else total + factor * x
