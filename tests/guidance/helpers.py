"""Denoisers that the tests of guidance share."""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.denoisers.base import Wrapper
from undiffuse.denoisers.mixture import MixtureDenoiser
from undiffuse.denoisers.posterior import AnyPosterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.times import Time

LABELS = torch.tensor([0, 1, 1])
COND = {"label": torch.tensor([0, 1, 1, 0, 1])}


class Counting(Wrapper):
    """Counts calls and rows."""

    def __init__(self, denoiser: MixtureDenoiser) -> None:
        super().__init__(denoiser)
        self.count, self.rows = 0, 0

    def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> AnyPosterior:
        self.count, self.rows = self.count + 1, self.rows + len(x)
        return self.denoiser(x, t, cond)


def weak_mixture(process: GaussianProcess, labels: Tensor | None = LABELS) -> MixtureDenoiser:
    """The mixture of the tests as a worse model sees it: the same components, wider."""
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.3, -1.2]], dtype=torch.float64)
    weights = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)
    return MixtureDenoiser(weights, means, torch.tensor([0.6, 0.9, 0.8], dtype=torch.float64), process, labels=labels)


def times_of_every_shape(t: float, batch: int) -> tuple[Time, ...]:
    """The same time as a number, (), (B,), (1, 2) and (B, 2)."""
    column = torch.full((batch,), t, dtype=torch.float64)
    return t, torch.tensor(t, dtype=torch.float64), column, column[:1, None].expand(1, 2), column[:, None].expand(-1, 2)
