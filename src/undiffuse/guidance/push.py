"""A push along a gradient through the posterior mean, for methods that move the state instead of the mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import AnyPosterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.times import Time
from undiffuse.sampling.pushed import PUSH

Direction = Callable[[Tensor, Tensor, Time], Tensor]
"""(mean, x, t) -> u (B, *): minus the gradient of a loss by the mean, times the size of the step."""


class GradientPush(Wrapper):
    """The same answer, with J^T u in its extras for `sampling.pushed.Pushed`: minus the loss's gradient by x_t.

    One forward and one backward pass. Nothing may be wrapped around it, for wrappers do not pass extras on.

    Args:
        denoiser: The prior.
        direction: u of a mean.
        jacobian: Differentiate the denoiser; without, the push is u itself, as if J were the identity.
    """

    def __init__(self, denoiser: Denoiser, direction: Direction, jacobian: bool = True) -> None:
        super().__init__(denoiser)
        self.direction, self.jacobian, self.needs_grad = direction, jacobian, True
        self.time_dependent = True

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        """Answer, and say where to."""
        if not self.jacobian:
            post = self.denoiser(x, t, cond)
            return replace(post, extras={**post.extras, PUSH: self.direction(post.mean, x, t)})
        answer = self.denoiser.linearise(x, t, cond)
        push = answer.pull(self.direction(answer.post.mean, x, t))
        return replace(answer.post, extras={**answer.post.extras, PUSH: push})


def descent(loss: Callable[[Tensor], Tensor], mean: Tensor) -> Tensor:
    """Return minus the gradient of a loss (B,) by the mean (B, *); rows do not see each other."""
    with torch.enable_grad():
        point = mean.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(point).sum(), point, materialize_grads=True)
    return -gradient
