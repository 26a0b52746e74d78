"""Taking steps again: what it costs, what stays the same, and that it mends replacement."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.denoisers.mixture import GaussianDenoiser
from undiffuse.errors import PlanError
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid, sync, uniform_grid
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.ancestral import Ancestral
from undiffuse.sampling.constraints import Known, Replacement
from undiffuse.sampling.first_hitting import FirstHitting
from undiffuse.sampling.loop import SampleResult, sample
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.resampling import Resampled

TABLE = torch.arange(1, 28, dtype=torch.float64).view(3, 3, 3) / 378


def tokens(kind: str = "uniform") -> JointDenoiser:
    return JointDenoiser(TABLE, CategoricalProcess(kind, 3))  # type: ignore[arg-type]


def walked(denoiser: JointDenoiser, passes: int | None, rows: int = 8, **options: Any) -> SampleResult:
    solver = Ancestral() if passes is None else Resampled(solver=Ancestral(), passes=passes)
    given = {"grid": uniform_grid(5), "noise": KeyedNoise(1, range(rows)), "shape": (3,)} | options
    return sample(denoiser, solver=solver, **given)


@pytest.mark.parametrize("kind", ["uniform", "absorbing", "mask-replace"])
def test_nothing_known_and_one_pass_is_plain_sampling_with_the_same_noise(kind):
    denoiser = tokens(kind)
    nothing = Replacement(denoiser.process, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool))
    plain = walked(denoiser, None, trajectory=True)
    assert torch.equal(walked(denoiser, 1, constraints=[nothing], trajectory=True).trajectory, plain.trajectory)


@pytest.mark.parametrize("kind", ["uniform", "absorbing", "mask-replace"])
def test_all_known_comes_back_whatever_the_passes(kind):
    denoiser, values = tokens(kind), torch.tensor([2, 0, 1])
    everything = Replacement(denoiser.process, values, torch.ones(3, dtype=torch.bool))
    assert torch.equal(walked(denoiser, 3, constraints=[everything]).x, values.expand(8, 3))


def test_every_pass_but_that_of_the_last_step_costs_an_evaluation_and_leaves_one_state_per_time():
    result = walked(tokens(), 3, trajectory=True)
    assert result.nfe == 3 * 4 + 1
    assert result.trajectory is not None and len(result.trajectory) == 6
    assert torch.equal(result.trajectory[-1], result.x)


def test_passes_draw_noise_of_their_own_and_rows_do_not_depend_on_the_batch():
    whole, part = walked(tokens(), 4, rows=64).x, walked(tokens(), 4, rows=5).x
    assert torch.equal(whole[:5], part)
    assert not torch.equal(whole, walked(tokens(), 3, rows=64).x)


def test_given_tokens_survive_the_way_up():
    """Going up would mask them; the next pass begins like any step, so the constraint enters again."""
    denoiser = tokens("absorbing")
    seen = []
    rule = Known(torch.tensor([2, 0, 0]), torch.tensor([True, False, False]))
    walked(denoiser, 3, constraints=[rule], callback=lambda snapshot: seen.append(snapshot.x[:, 0]))
    assert len(seen) == 13
    assert all(bool((x == 2).all()) for x in seen)


@pytest.mark.parametrize("times", ["shared", "per element"])
def test_replacement_of_numbers_is_mended_too(times):
    """Two numbers of correlation 0.9, the first known to be 1.5: the second has mean 1.35 and variance 0.19."""
    process = GaussianProcess(make_schedule("trig"))
    cov = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    denoiser = GaussianDenoiser(torch.zeros(2, dtype=torch.float64), cov, process)
    values, mask = torch.tensor([1.5, 0.0]), torch.tensor([True, False])
    grid = make_grid(process.schedule, 20)
    rows = 4000

    def mean(passes: int) -> float:
        x = sample(
            denoiser,
            noise=KeyedNoise(0, range(rows)),
            shape=(2,),
            solver=Resampled(solver=make_solver("ddpm"), passes=passes),
            grid=grid if times == "shared" else sync(grid, 2),
            constraints=[Replacement(process, values, mask, "fresh")],
            dtype=torch.float64,
        ).x
        assert torch.equal(x[:, 0], torch.full((rows,), 1.5, dtype=torch.float64))
        return float(x[:, 1].mean())

    plain, mended = mean(1), mean(10)
    error = 0.19**0.5 / rows**0.5
    assert plain < 1.35 - 20 * error
    assert abs(mended - 1.35) < 0.35 * (1.35 - plain)


def test_what_cannot_be_repeated_is_refused():
    with pytest.raises(ValueError, match="resample=0 must be at least 1"):
        Resampled(solver=Ancestral(), passes=0)
    with pytest.raises(PlanError, match="FirstHitting plans by the masks"):
        Resampled(solver=FirstHitting())
    with pytest.raises(PlanError, match="path=False"):
        Resampled(solver=make_solver("ddpm", path=True))
    process = GaussianProcess(make_schedule("trig"))
    denoiser = GaussianDenoiser(torch.zeros(2).double(), torch.eye(2).double(), process)
    grid = make_grid(process.schedule, 4)
    with pytest.raises(PlanError, match="Resampled takes steps back"):
        sample(
            denoiser,
            noise=KeyedNoise(0, range(2)),
            shape=(2,),
            solver=Resampled(solver=make_solver("ddim")),
            grid=grid,
            parallel=2,
        )
