"""Times per frame and per item through the loop: shapes, dtypes, what the denoiser is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import CONTINUOUS_SOLVERS, normals, process_of, run, spec_mixture
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.denoisers.posterior import Posterior
from undiffuse.errors import PlanError
from undiffuse.noise import KeyedNoise
from undiffuse.process.grids import known, make_grid, pyramid, sync
from undiffuse.process.times import Time
from undiffuse.sampling.constraints import Known
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver

PROCESS = process_of("trig")
ONE_STEP = ("ddim", "euler", "heun", "edm-heun")


class Listening(Denoiser):
    """Notes the times it is asked at."""

    def __init__(self) -> None:
        super().__init__()
        self.process = PROCESS
        self.seen: list[Time] = []

    def posterior(self, x: Tensor, t: Time, cond: Any) -> Posterior:
        self.seen.append(t)
        return Posterior(0.5 * torch.tanh(x))


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_video_frames_are_frozen_bit_for_bit_in_every_dtype(solver: str, dtype: torch.dtype) -> None:
    grid = pyramid(4, 3, 2)
    denoiser = Listening()
    result = sample(
        denoiser,
        noise=KeyedNoise(0, range(2)),
        shape=(3, 2, 4, 4),
        solver=CONTINUOUS_SOLVERS[solver],
        grid=grid,
        dtype=dtype,
        trajectory=True,
    )
    assert result.trajectory is not None
    assert result.x.dtype == dtype
    for k in range(len(grid) - 1):
        still = (grid[k] == grid[k + 1])[0]
        assert torch.equal(result.trajectory[k + 1][:, still], result.trajectory[k][:, still])
    assert all(isinstance(t, Tensor) and t.shape == (2, 3) for t in denoiser.seen)


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
def test_frames_in_step_are_the_shared_grid(solver: str) -> None:
    times = make_grid(PROCESS.schedule, 7)
    x = normals(2, 3, 2, seed=1)
    shared = run(Listening(), CONTINUOUS_SOLVERS[solver], times, x).x
    for grid in (sync(times, 3), sync(times, 3).expand(-1, 2, -1).contiguous(), times[:, None, None].expand(-1, 2, 1)):
        torch.testing.assert_close(
            run(Listening(), CONTINUOUS_SOLVERS[solver], grid, x).x, shared, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("solver", ONE_STEP)
def test_a_grid_per_item_asks_with_a_time_per_item(solver: str) -> None:
    x, denoiser = normals(2, 4, seed=1), Listening()
    times = [make_grid(PROCESS.schedule, 6), make_grid(PROCESS.schedule, 6, "karras")]
    grid = torch.stack(times, dim=1)[..., None]
    both = run(denoiser, CONTINUOUS_SOLVERS[solver], grid, x).x
    assert all(isinstance(t, Tensor) and t.shape == (2,) for t in denoiser.seen)
    for i, own in enumerate(times):
        alone = run(Listening(), CONTINUOUS_SOLVERS[solver], own, x[i : i + 1]).x
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [*ONE_STEP, "dpm++2m"])
def test_each_frame_equals_the_run_with_that_frame_alone(solver: str) -> None:
    """Frames that do not look at each other walk their own grids as if alone, memory included."""
    grid = torch.stack(
        [make_grid(PROCESS.schedule, 8, shape) for shape in ("logsnr", "karras", "t")],  # type: ignore[arg-type]
        dim=1,
    )[:, None]
    held = grid[[0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8]].clone()
    held[:, 0, 0] = grid[[0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 8], 0, 0]
    held[:, 0, 1] = grid[[0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8], 0, 1]
    x = normals(2, 3, 2, seed=1)
    rule = make_solver(solver, **({"lower_final": False} if solver == "dpm++2m" else {}))
    joint = run(Listening(), rule, held, x).x
    for f in range(3):
        alone = run(Listening(), rule, grid[:, 0, f], x[:, f : f + 1]).x
        torch.testing.assert_close(joint[:, f : f + 1], alone, rtol=1e-10, atol=1e-10)


def test_items_at_different_times_of_pure_data_and_noise_stay_finite() -> None:
    grid = torch.tensor([[[1.0], [0.0]], [[0.5], [0.0]], [[0.0], [0.0]]], dtype=torch.float64)
    for name in ("trig", "rf", "vp", "ve", "edm", "ddpm"):
        denoiser = spec_mixture(process_of(name))
        x = normals(2, 2, seed=1)
        for rule in CONTINUOUS_SOLVERS.values():
            out = run(denoiser, rule, grid, x).x
            assert out.isfinite().all()
            assert torch.equal(out[1], x[1])


def test_known_frames_need_a_start_or_a_grid_that_begins_in_noise() -> None:
    denoiser = GaussianDenoiser(torch.zeros(3), torch.eye(3), PROCESS)
    grid = known(make_grid(PROCESS.schedule, 4), 3, [0])
    noise, rule = KeyedNoise(0, range(2)), make_solver("ddim")
    with pytest.raises(PlanError, match=r"[Gg]ive start"):
        sample(denoiser, noise=noise, shape=(3,), solver=rule, grid=grid)
    start = noise.normal("init", 0, (3,))
    mask = torch.tensor([[True, False, False]])
    out = sample(
        denoiser,
        noise=noise,
        shape=(3,),
        solver=rule,
        grid=grid,
        start=start,
        constraints=[Known(7 * torch.ones(3), mask)],
    ).x
    assert torch.equal(out[:, 0], torch.full((2,), 7.0))
