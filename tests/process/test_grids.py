"""Grids of every shape, and what is refused."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import SCHEDULE_NAMES
from undiffuse.errors import PlanError
from undiffuse.process.grids import (
    GridShape,
    autoregressive,
    check_grid,
    known,
    make_grid,
    pyramid,
    random_monotone,
    sync,
)
from undiffuse.process.registry import make_schedule

TABLE_SHAPES = ("linspace", "leading", "trailing")
SHAPES = [shape for shape in get_args(GridShape) if shape not in TABLE_SHAPES]


@pytest.mark.parametrize("name", [*SCHEDULE_NAMES])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_grids_fall_from_start_to_their_end(name: str, shape: str, steps: int) -> None:
    schedule = make_schedule(name)
    for end, last in (("zero", 0.0), ("t_min", schedule.t_min)):
        for start in (1.0, 0.6):
            grid = make_grid(schedule, steps, shape, end, start)  # type: ignore[arg-type]
            assert grid.dtype == torch.float64
            assert grid.shape == (steps + 1,)
            assert float(grid[0]) == start
            assert float(grid[-1]) == pytest.approx(last, abs=1e-12)
            assert bool((grid.diff() < 0).all())


def test_each_shape_is_uniform_in_its_own_measure() -> None:
    schedule = make_schedule("vp")

    def uniform(values: Tensor) -> bool:
        steps = values.diff()
        return float((steps - steps.mean()).abs().max()) < 1e-9 * float(steps.abs().max())

    def points(shape: str) -> Tensor:
        return make_grid(schedule, 20, shape, "t_min")  # type: ignore[arg-type]

    rho = lambda t: schedule.sigma(t) / schedule.alpha(t)  # noqa: E731
    assert uniform(points("t"))
    assert uniform(schedule.half_logsnr(points("logsnr")))
    assert torch.equal(points("logsnr"), points("exponential"))
    assert uniform(rho(points("karras")) ** (1 / 7))
    assert uniform(points("quadratic").sqrt())
    from scipy.stats import beta

    share = (points("beta") - schedule.t_min) / (1 - schedule.t_min)
    assert uniform(torch.from_numpy(beta.cdf(share.numpy(), 0.6, 0.6)))
    assert uniform(make_grid(schedule, 20, "t"))


def test_the_karras_grid_of_the_edm_schedule_is_uniform_in_its_time() -> None:
    schedule = make_schedule("edm")
    torch.testing.assert_close(
        make_grid(schedule, 18, "karras")[:-1],
        torch.linspace(1, schedule.t_min, 18, dtype=torch.float64),
        rtol=1e-10,
        atol=1e-12,
    )


def test_schedules_without_signal_at_one_start_there_and_go_on_below() -> None:
    for name in ("rf", "trig", "cosine"):
        schedule = make_schedule(name)
        grid = make_grid(schedule, 10)
        assert float(grid[0]) == 1.0
        assert bool((grid[1:] <= schedule.t_max).all())


@pytest.mark.parametrize("shape", TABLE_SHAPES)
def test_integer_spacings_need_a_table(shape: str) -> None:
    with pytest.raises(ValueError, match="table"):
        make_grid(make_schedule("vp"), 10, shape)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1000 noise levels"):
        make_grid(make_schedule("ddpm"), 1001, shape)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"start=0\.5"):
        make_grid(make_schedule("ddpm"), 10, shape, start=0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": -3}, "steps=-3"),
        (
            {"steps": 5, "shape": "linear"},
            "'linear' is unknown.*logsnr:LOW:HIGH:BEND, or for samples falling times such as 1,0.6,0.2,0",
        ),
        ({"steps": 5, "end": "one"}, "end='one'"),
        ({"steps": 5, "start": 0.0}, "start=0.0"),
        ({"steps": 5, "start": 1.1}, "start=1.1"),
        ({"steps": 5, "start": math.nan}, "start=nan"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(make_schedule("vp"), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([1.0], "shape"),
        ([[1.0, 0.5], [0.5, 0.0]], "shape"),
        ([1.1, 0.0], r"outside \[0, 1\]"),
        ([1.0, -0.1], r"outside \[0, 1\]"),
        ([1.0, math.nan], "NaN"),
        ([1.0, 0.5, 0.6, 0.0], "rises at step 1; times must fall, such as 1,0.6,0.2,0"),
        ([1.0, 0.5, 0.5, 0.0], "nothing moves in step 1"),
        ([[[1.0, 1.0]], [[0.5, 0.2]], [[0.4, 0.3]]], "rises at step 1 of item 0, frame 1"),
        ([[[1.0, 1.0]], [[1.0, 0.5]], [[1.0, 0.5]]], "nothing moves in step 1"),
    ],
)
def test_what_is_no_grid_is_refused_naming_step_and_frame(grid: list[object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_grid(torch.tensor(grid, dtype=torch.float64))


def test_lists_are_grids_too_and_frames_may_rest() -> None:
    assert check_grid([1.0, 0.5, 0.0]).dtype == torch.float64
    resting = torch.tensor([[[1.0, 1.0]], [[1.0, 0.5]], [[0.0, 0.5]], [[0.0, 0.0]]], dtype=torch.float64)
    assert torch.equal(check_grid(resting, (5, 2)), resting)


@pytest.mark.parametrize(
    ("shape", "x_shape", "fits"),
    [
        ((3, 1, 4), (5, 4, 2), True),
        ((3, 5, 4), (5, 4, 2), True),
        ((3, 5, 1), (5, 4, 2), True),
        ((3, 4, 4), (5, 4, 2), False),
        ((3, 1, 3), (5, 4, 2), False),
        ((3, 1, 2), (5,), False),
    ],
)
def test_a_grid_must_fit_the_state(shape: tuple[int, ...], x_shape: tuple[int, ...], fits: bool) -> None:
    grid = torch.linspace(1, 0, 3, dtype=torch.float64)[:, None, None].expand(shape)
    if fits:
        assert check_grid(grid, x_shape).shape == shape
        return
    with pytest.raises(PlanError, match="state has shape"):
        check_grid(grid, x_shape)


# -- frames -------------------------------------------------------------------------------------------


def test_a_pyramid_delays_each_frame_by_its_lag() -> None:
    grid = pyramid(10, 4, 3)
    assert grid.shape == (10 + 3 * 3 + 1, 1, 4)
    for m in range(20):
        for f in range(4):
            assert float(grid[m, 0, f]) == pytest.approx(min(1.0, max(0.0, 1 - (m - 3 * f) / 10)), abs=1e-15)
    assert torch.equal(pyramid(10, 4, -3), grid.flip(2))
    level = sync(torch.linspace(1, 0, 11, dtype=torch.float64), 4)
    torch.testing.assert_close(pyramid(10, 4, 0), level, rtol=0, atol=1e-15)
    for g in (grid, pyramid(10, 4, -3), autoregressive(5, 3), pyramid(1, 1, 1)):
        check_grid(g)
        assert bool((g[0] == 1).all())
        assert bool((g[-1] == 0).all())


def test_frame_after_frame_moves_one_at_a_time() -> None:
    grid = autoregressive(5, 3)
    assert grid.shape == (16, 1, 3)
    moving = (grid[1:] < grid[:-1]).sum(-1)
    assert bool((moving == 1).all())


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_known_frames_run_at_their_share_of_the_others_time(level: float) -> None:
    times = torch.linspace(1, 0, 6, dtype=torch.float64)
    grid = known(times, 5, [0, -1], level)
    assert torch.equal(grid[:, 0, 0], level * times)
    assert torch.equal(grid[:, 0, 4], level * times)
    assert torch.equal(grid[:, 0, 2], times)
    check_grid(grid)


@pytest.mark.parametrize("index", [[5], [-6], [0, 0], [0, -5]])
def test_known_frames_outside_the_clip_or_named_twice_are_refused(index: list[int]) -> None:
    with pytest.raises(ValueError, match="known frames"):
        known(torch.linspace(1, 0, 6, dtype=torch.float64), 5, index)


@pytest.mark.parametrize("level", [-0.1, 1.1, math.nan])
def test_a_level_outside_the_unit_interval_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        known(torch.linspace(1, 0, 6, dtype=torch.float64), 5, [0], level)


def test_random_paths_are_grids_that_differ_by_seed() -> None:
    one, two = random_monotone(10, 4, 0), random_monotone(10, 4, 1)
    assert one.shape == (11, 1, 4)
    assert not torch.equal(one, two)
    assert torch.equal(one, random_monotone(10, 4, 0))
    for grid in (one, two, random_monotone(1, 3)):
        check_grid(grid)


def test_empty_pyramids_are_refused() -> None:
    for arguments in ((0, 3, 1), (3, 0, 1)):
        with pytest.raises(ValueError, match="at least 1"):
            pyramid(*arguments)


@pytest.mark.parametrize("name", [*SCHEDULE_NAMES])
def test_a_limited_grid_is_even_in_half_logsnr_between_its_limits_and_then_ends_at_zero(name: str) -> None:
    schedule = make_schedule(name)
    grid = make_grid(schedule, 9, "logsnr:-2:1.5")
    inner = schedule.half_logsnr(grid[1:-1])
    assert (float(grid[0]), float(grid[-1]), len(grid)) == (1.0, 0.0, 10)
    torch.testing.assert_close(inner, torch.linspace(-2, 1.5, 9, dtype=torch.float64)[1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bend", [-0.6, 0.3, 0.9])
def test_the_bend_is_the_slope_at_both_ends(bend: float) -> None:
    schedule, steps = make_schedule("vp"), 2001
    halves = schedule.half_logsnr(make_grid(schedule, steps, f"logsnr:-3:3:{bend}")[1:-1])
    rises = halves.diff() / (6 / (steps - 1))
    torch.testing.assert_close(rises[[0, -1]], torch.tensor([1 + bend, 1 - bend]).double(), rtol=0, atol=1e-3)
    assert float(halves[-1]) == pytest.approx(3.0, abs=1e-6)


def test_a_limited_grid_from_the_middle_starts_there() -> None:
    schedule = make_schedule("vp")
    grid = make_grid(schedule, 5, "logsnr:-4:2", start=0.4)
    assert float(grid[0]) == 0.4
    assert torch.all(grid.diff() < 0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("logsnr:", "not of the form"),
        ("logsnr:1", "not of the form"),
        ("logsnr:a:2", "not of the form"),
        ("logsnr:0:1:0:0", "not of the form"),
        ("logsnr:1:-1", "LOW < HIGH"),
        ("logsnr:-90:1", "half log-SNRs of this schedule"),
        ("logsnr:-1:1:1", r"BEND in \(-1, 1\)"),
        ("logsnr:nan:1", "LOW < HIGH"),
    ],
)
def test_limits_that_are_none_are_refused(shape: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(make_schedule("vp"), 5, shape)


def test_a_limited_grid_has_no_other_end() -> None:
    with pytest.raises(ValueError, match="ends at 0"):
        make_grid(make_schedule("vp"), 5, "logsnr:-1:1", end="t_min")
