"""How far an answer is from the measurement, and which way is nearer: the data term of gradient methods."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from undiffuse.process.times import align
from undiffuse.tasks.restore.restorer import Problem

LEAST_NORM = 1e-12
"""Of a residual that is divided by: the norm has no gradient at zero."""


def misfit_descent(problem: Problem, mean: Tensor) -> Tensor:
    """Return minus the gradient of |y - A(mean)| by the mean, or of what stands for it with another noise (R, *)."""
    with torch.enable_grad():
        point = mean.detach().requires_grad_()
        found = problem.operator(point)
        rest = found.detach()
        size = (problem.y - rest).flatten(1).norm(dim=1).clamp(min=LEAST_NORM)
        (gradient,) = torch.autograd.grad(
            found, point, misfit_slope(problem, rest) / align(size, rest), materialize_grads=True
        )
    return -gradient


def misfit_slope(problem: Problem, found: Tensor) -> Tensor:
    """Return the derivative by `found` of |y - found|^2 / 2, or of its likeness -log p(y | found) std^2, (R, *).

    In these units every noise has the curvature 1 near its centre, so that weights keep their meaning. Where the law
    allows no such value (a negative intensity has no photons, an error has left its bounds), the first form stands in;
    where y says nothing (salt and pepper), the slope is 0.
    """
    y, model = problem.y, problem.noise_model
    if model is None:
        return found - y
    with torch.enable_grad():
        at = found.detach().requires_grad_()
        density = model.log_density(y, at)
        # Laws of bounds and atoms are flat wherever they allow a value.
        flat = not density.requires_grad
        slope = torch.zeros_like(found) if flat else -torch.autograd.grad(density.sum(), at)[0]
    slope = slope * align(mean_variance(problem).to(found), found)
    slope = torch.where(slope.isfinite() & (density > -math.inf), slope, found - y)
    known = model.known(y)
    return slope if known is None else torch.where(known, slope, 0.0)


def mean_variance(problem: Problem) -> Tensor:
    """Return the variance that a noise model takes the noise of each row to have, its mean over y, float64 (R,)."""
    assert problem.noise_model is not None
    std = torch.as_tensor(problem.noise_model.std_like(problem.y), dtype=torch.float64).to(problem.y.device)
    return std.square().expand(problem.y.shape).flatten(1).mean(1)
