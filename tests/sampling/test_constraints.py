"""The constraint protocol: when each hook is called, and the two constraints of known elements."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import CONTINUOUS_SOLVERS, normals, process_of, run, spec_mixture
from undiffuse.errors import PlanError
from undiffuse.noise import KeyedNoise, NoiseSource
from undiffuse.process.grids import known, make_grid, sync
from undiffuse.process.times import Time
from undiffuse.sampling.constraints import Constraint, Known, Replacement
from undiffuse.sampling.loop import sample
from undiffuse.sampling.registry import make_solver


class Diary(Constraint):
    """Writes down what happens."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def enter(self, x: Tensor, t: Time, k: int, noise: NoiseSource) -> Tensor:
        self.lines.append(("enter", k, t))
        return x

    def correct(self, post: Any, x: Tensor, t: Time, s: Time) -> Any:
        self.lines.append(("correct", t, s))
        return post

    def leave(self, x: Tensor, s: Time, k: int, noise: NoiseSource) -> tuple[Tensor, bool]:
        self.lines.append(("leave", k, s))
        return x, False


@pytest.mark.parametrize("solver", list(CONTINUOUS_SOLVERS))
def test_each_step_enters_once_corrects_each_answer_and_leaves_once(solver: str) -> None:
    process, rule, diary = process_of("vp"), CONTINUOUS_SOLVERS[solver], Diary()
    grid = make_grid(process.schedule, 3)
    times = grid.tolist()
    plain = run(spec_mixture(process), rule, grid, normals(2, 2)).x
    result = run(spec_mixture(process), rule, grid, normals(2, 2), constraints=[diary])
    assert torch.equal(result.x, plain)
    enters = [line for line in diary.lines if line[0] == "enter"]
    leaves = [line for line in diary.lines if line[0] == "leave"]
    assert enters == [("enter", k, times[k]) for k in range(3)]
    assert leaves == [("leave", k, times[k + 1]) for k in range(3)]
    assert sum(line[0] == "correct" for line in diary.lines) == result.nfe
    order = [line[0] for line in diary.lines if line[0] != "correct"]
    assert order == ["enter", "leave"] * 3


def test_constraints_act_in_the_order_given() -> None:
    class Put(Constraint):
        def __init__(self, value: float) -> None:
            self.value = value

        def leave(self, x: Tensor, s: Time, k: int, noise: NoiseSource) -> tuple[Tensor, bool]:
            return torch.full_like(x, self.value), True

    process = process_of("vp")
    grid = make_grid(process.schedule, 3)
    end = run(spec_mixture(process), make_solver("ddim"), grid, normals(2, 2), constraints=[Put(1.0), Put(2.0)]).x
    assert torch.equal(end, torch.full((2, 2), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("eps", ["same", "fresh"])
def test_replacement_puts_known_elements_at_the_noise_level_of_the_step(eps: str) -> None:
    process, values = process_of("vp"), normals(2, 2, seed=4)
    mask = torch.tensor([[True, False]])
    seen: list[tuple[Time, Tensor]] = []

    class Look(Constraint):
        def correct(self, post: Any, x: Tensor, t: Time, s: Time) -> Any:
            seen.append((t, x.clone()))
            return post

    replacement = Replacement(process, values, mask, eps)  # type: ignore[arg-type]
    grid = make_grid(process.schedule, 5)
    end = run(spec_mixture(process), make_solver("ddim"), grid, normals(2, 2), constraints=[replacement, Look()]).x
    noises = [(x[:, 0] - process.coefficients(t, x)[0] * values[:, 0]) / process.coefficients(t, x)[1] for t, x in seen]
    spread = torch.stack(noises).std(0)
    assert float(spread.max()) < 1e-9 if eps == "same" else float(spread.min()) > 0.1
    assert torch.equal(end[:, 0], values[:, 0])


@pytest.mark.parametrize("constraint", ["known", "replacement"])
def test_known_elements_come_out_as_given_also_with_times_per_frame(constraint: str) -> None:
    process, values = process_of("trig"), normals(2, 2, seed=4)
    mask = torch.tensor([[True, False]])
    rule = Known(values, mask) if constraint == "known" else Replacement(process, values, mask)
    grid = sync(make_grid(process.schedule, 5), 2)
    end = run(spec_mixture(process), make_solver("ddim"), grid, normals(2, 2), constraints=[rule]).x
    assert torch.equal(end[:, 0], values[:, 0])


def test_known_values_may_be_of_another_dtype_and_broadcast() -> None:
    process = process_of("vp")
    known = Known(torch.tensor([0.5, 0.0]), torch.tensor([True, False]))
    end = run(
        spec_mixture(process), make_solver("ddim"), make_grid(process.schedule, 3), normals(3, 2), constraints=[known]
    ).x
    assert torch.equal(end[:, 0], torch.full((3,), 0.5, dtype=torch.float64))


def test_known_frames_need_no_start_of_their_own() -> None:
    process = process_of("trig")
    denoiser = spec_mixture(process)
    values, mask = normals(2, 2, seed=4), torch.tensor([[True, False]])
    grid = known(make_grid(process.schedule, 6), 2, [0])
    noise = KeyedNoise(0, range(2))
    given: dict[str, Any] = {
        "noise": noise,
        "shape": (2,),
        "solver": make_solver("dpm++2m"),
        "grid": grid,
        "dtype": torch.float64,
    }
    rule = Known(values, mask)
    start = torch.where(mask, values, process.prior(noise.normal("init", 0, (2,), torch.float64)))
    alone = sample(denoiser, constraints=[rule], **given).x
    assert torch.equal(alone, sample(denoiser, constraints=[rule], start=start, **given).x)
    with pytest.raises(PlanError, match=r"Let the grid begin at 1, or give start"):
        sample(denoiser, **given)
