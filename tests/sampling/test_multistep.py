"""Multistep solvers: options that are refused, what the listing reads, cost, gradients, times per element."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles.continuous import normals, process_of, run, spec_mixture
from undiffuse.denoisers.base import Wrapper
from undiffuse.denoisers.posterior import Posterior
from undiffuse.networks.embedded import Embedded
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid, pyramid
from undiffuse.process.registry import make_schedule
from undiffuse.process.times import Time
from undiffuse.sampling.registry import SOLVERS, make_solver
from undiffuse.sampling.solver import NOTHING

NAMES = [
    "dpm++2m", "dpm++3m", "dpm-solver-2m", "dpm-solver-3m", "sde-dpm++1", "sde-dpm++2m", "sde-dpm++3m", "deis-2",
    "deis-3", "lms", "ipndm", "unipc", "unipc-3", "euler-ancestral",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_order_cost_and_noise(name: str) -> None:
    rule = make_solver(name)
    orders = {"lms": 4, "ipndm": 4, "sde-dpm++1": 1, "unipc": 2, "euler-ancestral": 1}
    assert rule.order == orders.get(name, 3 if "3" in name else 2)
    assert rule.stochastic == (name.startswith("sde") or name == "euler-ancestral")
    assert rule.evaluations == "1" and rule.needs == "" and not rule.discrete
    assert name in SOLVERS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 20])
def test_every_step_asks_once(name: str, steps: int) -> None:
    process = process_of("vp")
    for end in ("zero", "t_min"):
        result = run(
            spec_mixture(process), make_solver(name), make_grid(process.schedule, steps, end=end), normals(3, 2)
        )  # type: ignore[arg-type]
        assert result.nfe == steps and result.x.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("schedule", ["vp", "rf"])
def test_elements_that_wait_walk_as_if_alone(name: str, schedule: str) -> None:
    """In a pyramid each element moves over the same times with rests before and after, and remembers across them."""
    process = process_of(schedule)
    steps, frames = 7, 3
    rule = make_solver(name, eta=0.0) if name == "euler-ancestral" else make_solver(name)
    if rule.stochastic:
        rule = make_solver(name, tau=0.0)
    scalar = spec_mixture(process)

    class PerFrame(Wrapper):
        """The mixture, for each frame by itself at its own time."""

        def posterior(self, x: Tensor, t: Time, cond: Embedded | None) -> Posterior:
            times = torch.as_tensor(t, dtype=torch.float64).expand(len(x), frames)
            return Posterior(torch.stack([scalar(x[:, f], times[:, f]).mean for f in range(frames)], dim=1))

    denoiser = PerFrame(scalar)
    x = normals(4, frames, 2, seed=1)
    waiting = run(denoiser, rule, pyramid(steps, frames, 2), x).x
    for f in range(frames):
        alone = run(scalar, rule, torch.linspace(1, 0, steps + 1, dtype=torch.float64), x[:, f]).x
        torch.testing.assert_close(waiting[:, f], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["dpm++3m", "dpm-solver-3m", "unipc-3"])
def test_the_end_is_differentiable_in_the_start(name: str) -> None:
    process = process_of("rf")
    grid = make_grid(process.schedule, 6)
    x = normals(2, 2, seed=1).requires_grad_()
    end = run(spec_mixture(process), make_solver(name), grid, x, grad=True).x
    (slope,) = torch.autograd.grad(end[0, 0], x)
    shift = torch.tensor([[1e-5, 0.0], [0.0, 0.0]], dtype=torch.float64)
    ahead, behind = (run(spec_mixture(process), make_solver(name), grid, x.detach() + s * shift).x for s in (1, -1))
    assert float(slope[0, 0]) == pytest.approx(float(ahead[0, 0] - behind[0, 0]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dpm++3m", {"order": 4}, "order=4 of DPMMultistep must be from 1 to 3"),
        ("dpm++2m", {"order": 0}, "order=0"),
        ("dpm++2m", {"form": "eps"}, "form='eps'"),
        ("dpm++2m", {"lower_final": "last"}, "lower_final='last'"),
        ("dpm++2m", {"published": True}, "about order 3"),
        ("dpm++3m", {"published": "k-diffusion"}, "published='k-diffusion'"),
        ("dpm++3m", {"published": "diffusers"}, "stochastic rule"),
        ("dpm-solver-2m", {"tau": 1.0}, "no stochastic family"),
        ("sde-dpm++3m", {"tau": -0.1}, "tau=-0.1"),
        ("sde-dpm++3m", {"tau": float("nan")}, "tau=nan"),
        ("deis-3", {"variable": "sigma"}, "variable='sigma'"),
        ("deis-3", {"order": 5}, "from 1 to 4"),
        ("unipc", {"variant": "bh3"}, "variant='bh3'"),
        ("unipc", {"order": 4}, "from 1 to 3"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_solver(name, **options)


def test_steps_can_be_mapped_over_what_the_denoiser_alone_knows() -> None:
    """A sum written into the state would not take the axis that only the answers have."""
    process = GaussianProcess(make_schedule("vp"))
    solver = make_solver("dpm++2m")
    stages = solver.plan(process, make_grid(process.schedule, 3)).stages  # type: ignore[attr-defined]

    def end(weight: torch.Tensor) -> torch.Tensor:
        x, memory = torch.ones(2, 2), NOTHING
        for stage in stages:
            x, memory = solver.step(stage, x, Posterior(weight * torch.ones(2, 2)), memory, None)
        return x

    weights = torch.tensor([0.5, -1.0, 2.0])
    torch.testing.assert_close(torch.func.vmap(end)(weights), torch.stack([end(weight) for weight in weights]))
