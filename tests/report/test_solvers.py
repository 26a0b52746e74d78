"""The page of `undiffuse solvers --on`: what it recommends, and the curves behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from undiffuse.analysis.solver_results import SolverChoice, Trial
from undiffuse.report.elements import Code, Picture
from undiffuse.report.plots import Curve, error_by_evaluations
from undiffuse.report.solvers import solver_curves, solver_section


def trial(solver: str, grid: str, budget: int, error: float | None, **fields: object) -> Trial:
    plain = Trial(solver=solver, grid=grid, steps=budget, budget=budget, nfe=budget, error=error, uncertainty=0.001)
    return replace(plain, **fields)  # type: ignore[arg-type]


CHOICE = SolverChoice(
    model="runs/x",
    budgets=(5, 10),
    trials=(
        *(trial("ddim", "logsnr", n, 1.0 / n) for n in (5, 10)),
        *(trial("ddim", "t", n, 0.8 / n) for n in (5, 10)),
        *(trial("unipc", "logsnr:-4:3", n, 1.0 / n**2) for n in (5, 10)),
        trial("ddpm", "t", 10, None, distance=0.02),
        trial("rk4", "t", 10, None, failure="the samples are not finite"),
    ),
    n=32,
    set_size=64,
    reference="a fine run",
    reference_error=1e-4,
    distance_floor=0.01,
)


def test_the_section_gives_a_command_for_each_budget() -> None:
    section = solver_section(CHOICE)
    commands = [element.text for element in section.elements if isinstance(element, Code)]
    assert commands == [
        f"undiffuse sample runs/x --solver unipc --steps {n} --grid=logsnr:-4:3" for n in CHOICE.budgets
    ]
    assert any(isinstance(element, Picture) for element in section.elements)
    said = " ".join(getattr(element, "text", "") for element in section.elements)
    assert "10.0 times below ddim on the grid logsnr and 8.0 times below ddim on its best grid, t" in said
    assert "not finite: rk4 on t" in said


def test_solvers_with_random_steps_alone_have_no_curves(recwarn: pytest.WarningsRecorder) -> None:
    section = solver_section(replace(CHOICE, trials=(trial("ddpm", "t", 10, None, distance=0.02),)))
    assert not any(isinstance(element, Picture) for element in section.elements)
    assert not list(recwarn)


def test_curves_are_of_the_best_grid_at_each_budget_beside_those_of_the_default() -> None:
    curves = {curve.label: curve for curve in solver_curves(CHOICE)}
    assert list(curves) == ["ddim, logsnr", "unipc, best grid", "ddim, best grid"]
    assert curves["ddim, logsnr"].dashed and curves["ddim, logsnr"].errors == [0.2, 0.1]
    assert curves["ddim, best grid"].errors == [0.16, 0.08]


def test_the_floor_is_drawn_where_it_is_near() -> None:
    curves = [Curve("one", [5, 10], [0.1, 0.01])]
    assert [len(error_by_evaluations(curves, floor).axes[0].lines) for floor in (None, 1e-5, 0.005)] == [1, 1, 2]
