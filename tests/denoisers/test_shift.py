"""`ShiftedDenoiser` around a network that knows the answer for Gaussian data: walks end in the exact posterior."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from undiffuse.denoisers.shift import ShiftedDenoiser
from undiffuse.networks.conditioners import make_conditioners
from undiffuse.networks.embedded import Embedded
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.registry import make_schedule
from undiffuse.sampling import make_solver, sample
from undiffuse.spec import ConditionSpec, DataSpec

SPEC = DataSpec(kind="image", shape=(1, 2, 2), cond={"source": ConditionSpec(kind="map", width=1)})
DATA, NOISE = 0.6, 0.4  # standard deviations of x_0 and of y - x_0


class Exact(nn.Module):
    """E[x_0 | x_t, y] of x_0 ~ N(0, DATA^2), y ~ N(x_0, NOISE^2), from what a network is shown."""

    def __init__(self, process: GaussianProcess) -> None:
        super().__init__()
        self.process = process
        self.conditioners = make_conditioners(SPEC.conditions, 8, dims=2)
        self.double()

    def forward(self, seen: Tensor, level: Tensor, cond: Embedded) -> Tensor:
        t = self.process.schedule.time(-4 * level[0].double())  # all rows share it
        alpha, sigma = self.process.schedule.levels(t)
        y = cond.maps
        x = seen * (sigma**2 + DATA**2).sqrt() - (1 - alpha) * y  # the state without y
        rate = alpha**2 / sigma**2
        return (alpha / sigma**2 * x + y / NOISE**2) / (1 / DATA**2 + rate + 1 / NOISE**2)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ir-sde", {"eta": 1.0}),
        ("resshift", {"eta": 1.0, "rule": "increments"}),
        ("i2sb", {"eta": 1.0}),
        ("indi", {"eta": 1.0}),
        ("rddm", {"eta": 1.0}),
        ("rddm", {"eta": 0.0}),
    ],
)
def test_walks_end_in_the_exact_posterior(name: str, options: dict[str, object]) -> None:
    """Mean and variance of 12 000 numbers, within 5 standard errors and the bias of the walk.

    A first-order walk of steps h in half log-SNR changes the variance by a share of about h (measured: 0.9 h at most).
    """
    process, rows, steps = GaussianProcess(make_schedule(name)), 3000, 100
    grid = make_grid(process.schedule, steps, "logsnr")
    h = float(process.schedule.half_logsnr(grid[1:-1]).diff().mean())
    denoiser = ShiftedDenoiser(Exact(process), process, "data", spec=SPEC, data_std=DATA)
    y = torch.full((rows, 1, 2, 2), 0.5, dtype=torch.float64)
    x = sample(
        denoiser,
        noise=KeyedNoise(0, range(rows)),
        shape=SPEC.shape,
        solver=make_solver("ddim", **options),
        grid=grid,
        cond={"source": y},
        dtype=torch.float64,
    ).x
    variance = 1 / (1 / DATA**2 + 1 / NOISE**2)
    assert float(x.mean()) == pytest.approx(0.5 * variance / NOISE**2, abs=5 * math.sqrt(variance / x.numel()) + 3e-3)
    assert float(x.var()) == pytest.approx(variance, rel=h + 5 * math.sqrt(2 / x.numel()))
