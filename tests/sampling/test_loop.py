"""The loop: gradients, trajectories, callbacks, dtypes and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.oracles.continuous import CONTINUOUS_SOLVERS, normals, process_of, run, spec_mixture
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.errors import PlanError, UndiffuseError
from undiffuse.noise import KeyedNoise
from undiffuse.process.grids import known, make_grid, pyramid
from undiffuse.sampling.loop import Snapshot, sample
from undiffuse.sampling.registry import make_solver


class Tiny(nn.Module):
    """Two weights: enough for a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[0.3, -0.4], [0.2, 0.5]], dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor, level: Tensor, cond: object) -> Tensor:
        self.calls += 1
        return torch.tanh(x @ self.weight) + level.reshape(len(x), -1).mean(1)[:, None]


def tiny() -> NetworkDenoiser:
    return NetworkDenoiser(Tiny(), process_of("trig"), "v")


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
@pytest.mark.parametrize("framed", [False, True])
def test_both_ways_of_keeping_the_graph_give_the_gradient_of_finite_differences(solver: str, framed: bool) -> None:
    rule = CONTINUOUS_SOLVERS[solver]
    grid = make_grid(process_of("trig").schedule, 4)
    grid = known(grid, 2, [1], level=0.5) if framed else grid
    start = normals(3, 2, seed=1)
    weights = normals(3, 2, seed=2)

    def loss(denoiser: NetworkDenoiser, x: Tensor, grad: object) -> Tensor:
        return (run(denoiser, rule, grid, x, grad=grad).x * weights).sum()

    found = []
    for grad in (True, "checkpoint"):
        denoiser, x = tiny(), start.clone().requires_grad_()
        value = loss(denoiser, x, grad)
        value.backward()
        assert denoiser.backbone.weight.grad is not None  # type: ignore[union-attr]
        assert x.grad is not None
        found.append((value.detach(), denoiser.backbone.weight.grad, x.grad))  # type: ignore[union-attr]
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-13)

    d, numeric = 1e-6, torch.zeros(2, 2, dtype=torch.float64)
    for i in range(2):
        for j in range(2):
            values = []
            for sign in (d, -d):
                denoiser = tiny()
                with torch.no_grad():
                    denoiser.backbone.weight[i, j] += sign  # type: ignore[index, operator, union-attr]
                values.append(float(loss(denoiser, start, False)))
            numeric[i, j] = (values[0] - values[1]) / (2 * d)
    torch.testing.assert_close(found[0][1], numeric, rtol=1e-6, atol=1e-7)
    direction = normals(3, 2, seed=3)
    along = (float(loss(tiny(), start + d * direction, False)) - float(loss(tiny(), start - d * direction, False))) / (
        2 * d
    )
    assert float((found[0][2] * direction).sum()) == pytest.approx(along, rel=1e-6, abs=1e-7)


def test_without_asking_there_is_no_graph() -> None:
    denoiser, x = tiny(), normals(3, 2).requires_grad_()
    result = run(denoiser, make_solver("heun"), make_grid(process_of("trig").schedule, 4), x)
    assert not result.x.requires_grad
    assert torch.is_grad_enabled()
    with torch.no_grad():
        kept = run(denoiser, make_solver("ddim"), make_grid(process_of("trig").schedule, 4), x, grad=True)
    assert kept.x.requires_grad


def test_wrappers_can_differentiate_inside_the_loop() -> None:
    from undiffuse.denoisers.base import Wrapper

    class Nudged(Wrapper):
        def posterior(self, x, t, cond):  # type: ignore[no-untyped-def]
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                post = self.denoiser(y, t, cond)
                (slope,) = torch.autograd.grad(post.mean.square().sum(), y)
            return post.replace(mean=post.mean.detach() - 0.1 * slope)

    result = run(Nudged(tiny()), make_solver("ddim"), make_grid(process_of("trig").schedule, 4), normals(3, 2))
    assert not result.x.requires_grad


def test_checkpointing_computes_each_evaluation_again() -> None:
    denoiser, x = tiny(), normals(3, 2).requires_grad_()
    grid = make_grid(process_of("trig").schedule, 5)
    result = run(denoiser, make_solver("ddim"), grid, x, grad="checkpoint")
    assert denoiser.backbone.calls == result.nfe == 5
    result.x.sum().backward()
    assert denoiser.backbone.calls == 10


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
def test_the_trajectory_holds_every_grid_time(solver: str) -> None:
    process = process_of("vp")
    denoiser, x = spec_mixture(process), normals(3, 2, seed=1)
    grid = make_grid(process.schedule, 6)
    result = run(denoiser, CONTINUOUS_SOLVERS[solver], grid, x, trajectory=True)
    assert result.trajectory is not None
    assert result.trajectory.shape == (7, 3, 2)
    assert torch.equal(result.trajectory[0], x)
    assert torch.equal(result.trajectory[-1], result.x)
    assert torch.equal(run(denoiser, CONTINUOUS_SOLVERS[solver], grid, x).x, result.x)
    if solver in ("ddim", "heun", "edm-heun"):  # one-step methods go on from any point of it
        half = run(denoiser, CONTINUOUS_SOLVERS[solver], grid[3:], result.trajectory[3]).x
        torch.testing.assert_close(half, result.x, rtol=1e-12, atol=1e-12)


