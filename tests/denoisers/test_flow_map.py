"""Flow maps: the exact Gaussian map and its diagonal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, run
from undiffuse.denoisers.flow_map import FlowMap, GaussianFlowMap
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.process.times import Time
from undiffuse.sampling.flow_map import sample_flow_map
from undiffuse.sampling.registry import make_solver

NAMES = ("vp", "rf", "trig", "subvp")


def law() -> tuple[Tensor, Tensor]:
    root = normals(3, 3, seed=2)
    return normals(3, seed=3), root @ root.T / 3 + 0.1 * torch.eye(3, dtype=torch.float64)


def exact(name: str) -> GaussianFlowMap:
    return GaussianFlowMap(*law(), process_of(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_exact_map_is_a_semigroup(name: str) -> None:
    flow_map, x = exact(name), normals(5, 3, seed=1)
    for t, u, s in ((1.0, 0.6, 0.2), (0.9, 0.89, 0.0), (0.5, 0.5, 0.1), (0.7, 0.3, 0.3)):
        torch.testing.assert_close(flow_map(flow_map(x, t, u), u, s), flow_map(x, t, s), rtol=1e-10, atol=1e-10)
    column = [torch.linspace(a, b, 5, dtype=torch.float64) for a, b in ((0.95, 0.5), (0.45, 0.3), (0.0, 0.2))]
    joined = flow_map(flow_map(x, column[0], column[1]), column[1], column[2])
    torch.testing.assert_close(joined, flow_map(x, column[0], column[2]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_is_the_identity(name: str) -> None:
    flow_map, x = exact(name), normals(5, 3, seed=1)
    torch.testing.assert_close(flow_map(flow_map(x, 0.8, 0.1), 0.1, 0.8), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flow_map(x, 0.4, 0.4), x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_the_map_carries_marginals_to_marginals(name: str) -> None:
    """The push-forward of N(alpha_t m, alpha_t^2 C + sigma_t^2) is that of s: exact, by linearity."""
    (mean, cov), process = law(), process_of(name)
    flow_map, t, s = exact(name), 0.9, 0.25
    level = lambda u: (process.coefficients(u, mean)[0], process.coefficients(u, mean)[1])  # noqa: E731
    (a, g), (a_s, g_s) = level(t), level(s)
    centre = flow_map((a * mean)[None], t, s)
    columns = flow_map(a * mean + torch.eye(3, dtype=torch.float64), t, s) - centre
    torch.testing.assert_close(centre[0], a_s * mean, rtol=1e-10, atol=1e-10)
    eye = torch.eye(3, dtype=torch.float64)
    pushed = columns.T @ (a**2 * cov + g**2 * eye) @ columns  # type: ignore[operator]
    torch.testing.assert_close(pushed, a_s**2 * cov + g_s**2 * eye, rtol=1e-9, atol=1e-9)  # type: ignore[operator]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_limit_of_the_solvers(name: str) -> None:
    flow_map, x = exact(name), normals(5, 3, seed=1)
    schedule = process_of(name).schedule
    grid = schedule.time(torch.linspace(-3.0, 3.0, 401, dtype=torch.float64))
    end = run(GaussianDenoiser(*law(), process_of(name)), make_solver("dpm++2m"), grid, x).x
    torch.testing.assert_close(end, flow_map(x, float(grid[0]), float(grid[-1])), rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", [*NAMES, "cosine", "ve"])
def test_its_diagonal_is_the_gaussian_denoiser(name: str) -> None:
    process = process_of(name)
    diagonal, denoiser = GaussianFlowMap(*law(), process).diagonal(), GaussianDenoiser(*law(), process)
    x = normals(5, 3, seed=1)
    for t in (0.999, 0.5, 0.05, torch.linspace(0.1, 0.9, 5, dtype=torch.float64)):
        torch.testing.assert_close(diagonal(x, t).mean, denoiser(x, t).mean, rtol=1e-8, atol=1e-8)
    grid = make_grid(process.schedule, 8, start=0.9)
    ends = [run(d, make_solver("dpm++2m"), grid, x).x for d in (diagonal, denoiser)]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-8)


def test_average_velocities_tend_to_the_velocity() -> None:
    flow_map, x, t = exact("rf"), normals(5, 3, seed=1), 0.6
    velocity = flow_map.average_velocity(x, t, t)
    process = flow_map.process
    expected = process.velocity(x, GaussianDenoiser(*law(), process)(x, t), t)
    torch.testing.assert_close(velocity, expected, rtol=1e-10, atol=1e-10)
    gaps = [float((flow_map.average_velocity(x, t, t - d) - velocity).abs().max()) for d in (1e-2, 1e-3)]
    assert gaps[1] < 0.12 * gaps[0]


class Straight(FlowMap):
    """u = x: enough to see how the base class uses it."""

    def __init__(self) -> None:
        super().__init__()
        self.process: GaussianProcess = process_of("rf")
        self.times: list[tuple[Time, Time]] = []

    def average_velocity(self, x: Tensor, t: Time, s: Time, cond: object = None) -> Tensor:
        self.times.append((t, s))
        return x


def test_the_base_class_moves_by_span_times_average_velocity() -> None:
    x = normals(3, 4)
    torch.testing.assert_close(Straight()(x, 0.9, 0.4), 0.5 * x, rtol=1e-14, atol=0)
    t = torch.tensor([[0.9, 0.5, 0.5, 1.0]], dtype=torch.float64)
    s = torch.tensor([[0.4, 0.5, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(Straight()(x, t, s), (1 - (t - s)) * x, rtol=1e-14, atol=0)
    assert torch.equal(Straight()(x, t, s)[:, 1], x[:, 1])
    for wrong in (1.2, torch.zeros(4)):
        with pytest.raises(ValueError):
            Straight()(x, wrong, 0.0)
        with pytest.raises(ValueError):
            Straight()(x, 1.0, wrong)


@pytest.mark.parametrize("jumps", [1, 2, 5])
def test_sampling_a_flow_map_costs_one_evaluation_per_jump(jumps: int) -> None:
    flow_map = Straight()
    grid = torch.linspace(1, 0, jumps + 1, dtype=torch.float64)
    noise = KeyedNoise(0, range(3))
    result = sample_flow_map(flow_map, noise=noise, shape=(2,), grid=grid)
    assert result.nfe == len(flow_map.times) == jumps
    torch.testing.assert_close(result.x, (1 - 1 / jumps) ** jumps * noise.normal("init", 0, (2,)))


def test_any_number_of_jumps_of_the_exact_map_is_the_same_sample() -> None:
    flow_map = exact("rf")
    ends = [
        sample_flow_map(
            flow_map,
            noise=KeyedNoise(0, range(4)),
            shape=(3,),
            grid=torch.linspace(1, 0, n + 1, dtype=torch.float64),
            dtype=torch.float64,
        ).x
        for n in (1, 2, 7)
    ]
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["vp", "cosine", "rf"])
def test_the_exact_map_is_the_identity_on_its_diagonal_and_finite_at_the_clean_end(name: str) -> None:
    exact = GaussianFlowMap(normals(3, seed=2), 0.4 * torch.eye(3, dtype=torch.float64), process_of(name))
    x = normals(5, 3)
    for t in (0.0, 0.3, 1.0):
        assert torch.equal(exact(x, t, t), x)
    assert bool(exact.average_velocity(x, 0.0, 0.0).isfinite().all())
    assert torch.allclose(exact.diagonal()(x, 0.0).mean, x)


def test_the_exact_map_refuses_a_time_per_element() -> None:
    exact = GaussianFlowMap(torch.zeros(3), torch.eye(3), process_of("rf"))
    with pytest.raises(ValueError, match="one time per item"):
        exact(normals(2, 3), torch.full((2, 3), 0.5), 0.1)
