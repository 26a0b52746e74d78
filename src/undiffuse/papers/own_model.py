"""Which solver suits a trained model: the built-in digits."""

from __future__ import annotations

from undiffuse.analysis.solver_choice import choose_solver
from undiffuse.models import load
from undiffuse.papers.study import Part
from undiffuse.report.measures import Measure

_BUDGETS = (5, 10, 20)


def digits(seed: int) -> Part:
    """Errors to a 500-step run of the built-in model from the same noise, at 5, 10 and 20 evaluations."""
    choice = choose_solver(load("digits"), name="digits", budgets=_BUDGETS, set_size=0, seed=seed)
    measures = []
    for budget in _BUDGETS:
        best = choice.best(budget)
        assert best is not None and best.error
        for grid, where in (("logsnr", "the usual grid"), (None, "its best grid")):
            plain = choice.ddim(budget, grid)
            assert plain is not None and plain.error
            asked = 5.0 if budget == 10 and grid else None
            name = f"{budget} evaluations: DDIM on {where} / the best solver"
            measures.append(Measure(name, plain.error / best.error, asked=asked, better="higher", note=best.solver))
    numeric = [choice.columns.index(name) for name in ("evaluations", "steps", "error", "v ddim")]
    return Part(
        title="A trained model",
        text=f"The built-in digits, {choice.n} samples per figure; the reference is {choice.reference}. "
        + " ".join(choice.recommendation(budget) for budget in _BUDGETS),
        columns=choice.columns,
        rows=choice.table(),
        numeric=numeric,
        measures=measures,
    )
