"""Sampling with flow maps: any share of fresh noise keeps the marginals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of
from undiffuse.denoisers.flow_map import GaussianFlowMap
from undiffuse.errors import PlanError
from undiffuse.noise import InjectedNoise, KeyedNoise
from undiffuse.sampling.flow_map import Jumps, jump_grid, sample_flow_map
from undiffuse.sampling.registry import make_solver


def law() -> tuple[Tensor, Tensor]:
    root = normals(3, 3, seed=2)
    return normals(3, seed=3), root @ root.T / 3 + 0.1 * torch.eye(3, dtype=torch.float64)


class Probes:
    """Noise of which one draw is the unit matrix and every other one 0: its rows show one column of a linear map."""

    def __init__(self, chosen: tuple[str, int] | None) -> None:
        self.chosen = chosen

    def normal(self, stream: str, step: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        eye = torch.eye(3, dtype=dtype)
        return eye if (stream, step) == self.chosen else 0 * eye

    def uniform(self, stream: str, step: int, shape: tuple[int, ...]) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_any_share_of_fresh_noise_gives_the_data_exactly(gamma: float) -> None:
    """On rf, where pure noise is exact. The map is affine, so mean and covariance follow from its columns."""
    mean, cov = law()
    flow_map = GaussianFlowMap(mean, cov, process_of("rf"))
    grid = jump_grid(flow_map, 4)

    def end(chosen: tuple[str, int] | None) -> Tensor:
        return sample_flow_map(flow_map, noise=Probes(chosen), shape=(3,), grid=grid, gamma=gamma, dtype=mean.dtype).x

    centre = end(None)
    draws = [("init", 0), *(("step", k) for k in range(3))]
    columns = [end(draw) - centre for draw in draws]
    torch.testing.assert_close(centre[0], mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sum(c.T @ c for c in columns), cov, rtol=1e-9, atol=1e-9)  # type: ignore[arg-type]
    assert all(bool(c.any()) == (gamma > 0) for c in columns[1:])


def test_consistency_sampling_is_the_published_rule() -> None:
    """x = f(x); then f(x + sqrt(r^2 - e^2) z, r), in sigma on ve, from and to the map's own ends."""
    mean, cov = law()
    flow_map = GaussianFlowMap(mean, cov, process_of("ve"))
    flow_map.start, flow_map.end = 0.9, 0.05
    grid = jump_grid(flow_map, 2)
    assert grid[[0, -1]].tolist() == [0.9, 0.05]
    noise = KeyedNoise(0, range(5))
    found = sample_flow_map(flow_map, noise=noise, shape=(3,), grid=grid, gamma=1.0, dtype=mean.dtype)
    sigma = flow_map.process.schedule.sigma
    start = sigma(grid[0]) * noise.normal("init", 0, (3,), mean.dtype)
    r, e = sigma(grid[1]), sigma(grid[2])
    again = flow_map(start, 0.9, 0.05) + (r**2 - e**2).sqrt() * noise.normal("step", 0, (3,), mean.dtype)
    torch.testing.assert_close(found.x, flow_map(again, float(grid[1]), 0.05), rtol=1e-10, atol=1e-10)
    assert found.nfe == 2


def test_the_trajectory_and_a_given_start() -> None:
    mean, cov = law()
    flow_map = GaussianFlowMap(mean, cov, process_of("rf"))
    x = normals(4, 3, seed=1)
    noise = InjectedNoise({})
    found = sample_flow_map(
        flow_map, noise=noise, shape=(3,), grid=jump_grid(flow_map, 3), start=x, dtype=x.dtype, trajectory=True
    )
    assert found.trajectory is not None and found.trajectory.shape == (4, 4, 3)
    torch.testing.assert_close(found.trajectory[0], x)
    torch.testing.assert_close(found.x, flow_map(x, 1.0, 0.0), rtol=1e-9, atol=1e-9)


def test_jumps_that_were_not_trained_are_refused() -> None:
    flow_map = GaussianFlowMap(*law(), process_of("rf"))
    flow_map.spans = "clean"
    with pytest.raises(PlanError, match=r"gamma=0.0 needs jumps between any two times.*solver=consistency"):
        Jumps().check(flow_map)
    flow_map.spans = "steps"
    with pytest.raises(PlanError, match=r"trained for the steps of a grid alone.*solver=flow-map"):
        Jumps(1.0).check(flow_map)
    with pytest.raises(ValueError, match=r"gamma=1.5 .* must lie in \[0, 1\]"):
        make_solver("flow-map", gamma=1.5)
    assert make_solver("consistency").stochastic and not make_solver("flow-map").stochastic
