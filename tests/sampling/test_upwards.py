"""`sample(..., up=True)`: what may be walked from data to noise, and what may not."""

from __future__ import annotations

import pytest
import torch

from tests.oracles.continuous import normals, process_of, run, spec_mixture
from undiffuse.errors import PlanError
from undiffuse.process.grids import make_grid
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.upwards import upward_plan

PROCESS = process_of("vp")
GRID = make_grid(PROCESS.schedule, 8, "logsnr", "t_min")


def test_a_step_up_undoes_a_step_down_where_the_answer_does_not_change() -> None:
    """DDIM with a constant mean is exact in any step, in both directions."""
    from undiffuse.denoisers.mixture import MixtureDenoiser

    point = MixtureDenoiser(torch.ones(1), torch.tensor([[0.3, -1.0]]), torch.zeros(1), PROCESS)
    x = normals(3, 2)
    up = run(point, make_solver("ddim"), GRID, x, up=True, trajectory=True)
    down = run(point, make_solver("ddim"), GRID, up.x, trajectory=True)
    torch.testing.assert_close(down.x, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(down.trajectory.flip(0), up.trajectory, rtol=1e-10, atol=1e-10)  # type: ignore[union-attr]
    assert up.nfe == down.nfe == 8


def test_what_has_no_way_up_is_refused() -> None:
    mixture, x = spec_mixture(PROCESS), normals(2, 2)
    with pytest.raises(PlanError, match="give start"):
        from undiffuse.noise import KeyedNoise
        from undiffuse.sampling.loop import sample

        sample(mixture, noise=KeyedNoise(0, range(2)), shape=(2,), solver=make_solver("ddim"), grid=GRID, up=True)
    with pytest.raises(PlanError, match="no constraints"):
        run(mixture, make_solver("ddim"), GRID, x, up=True, constraints=[Constraint()])
    with pytest.raises(PlanError, match=r"process\.renoise"):
        run(mixture, make_solver("ddpm"), GRID, x, up=True)
    with pytest.raises(PlanError, match="rises at step 0"):
        run(mixture, make_solver("ddim"), GRID.flip(0), x, up=True)
    with pytest.raises(PlanError, match="end='t_min'"):
        run(mixture, make_solver("ddim"), make_grid(PROCESS.schedule, 4), x, up=True)
    with pytest.raises(PlanError, match="needs a grid"):
        upward_plan(make_solver("ddim"), PROCESS, None)
    with pytest.raises(PlanError, match="chooses its own times"):
        upward_plan(make_solver("rk45"), PROCESS, GRID)
    with pytest.raises(PlanError, match="Gaussian processes"):
        upward_plan(make_solver("ancestral"), PROCESS, GRID)
