r"""Power-function averages of the weights.

    average <- beta average + (1 - beta) weights,    beta = (1 - 1 / t)^(gamma + 1) after step t,

so the weights of step t' count in proportion to about t'^gamma: the average widens with the run and forgets
the start of it. `gamma` follows from the relative width of that profile.

Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
    arXiv:2312.02696, section 3.1 and appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def gamma_of_width(width: float) -> float:
    """Return gamma > 0 with width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Args:
        width: Standard deviation of the profile relative to the length of the run, in (0, 1 / sqrt(12)).

    Raises:
        ValueError: The width is out of range.
    """
    if not 0 < width < 12**-0.5:
        raise ValueError(f"ema width {width} is out of range; give a share of the run below 0.288, such as 0.05.")
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerEMA:
    """One averaging profile over a list of tensors.

    Args:
        average: Tensors that hold the average, changed in place.
        width: Relative width of the profile.
    """

    def __init__(self, average: Sequence[Tensor], width: float) -> None:
        self.average = list(average)
        self.width = width
        self.exponent = gamma_of_width(width) + 1

    @torch.no_grad()
    def update(self, weights: list[Tensor], step: int) -> None:
        """Take in the weights after optimizer step `step`, counted from 1."""
        torch._foreach_lerp_(self.average, weights, 1 - (1 - 1 / step) ** self.exponent)