def test_the_callback_sees_every_evaluation_in_order() -> None:
    process = process_of("vp")
    shots: list[Snapshot] = []
    grid = make_grid(process.schedule, 3)
    run(spec_mixture(process), make_solver("heun"), grid, normals(3, 2), callback=shots.append)
    assert [shot.step for shot in shots] == [0, 0, 1, 1, 2]
    times = grid.tolist()
    assert [shot.t for shot in shots] == [times[0], times[1], times[1], times[2], times[2]]


def test_hooks_of_the_denoiser_are_heard_at_every_evaluation() -> None:
    process = process_of("vp")
    denoiser, heard = spec_mixture(process), []
    handle = denoiser.register_forward_hook(lambda module, args, answer: heard.append(args[1]))
    grid = make_grid(process.schedule, 3)
    changed = run(denoiser, make_solver("ddim"), grid, normals(3, 2)).x
    assert heard == grid[:-1].tolist()
    handle.remove()
    assert torch.equal(run(denoiser, make_solver("ddim"), grid, normals(3, 2)).x, changed)
    assert len(heard) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("framed", [False, True])
def test_the_state_keeps_its_dtype(dtype: torch.dtype, framed: bool) -> None:
    process = process_of("vp")
    grid = pyramid(4, 2, 1) if framed else make_grid(process.schedule, 4)
    for rule in CONTINUOUS_SOLVERS.values():
        seen: set[torch.dtype] = set()
        result = sample(
            spec_mixture(process),
            noise=KeyedNoise(0, range(3)),
            shape=(2,),
            solver=rule,
            grid=grid,
            dtype=dtype,
            callback=lambda shot, seen=seen: seen.add(shot.x.dtype),  # type: ignore[misc]
        )
        assert {result.x.dtype} == seen == {dtype}


def test_float32_stays_close_to_float64() -> None:
    process = process_of("vp")
    grid = make_grid(process.schedule, 20)
    for name, rule in CONTINUOUS_SOLVERS.items():
        ends = [
            sample(spec_mixture(process), noise=KeyedNoise(0, range(16)), shape=(2,), solver=rule, grid=grid, dtype=d).x
            for d in (torch.float32, torch.float64)
        ]
        assert float((ends[0] - ends[1]).abs().max()) < 2e-4, name


def test_the_prior_has_the_schedule_s_last_noise_level() -> None:
    for name, level in (("ve", 80.0), ("rf", 1.0), ("edm", 80.0)):
        process = process_of(name)
        noise = KeyedNoise(0, range(3))
        grid = make_grid(process.schedule, 2)
        path = sample(
            spec_mixture(process), noise=noise, shape=(2,), solver=make_solver("ddim"), grid=grid, trajectory=True
        ).trajectory
        assert path is not None
        torch.testing.assert_close(path[0], level * noise.normal("init", 0, (2,)))


def test_runs_that_cannot_work_are_refused_before_the_network_runs() -> None:
    process = process_of("trig")
    denoiser = tiny()
    grid = make_grid(process.schedule, 4)
    noise = KeyedNoise(0, range(3))
    cases = [
        ({"grid": grid[1:]}, PlanError, "[Gg]ive start"),
        ({"grid": known(grid, 2, [0])}, PlanError, "[Gg]ive start"),
        ({"grid": grid.flip(0), "start": normals(3, 2)}, PlanError, "rises at step 0"),
        ({"grid": grid, "start": normals(3, 5)}, PlanError, r"item shape \(5,\)"),
        ({"grid": pyramid(4, 3, 1)}, PlanError, "3 frames"),
        ({"grid": grid[:1]}, PlanError, "shape"),
        ({"grid": grid, "cond": {"label": torch.zeros(3)}}, ValueError, "takes no conditions"),
        ({"grid": None}, PlanError, "needs a grid"),
    ]
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            sample(denoiser, noise=noise, shape=(2,), solver=make_solver("ddim"), **arguments)  # type: ignore[arg-type]
    assert denoiser.backbone.calls == 0


def test_samples_that_are_not_finite_are_an_error_that_counts_them() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor, level: Tensor, cond: object) -> Tensor:
            return torch.where(x[:, :1] > 0, torch.nan, x)

    denoiser = NetworkDenoiser(Broken(), process_of("trig"), "v")
    x = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    with pytest.raises(UndiffuseError, match="of 3 samples are not finite"):
        run(denoiser, make_solver("ddim"), make_grid(process_of("trig").schedule, 1), x)


@pytest.mark.parametrize("solver", ["ddim", "dpm++3m", "sde-dpm++2m", "unipc-3"])
def test_the_error_names_the_step_and_the_time_of_the_first_answer_that_is_not_finite(solver: str) -> None:
    class Overflowing(nn.Module):
        def forward(self, x: Tensor, level: Tensor, cond: object) -> Tensor:
            return torch.where(level[:, None] < 0, torch.inf, x)  # below sigma = alpha, at t = 0.5

    denoiser = NetworkDenoiser(Overflowing(), process_of("trig"), "v")
    grid = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
    with pytest.raises(UndiffuseError, match=r"after 5 evaluations, the first of them at step 3 \(t = 0\.4\)"):
        sample(denoiser, noise=KeyedNoise(0, range(2)), shape=(2,), solver=make_solver(solver), grid=grid)
