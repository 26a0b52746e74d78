"""Velocities and means of samples, denoisers and flow maps, and a scale to compare velocities in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.distillation.objective import gaussian
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import align


def sample_velocity(process: GaussianProcess, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return alpha' x_0 + sigma' eps, whose mean given x_t is dx/dt (B, *)."""
    return process.target("velocity", x0, eps, t)


def velocity_of(held: Denoiser | FlowMap, x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """Return dx/dt of the probability-flow ODE (B, *), by a denoiser or by the diagonal of a flow map."""
    if isinstance(held, FlowMap):
        return held.average_velocity(x, t, t, cond)
    return gaussian(held).velocity(x, held(x, t, cond), t)


def mean_of(held: Denoiser | FlowMap, x: Tensor, t: Tensor, cond: Any) -> Tensor:
    """Return the posterior mean (B, *), by a denoiser or by the diagonal of a flow map."""
    return held.instant(x, t, cond).mean if isinstance(held, FlowMap) else held(x, t, cond).mean


def scaled_error(process: GaussianProcess, error: Tensor, t: Tensor) -> Tensor:
    """Return an error of velocities at times `t` (B,) in units of sqrt((alpha'^2 + sigma'^2) / 2): 1 on `rf`.

    So a loss over velocities means the same on every schedule, however fast its levels change.
    """
    slopes = process.schedule.alpha_slope(t) ** 2 + process.schedule.sigma_slope(t) ** 2
    return error * align((2 / slopes).sqrt(), error).to(error.dtype)
