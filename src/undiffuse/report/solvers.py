"""The section of a report that says which solver suits a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from undiffuse.report.elements import Section
from undiffuse.report.plots import Curve, error_by_evaluations

if TYPE_CHECKING:
    from undiffuse.analysis.solver_results import SolverChoice, Trial

_LINES = 6
_HOW_TO_READ = (
    "Error: root mean square of the difference to a fine run from the same noise, per element, in model units, with "
    "its standard error. Solvers with random steps end elsewhere from the same noise; they stand beside the best "
    "deterministic one by the energy distance of their samples to samples of the fine run. All this judges the solver: "
    "how near it comes to what the model says, not whether the model is right."
)


def solver_section(choice: SolverChoice, title: str = "Which solver?") -> Section:
    """Return a section with the recommendations, the curves and the table of what was tried."""
    section = Section(title)
    for budget in choice.budgets:
        section.text(choice.recommendation(budget))
        if command := choice.command(budget):
            section.code(command)
    if curves := solver_curves(choice):  # none where all have random steps
        section.figure(error_by_evaluations(curves, choice.reference_error), _caption(choice))
    section.table(choice.columns, choice.table(12), (0, 2, 4, 5, 6)).text(_HOW_TO_READ, "note")
    facts = [f"reference: {choice.reference}, whose own error is about {choice.reference_error:.2g}"]
    facts += [f"{choice.n} samples behind each error", f"settings: {choice.settings}", f"{choice.seconds:.0f} s"]
    if choice.distance_floor is not None:
        facts.append(f"energy distance of two fine sets of {choice.set_size}: {choice.distance_floor:.4f}")
    failed = sorted({f"{trial.solver} on {trial.grid}" for trial in choice.trials if trial.failure})
    if failed:
        facts.append(f"not finite: {', '.join(failed)}")
    return section.text("; ".join(facts) + ".", "note")


def solver_curves(choice: SolverChoice, most: int = _LINES) -> list[Curve]:
    """Return the curves of the solvers that come nearest at some budget, each on its best grid at each budget.

    DDIM on the grid logsnr is always among them, and the default dpm++2m there.
    """
    places: dict[str, int] = {}
    for budget in choice.budgets:
        order = dict.fromkeys(trial.solver for trial in choice.ranked(budget))
        for place, name in enumerate(order):
            places[name] = min(place, places.get(name, place))
    curves = [
        _curve(f"{name}, logsnr", [_on(choice, b, name, "logsnr") for b in choice.budgets], True)
        for name in ("ddim", "dpm++2m")
    ]
    names = sorted(places, key=lambda name: places[name])[:most]
    curves += [_curve(f"{name}, best grid", [_on(choice, b, name, None) for b in choice.budgets]) for name in names]
    return [curve for curve in curves if curve.evaluations]


def _on(choice: SolverChoice, budget: int, solver: str, grid: str | None) -> Trial | None:
    return next((t for t in choice.ranked(budget) if t.solver == solver and grid in (None, t.grid)), None)


def _curve(label: str, trials: list[Trial | None], dashed: bool = False) -> Curve:
    found = [trial for trial in trials if trial is not None]
    return Curve(label, [t.nfe for t in found], [t.error or 0.0 for t in found], dashed)


def _caption(choice: SolverChoice) -> str:
    return (
        f"Error against network evaluations of {choice.model}; dashed: on the grid that models have by default. A "
        "dotted line is the error of the reference."
    )
