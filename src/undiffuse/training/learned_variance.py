r"""The bound that trains the variance of a step: L = L_simple + weight * L_vlb.

Ancestral sampling goes from t to s by a normal whose variance lies between two bounds, both read off the process: that
of the bridge given x_0 (small), and that of the forward transition from s to t (large). The network's head says where:
log variance = (1 - v) log small + v log large. L_vlb is the expected KL divergence from the bridge to that normal, in
nats per element, over steps of length 1 / levels (near t = 0 of half the time at most), times the number of levels. The
mean enters without gradient, so that L_vlb trains the variance only (and what both heads stand on).

The last step, to s = 0, has no bridge to compare with. Its term is the negative log-likelihood of the data under the
normal around the mean: a density, as fits continuous data, where the paper has the probability of a byte. Its lower
bound, which would be 0, is that of the step before.

Times are those of the objective; a law that is not uniform weights the terms as it weights the loss.

Source: Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", section 3.1, eq. 15 and 16,
    arXiv:2102.09672.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from undiffuse.process.gaussian import GaussianProcess, fit


class Transition(NamedTuple):
    """What the bound needs of the steps from times t, float64 in the shape of t.

    Args:
        log_small: Log of the lower bound of the variance.
        log_range: Log of the upper bound less that.
        gain: (d mean of x_s / d x_0)^2 / lower bound.
        to_data: Whether the step goes to s = 0.
    """

    log_small: Tensor
    log_range: Tensor
    gain: Tensor
    to_data: Tensor


@dataclass(frozen=True)
class VarianceBound:
    """The variational bound as a function of the variance alone.

    Args:
        levels: Number of noise levels.
        weight: lambda; `weight * levels` multiplies the KL divergence per element.
    """

    levels: int = 1000
    weight: float = 0.001

    def divergence(self, process: GaussianProcess, t: Tensor, x0: Tensor, mean: Tensor, v: Tensor) -> Tensor:
        """Return the KL divergence (steps to data: the negative log-likelihood) per element, nats, (B, *).

        Args:
            process: Its bridge and transitions.
            t: Times, float64 (B,) or (B, F).
            x0: Data (B, *).
            mean: Posterior mean (B, *); no gradient passes to it.
            v: Where the log-variance lies between its bounds, (B, *).
        """
        step = self.transition(process, t)
        log_small, log_range, gain = (cast(Tensor, fit(c, x0)) for c in step[:3])
        to_data = cast(Tensor, fit(step.to_data.double(), x0))
        error = (x0 - mean.detach()).square()
        above = v * log_range  # log variance less its lower bound
        constant = torch.where(to_data > 0, math.log(2 * math.pi) + log_small, -1.0)
        return 0.5 * (above + (1 - to_data + gain * error) * torch.exp(-above) + constant)

    def transition(self, process: GaussianProcess, t: Tensor) -> Transition:
        """Return the steps that start at `t`, float64."""
        t = t.double()
        s = torch.maximum(t - 1 / self.levels, t / 2)
        to_data = s < process.schedule.t_min
        before = torch.minimum(t + 1 / self.levels, 2 * t).clamp(max=1.0)
        c_x0, c_eps, std = process.bridge(torch.where(to_data, before, t), torch.where(to_data, t, s), "brownian", 1.0)
        alpha, sigma = process.schedule.levels(t)
        log_small = 2 * torch.log(torch.as_tensor(std))
        large = process.forward_kernel(torch.where(to_data, 0.0, s), t)[1]
        slope = torch.where(to_data, 1.0, c_x0 - c_eps * alpha / sigma)
        gain = slope**2 * torch.exp(-log_small)
        return Transition(log_small, 2 * torch.log(torch.as_tensor(large)) - log_small, gain, to_data)
