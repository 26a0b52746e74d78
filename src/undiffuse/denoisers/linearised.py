"""`Linearised`: an answer together with its derivative, and so with the covariance of the posterior.

One forward pass; every product costs one backward pass, or none where the covariance is known in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from undiffuse.denoisers.posterior import Posterior
from undiffuse.noise import NoiseSource

Draw = Callable[[NoiseSource, int], Tensor]


@dataclass(frozen=True)
class Linearised:
    """The posterior at one state, with J = d mean / d x_t and V = Cov[x_0 | x_t] = (sigma^2 / alpha) J^T.

    Args:
        post: The answer, without a graph unless gradients were on.
        pull: J^T v of v (B, *).
        cov: V v of v (B, *); symmetric for a true posterior.
        draw: Draws of N(0, V), (B, *), from a noise source and a step number; None where only products are known.
    """

    post: Posterior
    pull: Callable[[Tensor], Tensor]
    cov: Callable[[Tensor], Tensor]
    draw: Draw | None = None
