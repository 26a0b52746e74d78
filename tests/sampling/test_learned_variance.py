"""Ancestral steps of a learned variance: the bounds bit for bit, and the exact reverse variance of Gaussian data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, run, spec_mixture
from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.posterior import AnyPosterior, Posterior
from undiffuse.errors import PlanError
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid, pyramid
from undiffuse.process.times import Time
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver


class Choosing(Wrapper):
    """Adds a v to every answer."""

    def __init__(self, denoiser: Denoiser, v: Any) -> None:
        super().__init__(denoiser)
        self.v = v

    def posterior(self, x: Tensor, t: Time, cond: Any) -> AnyPosterior:
        post = self.denoiser(x, t, cond)
        v = self.v(t) if callable(self.v) else self.v
        return post.replace(extras={"variance": torch.full_like(x, v)})


@pytest.mark.parametrize(("v", "variance"), [(0.0, "small"), (1.0, "large")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("elements", [False, True])
def test_at_its_ends_the_learned_variance_is_that_of_ddpm_bit_for_bit(
    v: float, variance: str, dtype: torch.dtype, elements: bool
) -> None:
    denoiser = spec_mixture(process_of("vp"))
    times = make_grid(denoiser.process.schedule, 9, end="zero") if elements else make_grid(denoiser.process.schedule, 9)
    grid = times[:, None, None].expand(-1, 8, 1).contiguous() if elements else times
    setting: dict[str, Any] = {"noise": KeyedNoise(1, range(8)), "shape": (2,), "grid": grid, "dtype": dtype}
    learned = sample(Choosing(denoiser, v), solver=make_solver("ddpm-learned"), **setting)
    plain = sample(denoiser, solver=make_solver("ddpm", variance=variance), **setting)
    assert learned.nfe == plain.nfe
    assert torch.equal(learned.x, plain.x)


def test_between_its_ends_the_log_variance_is_interpolated() -> None:
    process = process_of("cosine")
    t, s, v = 0.7, 0.4, 0.3
    solver = make_solver("ddpm", variance="learned")
    grid = torch.tensor([t, s], dtype=torch.float64)
    x, z = normals(5, 2, seed=1), normals(5, 2, seed=2)
    denoiser = Choosing(spec_mixture(process), v)
    moved = [run(denoiser, solver, grid, x, noise=InjectedNoise({("step", 0): k * z})).x for k in (0, 1)]
    small, large = process.bridge(t, s, "brownian", 1.0).std, process.forward_kernel(s, t)[1]
    assert isinstance(small, float) and isinstance(large, float)
    std = math.exp((1 - v) * math.log(small) + v * math.log(large))
    torch.testing.assert_close(moved[1] - moved[0], std * z, rtol=1e-12, atol=1e-12)


def test_the_exact_variance_of_gaussian_data_makes_any_number_of_steps_exact() -> None:
    """With v such that each reverse kernel is that of N(0, c^2), every state has the exact variance."""
    process, c = process_of("trig"), 0.4
    grid = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.05], dtype=torch.float64)

    def share(t: Time) -> float:
        k = int((grid == t).nonzero())
        return exact_share(process, float(grid[k]), float(grid[k + 1]), c)

    exact = GaussianDenoiser(torch.zeros(1, dtype=torch.float64), torch.tensor([[c**2]], dtype=torch.float64), process)
    draws = torch.eye(5, dtype=torch.float64)[..., None]  # row i hears the i-th draw alone: responses, not samples
    noise = InjectedNoise({("init", 0): draws[0]} | {("step", k): draws[k + 1] for k in range(4)})

    def variances(denoiser: Denoiser, solver: str) -> Tensor:
        states = sample(
            denoiser,
            noise=noise,
            shape=(1,),
            solver=make_solver(solver),
            grid=grid,
            dtype=torch.float64,
            trajectory=True,
        ).trajectory
        assert states is not None
        return states.square().sum((1, 2))

    alpha, sigma = process.schedule.levels(grid)
    wanted = alpha**2 * c**2 + sigma**2
    torch.testing.assert_close(variances(Choosing(exact, share), "ddpm-learned"), wanted, rtol=1e-10, atol=0)
    assert (variances(exact, "ddpm") / wanted - 1).abs().max() > 0.05  # four steps of either bound are not exact


def exact_share(process: GaussianProcess, t: float, s: float, c: float) -> float:
    """The v of the reverse kernel of N(0, c^2), by conditioning one normal on another."""
    scale, std = process.forward_kernel(s, t)
    levels = process.schedule.levels(torch.tensor([s, t], dtype=torch.float64))
    before, after = (levels[0] ** 2 * c**2 + levels[1] ** 2).tolist()
    variance = torch.tensor(before - (scale * before) ** 2 / after, dtype=torch.float64)
    small = torch.tensor(process.bridge(t, s, "brownian", 1.0).std, dtype=torch.float64) ** 2
    large = torch.tensor(std, dtype=torch.float64) ** 2
    return float((variance.log() - small.log()) / (large.log() - small.log()))


def test_frozen_elements_stay_bit_for_bit() -> None:
    process = process_of("trig")
    grid = pyramid(4, 3, 2)
    still = (grid[0] == grid[1])[0]

    class Wild(Denoiser):
        """Asks for endless noise where nothing may move."""

        def __init__(self) -> None:
            super().__init__()
            self.process = process

        def posterior(self, x: Tensor, t: Time, cond: Any) -> AnyPosterior:
            v = torch.where(still[:, None], math.inf, 0.5).expand_as(x)
            return Posterior(0.5 * torch.tanh(x), extras={"variance": v})

    result = sample(
        Wild(),
        noise=KeyedNoise(0, range(2)),
        shape=(3, 2),
        solver=make_solver("ddpm-learned"),
        grid=grid[:2],
        dtype=torch.float64,
        trajectory=True,
        start=normals(2, 3, 2),
    )
    assert result.trajectory is not None
    assert bool(still.any())
    assert not torch.equal(result.trajectory[1], result.trajectory[0])
    assert torch.equal(result.trajectory[1][:, still], result.trajectory[0][:, still])


def test_a_model_without_the_head_is_refused() -> None:
    denoiser = spec_mixture(process_of("vp"))
    with pytest.raises(PlanError, match="learn_variance=true"):
        run(denoiser, make_solver("ddpm-learned"), make_grid(denoiser.process.schedule, 3), normals(2, 2))
