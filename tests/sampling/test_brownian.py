"""One Brownian path for all step counts: its law, what it makes equal, and what is refused."""

from __future__ import annotations

import pytest
import torch

from tests.oracles.continuous import normals, process_of, run, spec_mixture
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.errors import PlanError
from undiffuse.noise import InjectedNoise, KeyedNoise, RecordedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import known, make_grid
from undiffuse.sampling.plan import AffineStage
from undiffuse.sampling.registry import make_solver

RULES = [
    ("sde-dpm++2m", {}),
    ("sde-dpm++3m", {"tau": 0.6}),
    ("ddim", {"eta": 0.7}),
    ("ddpm", {}),
    ("euler-maruyama", {}),
    ("ddpm-learned", {}),
]


@pytest.mark.parametrize(("name", "options"), RULES)
@pytest.mark.parametrize("schedule", ["vp", "rf", "edm", "ddpm"])
@pytest.mark.parametrize("shape", ["t", "logsnr", "karras"])
def test_steps_get_independent_standard_normals(
    schedule: str, name: str, options: dict[str, float], shape: str
) -> None:
    """Exactly: the weights of all steps on the nodes of the path are orthonormal rows."""
    process = process_of(schedule)
    grid = make_grid(process.schedule, 40, shape)  # type: ignore[arg-type]
    stages = make_solver(name, path=True, **options).plan(process, grid).entries
    paths = [stage.path for stage in stages if isinstance(stage, AffineStage) and stage.path is not None]
    assert len(paths) == 39  # the step to 0 draws nothing
    column = {node: i for i, node in enumerate({node for nodes, _ in paths for node in nodes})}
    rows = torch.zeros(len(paths), len(column), dtype=torch.float64)
    for row, (nodes, weights) in zip(rows, paths, strict=True):
        row[[column[node] for node in nodes]] = weights
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(paths), dtype=torch.float64), rtol=0, atol=1e-9)


def point(process: GaussianProcess) -> GaussianDenoiser:
    return GaussianDenoiser(torch.tensor([0.4, -1.3]).double(), torch.zeros(2, 2).double(), process)


@pytest.mark.parametrize("tau", [0.6, 1.0, 1.5])
@pytest.mark.parametrize("schedule", ["vp", "rf", "edm"])
def test_with_a_constant_mean_every_number_of_steps_ends_at_the_same_point(schedule: str, tau: float) -> None:
    """The clock is that of the exact step's noise, so increments add up; on times that are leaves, to round-off."""
    process = process_of(schedule)
    low, high = process.schedule.half_logsnr(
        torch.tensor([process.schedule.t_max, process.schedule.t_min], dtype=torch.float64)
    ).tolist()
    x, rule, ends = normals(4, 2, seed=1), make_solver("sde-dpm++1", tau=tau, path=True), []
    for steps in (1, 4, 16, 64):
        grid = process.schedule.time(torch.linspace(low, high, steps + 1, dtype=torch.float64))
        ends.append(run(point(process), rule, grid, x).x)
    spread = float(process.schedule.sigma(grid[-1]))
    for end in ends[1:]:
        assert float((end - ends[0]).abs().max()) < 1e-7 * spread
    fresh = [run(point(process), make_solver("sde-dpm++1", tau=tau), grid, x).x]
    assert float((fresh[0] - ends[0]).abs().max()) > 0.1 * spread


@pytest.mark.parametrize(("name", "options"), RULES[:5])
def test_runs_of_more_steps_converge_to_one_sample(name: str, options: dict[str, float]) -> None:
    """Strong convergence: N and 2 N steps come together, which with fresh noise per step they never do."""
    process = process_of("vp")
    denoiser, x = spec_mixture(process), normals(64, 2, seed=1)

    def gaps(path: bool) -> list[float]:
        rule = make_solver(name, path=path, **options)
        ends = [run(denoiser, rule, make_grid(process.schedule, n), x).x for n in (9, 17, 65, 129)]
        return [float((ends[i] - ends[i + 1]).square().sum(1).mean().sqrt()) for i in (0, 2)]

    shared, fresh = gaps(True), gaps(False)
    # Order 1/2 to 1 in 8 times the steps: a fall by 2.8 to 8, but points near a border of components land late.
    assert shared[1] < shared[0] / 2 and shared[1] < 0.25, shared
    assert fresh[1] > 0.7, fresh


def test_a_path_is_a_function_of_seed_and_item() -> None:
    process = process_of("cosine")
    denoiser, rule, grid = spec_mixture(process), make_solver("sde-dpm++2m", path=True), make_grid(process.schedule, 9)
    x = normals(6, 2, seed=1)
    whole = run(denoiser, rule, grid, x, noise=KeyedNoise(3, range(6))).x
    part = run(denoiser, rule, grid, x[4:], noise=KeyedNoise(3, [4, 5])).x
    torch.testing.assert_close(part, whole[4:], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(run(denoiser, rule, grid, x, noise=KeyedNoise(4, range(6))).x, whole)


def test_sources_without_blocks_draw_node_by_node() -> None:
    process = process_of("vp")
    denoiser, rule, grid = spec_mixture(process), make_solver("sde-dpm++2m", path=True), make_grid(process.schedule, 7)
    x, noise = normals(3, 2, seed=1), RecordedNoise(KeyedNoise(0, range(3)))
    one = run(denoiser, rule, grid, x, noise=noise).x
    assert {stream for stream, _ in noise.record} == {"path"}
    torch.testing.assert_close(one, run(denoiser, rule, grid, x).x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one, run(denoiser, rule, grid, x, noise=InjectedNoise(noise.record)).x)


def test_large_states_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from undiffuse.sampling import brownian

    process = process_of("vp")
    denoiser, rule, grid = spec_mixture(process), make_solver("ddpm", path=True), make_grid(process.schedule, 5)
    x = normals(3, 2, seed=1)
    whole = run(denoiser, rule, grid, x).x
    monkeypatch.setattr(brownian, "_BLOCK", 20)
    torch.testing.assert_close(run(denoiser, rule, grid, x).x, whole, rtol=1e-12, atol=1e-12)


def test_what_a_path_cannot_do_is_refused() -> None:
    for name, options in (("ddim", {}), ("dpm++2m", {}), ("dpm++3m", {})):
        with pytest.raises(ValueError, match="draws none"):
            make_solver(name, path=True, **options)
    process, rule = process_of("vp"), make_solver("ddpm", path=True)
    with pytest.raises(PlanError, match="times per element"):
        rule.plan(process, known(make_grid(process.schedule, 4), 3, [0]))
    crowded = torch.tensor([1.0, 0.5, 0.5 - 1e-9, 0.0], dtype=torch.float64)
    with pytest.raises(PlanError, match="take fewer steps"):
        rule.plan(process, crowded)
